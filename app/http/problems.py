"""Errors as RFC 9457 problem documents."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from app.errors import PublishFailed, Unavailable

log = logging.getLogger(__name__)

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CONTENT_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One thing wrong with a request."""

    field: str = Field(description="Where: body.action, query.limit, …")
    message: str
    line: int | None = Field(None, description="Of a definition, from 1.")
    column: int | None = None


class Problem(BaseModel):
    """RFC 9457 problem document."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "No device press-9999 is known.",
                    "instance": "/api/v1/devices/press-9999",
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldProblem] = Field(default_factory=list)


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is not valid."},
    422: {"model": Problem, "description": "A field is not valid; `errors` names each."},
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "Nothing has this id."}}
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "The broker does not answer."}}


def document(
    status: int, detail: str, instance: str, *, errors: Sequence[Mapping[str, Any]] = (), title: str | None = None
) -> bytes:
    """The bytes of a problem document; `errors` only when there are some."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
    }
    if errors:
        body["errors"] = list(errors)
    return orjson.dumps(body)


def response(
    status: int,
    detail: str,
    instance: str,
    *,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    return Response(
        document(status, detail, instance, errors=errors),
        status_code=status,
        media_type=CONTENT_TYPE,
        headers=dict(headers or {}),
    )


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    detail, headers = str(error.detail), error.headers
    if error.status_code == 404 and detail == "Not Found":
        detail = f"Nothing is served at {path}."
    elif error.status_code == 405:
        # The router tells the methods of one route; a path may have several.
        headers = {**(headers or {}), "Allow": allow(_methods(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail = f"{request.method} is not served at {path}."
    return response(error.status_code, detail, path, headers=headers)


def allow(methods: Iterable[str]) -> str:
    """The header Allow; who takes GET takes HEAD."""
    taken = {*methods, "OPTIONS"}
    return ", ".join(sorted(taken | {"HEAD"} if "GET" in taken else taken))


def _methods(request: Request) -> list[str]:
    """What is served at the path of a request; tried out, for a router may stand for many routes."""

    def served(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if served(method)]


async def on_unavailable(request: Request, error: Exception) -> Response:
    return response(503, str(error), request.url.path, headers={"Retry-After": "1"})


async def on_bug(request: Request, error: Exception) -> Response:
    """Starlette re-raises after this answer; the details stay in the log, not on the wire."""
    log.error(
        "request failed",
        exc_info=error,
        extra={"action": "http_request_failed", "path": request.url.path, "method": request.method},
    )
    return response(500, "The server failed to answer; its log says why.", request.url.path)


def install(app: Starlette) -> None:
    """Answer every error of `app` with a problem document."""
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Unavailable, on_unavailable)
    app.add_exception_handler(PublishFailed, on_unavailable)
    app.add_exception_handler(Exception, on_bug)
