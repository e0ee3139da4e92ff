"""OpenAPI of the routes that are served without the framework: starts and streams."""

from typing import Any, Final

from fastapi import FastAPI

from app.http.execution_schemas import ExecutionDetail
from app.http.execution_stream import ROUTE as STREAM
from app.http.problems import Problem
from app.http.start_routes import BATCH, SINGLE

_WORKFLOW: Final[dict[str, Any]] = {
    "name": "workflow_id",
    "in": "path",
    "required": True,
    "description": "Id of the workflow.",
    "schema": {"type": "string", "maxLength": 128},
    "example": "press-overheat",
}
_ACCEPTED: Final[dict[str, Any]] = {
    "execution_id": "019a9b2e-7c40-7c3a-9f6b-2f1d7c0a5b11",
    "workflow": "press-overheat",
    "version": "3f1c9a72b0de",
    "status": "queued",
    "status_url": "/api/v1/executions/019a9b2e-7c40-7c3a-9f6b-2f1d7c0a5b11",
}
_TEXT: Final = {"type": "string"}
_SCHEMAS: Final[dict[str, Any]] = {
    "StartOrder": {
        "description": "The input itself, or an envelope: an object with `input` and nothing but `key` and `priority`"
        " beside it. `?raw=true` takes any body for the input.",
        "examples": [{"device_id": "press-0001"}, {"input": {"device_id": "press-0001"}, "priority": 5}],
    },
    "StartItem": {
        "description": "One start of a batch: the input itself, or an envelope of `input` beside `key`, `priority`,"
        " `version` and `idempotency_key`.",
        "examples": [{"input": {"device_id": "press-0001"}, "idempotency_key": "order-7"}],
    },
    "StartBatch": {
        "description": 'A list of starts, or {"starts": [...]}.',
        "anyOf": [
            {"type": "array", "items": {"$ref": "#/components/schemas/StartItem"}},
            {
                "type": "object",
                "required": ["starts"],
                "properties": {"starts": {"type": "array", "items": {"$ref": "#/components/schemas/StartItem"}}},
            },
        ],
        "examples": [[{"input": {"device_id": "press-0001"}}, {"input": {"device_id": "press-0002"}}]],
    },
    "Started": {
        "type": "object",
        "description": "The start is on `workflow.commands`, acknowledged by every in-sync replica.",
        "required": sorted(_ACCEPTED),
        "properties": dict.fromkeys(_ACCEPTED, _TEXT),
        "examples": [_ACCEPTED],
    },
    "StartedBatch": {
        "type": "object",
        "description": "What became of each start, in their order; `code` is what it would be answered alone.",
        "required": ["accepted", "refused", "items"],
        "properties": {
            "accepted": {"type": "integer"},
            "refused": {"type": "integer"},
            "items": {"type": "array", "items": {"type": "object"}},
        },
        "examples": [
            {
                "accepted": 1,
                "refused": 1,
                "items": [
                    {"index": 0, "code": 202, **_ACCEPTED},
                    {"index": 1, "code": 404, "detail": "Workflow press-overheat has no version v9."},
                ],
            }
        ],
    },
}


def _query(name: str, description: str, example: object) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": _TEXT, "example": example}


def _header(name: str, description: str, example: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": _TEXT, "example": example}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


_START_PROBLEMS: Final[dict[str, Any]] = {
    "400": _problem("The body is not JSON, or an option is not valid."),
    "403": _problem("The workflow has triggers, and http is not among them."),
    "404": _problem("No such workflow, or no such version of it."),
    "413": _problem("The input is too large, or the batch too long."),
    "422": _problem("The concurrency key has no value for this input, or the Idempotency-Key was used with another."),
    "415": _problem("The body is called something else than JSON."),
    "429": _problem("Too many starts of this client; Retry-After says when."),
    "503": _problem("The broker does not answer, or the definitions have not all been read; Retry-After says when."),
}
_TRACE: Final = _header(
    "traceparent", "W3C trace context; the execution joins the trace.", f"00-{'1' * 32}-{'2' * 16}-01"
)
_START: Final[dict[str, Any]] = {
    "tags": ["workflows"],
    "summary": "Start an execution; durable when answered",
    "operationId": "start_execution",
    "parameters": [
        _WORKFLOW,
        _query("version", "This version; without it the latest.", "3f1c9a72b0de"),
        _query("wait", "Seconds to wait for the end; then 200 with the execution.", "5"),
        _query("key", "Concurrency key, before that of the definition.", "press-0001"),
        _query("priority", "Higher ones are let in first.", "5"),
        _query("raw", "true: the body is the input whatever it looks like.", "true"),
        _header("Idempotency-Key", "A repeat with the same key is answered with the first execution.", "order-7"),
        _TRACE,
    ],
    "requestBody": {"content": _json("StartOrder")},
    "responses": {
        "200": {"description": "It ended within `wait`.", "content": _json(ExecutionDetail.__name__)},
        "202": {"description": "Accepted.", "content": _json("Started")},
        **_START_PROBLEMS,
    },
}
_START_MANY: Final[dict[str, Any]] = {
    "tags": ["workflows"],
    "summary": "Start up to 1,000 executions, each with its own outcome",
    "operationId": "start_executions",
    "parameters": [_WORKFLOW, _query("version", "For starts that name none.", "3f1c9a72b0de"), _TRACE],
    "requestBody": {"required": True, "content": _json("StartBatch")},
    "responses": {
        "202": {"description": "At least one was accepted.", "content": _json("StartedBatch")},
        **_START_PROBLEMS,
    },
}
_STREAM: Final[dict[str, Any]] = {
    "tags": ["executions"],
    "summary": "The events of one execution as they happen, as server-sent events",
    "description": "What has happened so far, then what happens; a comment every 15 s of silence. `id` is the event's"
    " `seq`, `event` its type, `data` its JSON. The stream ends with the execution.",
    "operationId": "stream_execution",
    "parameters": [
        {
            "name": "execution_id",
            "in": "path",
            "required": True,
            "description": "Id of the execution.",
            "schema": _TEXT,
            "example": _ACCEPTED["execution_id"],
        },
        _header("Last-Event-ID", "Only events after this one.", "12"),
    ],
    "responses": {
        "200": {
            "description": "Events.",
            "content": {
                "text/event-stream": {
                    "schema": _TEXT,
                    "example": 'id: 1\nevent: task_scheduled\ndata: {"type":"task_scheduled","seq":1}\n\n',
                }
            },
        },
        "204": {"description": "It has ended, and Last-Event-ID is its last event."},
        "400": _problem("Last-Event-ID is no number."),
        "404": _problem("No such execution."),
        "503": _problem("The index has not read everything yet, or too many streams are open."),
    },
}


def add_documented(api: FastAPI) -> None:
    """Let the document of `api` tell of them too."""
    made = api.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        if SINGLE not in document["paths"]:
            document["paths"] |= {
                SINGLE: {"post": _START},
                "/workflows/{workflow_id}/execute": {"post": {**_START, "operationId": "start_execution_short"}},
                BATCH: {"post": _START_MANY},
                STREAM: {"get": _STREAM},
            }
            document["components"]["schemas"] |= _SCHEMAS
        return document

    api.openapi = openapi  # type: ignore[method-assign]
