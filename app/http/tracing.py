"""The server spans of starts: an ASGI layer that puts a request into its trace before others read it."""

import os
import time
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.trace import HEADER, Span, TraceContext, Value, is_sampled, parse
from app.http.start_routes import start_route
from app.ports import Tracing

_HEADER = HEADER.encode()
_LOCATION = b"/api/v1/executions/"


class TracedStarts:
    """One server span a request; what is started is below it, by the `traceparent` that goes with its command."""

    def __init__(self, rest: ASGIApp, tracing: Tracing) -> None:
        self._rest = rest
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = start_route(scope)
        if found is None:
            await self._rest(scope, receive, send)
            return
        above = _asked(scope)
        context = self._begin(above)
        status, execution_id = 500, ""

        async def noting(message: Message) -> None:
            nonlocal status, execution_id
            if message["type"] == "http.response.start":
                status = message["status"]
                execution_id = _started(message)
            await send(message)

        headers = [pair for pair in scope["headers"] if pair[0] != _HEADER]
        headers.append((_HEADER, context.header().encode()))
        start_ns = time.time_ns()
        try:
            await self._rest({**scope, "headers": headers}, receive, noting)
        finally:
            if context.is_sampled:
                attributes = _attributes(scope, found[0], status)
                if execution_id:
                    attributes["headrace.execution.id"] = execution_id
                attributes["headrace.workflow.id"] = found[1]
                self._tracing.ended(
                    Span(
                        context=context,
                        parent_id=None if above is None else above.span_id,
                        name=f"{scope['method']} {found[0]}",
                        kind="server",
                        start_ns=start_ns,
                        end_ns=max(start_ns, time.time_ns()),
                        attributes=attributes,
                        error="" if status >= 500 else None,
                    )
                )

    def _begin(self, above: TraceContext | None) -> TraceContext:
        """The span of the request: below what came with it, or at the beginning of a trace."""
        span_id = os.urandom(8).hex()
        if above is not None:
            return above.at(span_id)
        trace_id = os.urandom(16).hex()
        return TraceContext(trace_id, span_id, is_sampled(trace_id, self._tracing.sample_ratio))


def _asked(scope: Scope) -> TraceContext | None:
    """The context that came with the request; of two nobody knows which is meant."""
    values = [value for name, value in scope["headers"] if name == _HEADER]
    return parse(values[0].decode("latin-1").strip()) if len(values) == 1 else None


def _attributes(scope: Scope, route: str, status: int) -> dict[str, Value]:
    """By the semantic conventions; of the query nothing: a key of a start may be anybody's name."""
    attributes: dict[str, Value] = {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": status,
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if status >= 500:
        attributes["error.type"] = str(status)
    if client := scope.get("client"):
        attributes["client.address"] = client[0]
    if server := scope.get("server"):
        attributes["server.address"] = server[0]
        if server[1] is not None:
            attributes["server.port"] = server[1]
    for name, value in scope["headers"]:
        if name == b"user-agent":
            attributes["user_agent.original"] = value.decode("latin-1")[:200]
    return attributes


def _started(message: Message) -> str:
    """The execution that an answer tells of."""
    for name, value in message.get("headers", ()):
        if name == b"location" and value.startswith(_LOCATION):
            return unquote(value.removeprefix(_LOCATION).decode("latin-1"))
    return ""
