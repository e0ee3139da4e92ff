"""Pure ASGI layers round an application: measurement, body limit, timeout, rate, HEAD."""

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http import problems
from app.http.rate import Rates
from app.metrics import HTTP_DURATION, HTTP_REQUESTS


def route_of(scope: Scope) -> str:
    """The template of the matched route, so that ids never become labels."""
    route = scope.get("route")
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    if template:
        return str(template)
    return str(scope["path"]) if scope.get("endpoint") is not None and not scope.get("path_params") else "unmatched"


class Limited:
    """Answers 413 to a larger body and 503 to a slower request, and counts every request by route."""

    def __init__(self, app: ASGIApp, *, body_limit_bytes: int, request_timeout_s: float) -> None:
        self._app = app
        self._body_limit_bytes = body_limit_bytes
        self._request_timeout_s = request_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        code = 500

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._limited(scope, receive, noting)
        finally:
            route = route_of(scope)
            HTTP_REQUESTS.labels(route, str(code)).inc()
            HTTP_DURATION.labels(route).observe(time.perf_counter() - started_s)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def sending(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        if _declared_length(scope) > self._body_limit_bytes:
            await problems.response(413, self._too_large(), scope["path"])(scope, receive, sending)
            return
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._app(scope, self._counting(receive), sending)
        except TimeoutError:
            if answered:
                raise
            detail = f"No answer within {self._request_timeout_s:g} s."
            await problems.response(503, detail, scope["path"], headers={"Retry-After": "1"})(scope, receive, send)

    def _too_large(self) -> str:
        return f"The body may hold {self._body_limit_bytes} bytes at most."

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._body_limit_bytes:
                # The application reads the body and turns this into its answer.
                raise HTTPException(413, self._too_large())
            return message

        return counted


class HeadAsGet:
    """Answers HEAD as GET without the body, which the framework does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headers_only(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, headers_only)


class RateLimited:
    """Answers 429 to a client that asks more often than it may; health and metrics may always be asked."""

    def __init__(self, app: ASGIApp, rates: Rates, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._rates = rates
        self._monotonic_s = monotonic_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait_s = 0.0
        if scope["type"] == "http" and scope["path"].startswith("/api/"):
            wait_s = self._rates.take(client_of(scope), 1, self._monotonic_s())
        if wait_s <= 0:
            await self._app(scope, receive, send)
            return
        detail = f"More requests than one client may make; try again in {wait_s:.1f} s."
        headers = {"Retry-After": str(math.ceil(wait_s))}
        await problems.response(429, detail, scope["path"], headers=headers)(scope, receive, send)


def client_of(scope: Scope) -> str:
    """Who asks: its API key, of which only a digest is kept, else its address."""
    for name, value in scope["headers"]:
        if name in {b"authorization", b"x-api-key"}:
            return hashlib.sha256(value).hexdigest()
    client = scope.get("client")
    return str(client[0] if client else "")


def _declared_length(scope: Scope) -> int:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    value: Any = next((value for name, value in headers if name == b"content-length"), b"0")
    return int(value) if value.isdigit() else 0
