"""What the framework leaves out of the API's document: problems by their own type, and an example everywhere."""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI

from app.http.problems import CONTENT_TYPE, Problem

Document = dict[str, Any]
_REF: Final = "#/components/schemas/"
_JSON: Final = "application/json"
_PROBLEM: Final = {CONTENT_TYPE: {"schema": {"$ref": f"{_REF}{Problem.__name__}"}}}
_EXAMPLES: Final[Document] = {
    "cursor": "WzE3NjM2ODkwMDAwMDAsImEiXQ",
    "limit": 100,
    "paused": False,
    "redriven": False,
    "site": "north",
    "rule": "press-overheat",
    "severity": "critical",
    "Idempotency-Key": "order-7",
}
_HEALTH: Final[Document] = {
    "status": "ok",
    "checks": {"executions": {"ok": True, "detail": "7 executions, lag 0 records"}},
}
_OPERATIONS: Final[Document] = {
    "/config": {"hash": "72b0159baff0", "settings": {"http": {"port": 8080}}},
    **dict.fromkeys(("/health", "/health/live", "/health/ready", "/health/startup"), _HEALTH),
}
_PLAIN: Final[Document] = {"string": "nightly", "integer": 1, "number": 1.0, "boolean": True}
_ALWAYS: Final = {
    "400": "The request is not valid.",
    "422": "A field is not valid; `errors` names each.",
    "503": "Not all has been read yet, or there was no answer in time; Retry-After says when to come again.",
}
_OFTEN: Final = {"429": "More requests than one client may make; Retry-After says when to come again."}
_OF_BODIES: Final = {"413": "The body is too large.", "415": "The body is called something else than JSON."}


def complete(api: FastAPI) -> None:
    """Let the document of `api` be whole."""
    made = api.openapi

    def openapi() -> Document:
        document = made()
        schemas = document["components"]["schemas"]
        for path, method, operation in _operations(document):
            if path.startswith("/api/v1/") and path != "/api/v1/ledger":
                _add_problems(operation, takes_body=method != "get" and "requestBody" in operation)
            _mend_problems(operation)
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in _EXAMPLES:
                    parameter.setdefault("example", _EXAMPLES[parameter["name"]])
            if path in _OPERATIONS:
                operation["responses"]["200"]["content"][_JSON]["example"] = _OPERATIONS[path]
        for name, schema in schemas.items():
            if "examples" not in schema and (example := _example(schema, schemas)) is not None:
                schemas[name]["examples"] = [example]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        return document

    api.openapi = openapi  # type: ignore[method-assign]


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _add_problems(operation: Document, *, takes_body: bool) -> None:
    for code, description in {**_ALWAYS, **_OFTEN, **(_OF_BODIES if takes_body else {})}.items():
        operation["responses"].setdefault(code, {"description": description})


def _mend_problems(operation: Document) -> None:
    """The framework says of every model that it is application/json, and of 422 that it is its own."""
    for code, response in operation["responses"].items():
        if code[0] in "45" and (_JSON in response.get("content", {}) or "content" not in response):
            response["content"] = _PROBLEM


def _example(schema: Document, schemas: Document) -> Any:
    """Put together of the examples of its parts; None when one of them has none."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].removeprefix(_REF)]
    for name in ("examples", "enum"):
        if schema.get(name):
            return schema[name][0]
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if "properties" in schema:
        made = {name: _example(part, schemas) for name, part in schema["properties"].items()}
        required = schema.get("required", ())
        whole = all(made[name] is not None for name in required)
        return {name: value for name, value in made.items() if value is not None} if whole else None
    if schema.get("type") == "array":
        item = _example(schema["items"], schemas)
        return None if item is None else [item]
    for part in schema.get("anyOf", ()):
        if (found := _example(part, schemas)) is not None:
            return found
    return _PLAIN.get(schema.get("type", ""))
