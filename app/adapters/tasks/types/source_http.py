"""The task type source.http: what a URL answers."""

import csv
import io
from typing import Any, Final, Literal

import orjson
from pydantic import Field

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.types.params import Params
from app.errors import TaskFailed

JSON_LINES: Final = frozenset({"application/x-ndjson", "application/jsonl", "application/x-jsonlines"})


class HttpSourceParams(Params):
    """What source.http is told."""

    url: str = Field(min_length=1, description="http:// or https://; private addresses need a setting.")
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"] = Field("GET", description="Method.")
    headers: dict[str, str] = Field(default_factory=dict, description="Headers of the request.")
    query: dict[str, str | int | float | bool | list[str | int | float] | None] | None = Field(
        None, description="Query parameters, encoded; they replace those of the url."
    )
    json_body: Any = Field(None, alias="json", description="Body, sent as JSON.")
    expect: Literal["auto", "json", "jsonl", "csv", "text"] = Field(
        "auto", description="How the body is read; auto goes by its content type, else text."
    )
    full: bool = Field(default=False, description="Give {status, headers, body} instead of the body alone.")
    accept_statuses: list[int] = Field(default_factory=list, description="Statuses besides 2xx that are no failure.")
    retry_statuses: list[int] = Field(
        default_factory=list, description="Statuses besides 408, 425, 429 and 5xx that are worth another attempt."
    )
    max_bytes: int = Field(1 << 20, ge=1, description="A larger body, unpacked, is an error.")
    timeout_s: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="The whole exchange is given up after this long; waiting for one of `tasks.http_connections` "
        "does not count.",
    )


class HttpSource:
    """Asks once; follows no redirect, and no address that is private unless `tasks.allow_private_addresses`."""

    name = "source.http"
    params_model = HttpSourceParams
    kind: Kind = "async"
    takes_turns = True
    pure = False

    async def run(self, call: TaskCall[HttpSourceParams]) -> Any:
        """The body, read as `expect` says."""
        from app.adapters.tasks.types.http_call import Request, fetch, merged  # noqa: PLC0415 - a vendor in need

        params = call.params
        has_body = params.json_body is not None
        headers = merged({"content-type": "application/json"} if has_body else {}, params.headers)
        body = orjson.dumps(params.json_body) if has_body else None
        response = await fetch(
            Request(
                params.method,
                params.url,
                headers,
                params.query,
                body,
                params.timeout_s,
                min(params.max_bytes, call.shared.settings.source_bytes),
                params.retry_statuses,
                params.accept_statuses,
            ),
            call.shared,
        )
        content = read_body(response.body, response.headers.get("content-type", ""), params.expect)
        if params.full:
            return {"status": response.status, "headers": dict(response.headers), "body": content}
        return content


def read_body(body: bytes, content_type: str, expect: str) -> Any:
    """The value of a body. Raises `TaskFailed` of type `InvalidResponse`."""
    kind = content_type.partition(";")[0].strip().lower()
    if expect == "auto":
        expect = _guess(kind)
    try:
        if expect == "json":
            return orjson.loads(body) if body.strip() else None
        if expect == "jsonl":
            return [orjson.loads(line) for line in body.splitlines() if line.strip()]
        text = body.decode(_charset(content_type))
    except (ValueError, LookupError) as error:
        raise TaskFailed("InvalidResponse", f"the body is not {expect}: {error}") from error
    if expect == "csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return text


def _guess(kind: str) -> str:
    if kind == "application/json" or kind.endswith("+json"):
        return "json"
    if kind in JSON_LINES:
        return "jsonl"
    return "csv" if kind == "text/csv" else "text"


def _charset(content_type: str) -> str:
    for part in content_type.split(";")[1:]:
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"')
    return "utf-8"
