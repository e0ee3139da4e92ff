"""Where spans go in tests: a list, or a collector that takes OTLP over HTTP and decodes it."""

import asyncio
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from app.domain.trace import Span


class Spans:
    """`app.ports.Tracing` that keeps everything."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self.sample_ratio = sample_ratio
        self.all: list[Span] = []

    def ended(self, span: Span) -> None:
        self.all.append(span)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.all if span.name == name]


class Received(NamedTuple):
    """A span as a collector sees it; ids in hexadecimal, "" for no parent; `error` is None without one."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    error: str | None
    resource: dict[str, Any]
    raw: str


class Collector:
    """What was received, in the order it came; it answers `status`, and nothing while `answers` is not set."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.asked = 0
        self.calls: list[dict[str, Any]] = []  # what the pretended service under /service was asked
        self.statuses: list[int] = []  # what that service answers first
        self.answers = threading.Event()
        self.answers.set()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        self.asked += 1
        body = await request.read()
        await asyncio.to_thread(self.answers.wait)
        if self.status == 200:
            self.headers.append(dict(request.headers))
            if request.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.spans += _decoded(body)
        return web.Response(
            status=self.status,
            body=ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )

    async def serve(self, request: web.Request) -> web.Response:
        """POST /service/…: a service that tasks call."""
        self.calls.append({"path": request.path_qs, "headers": dict(request.headers)})
        return web.json_response({"ok": True}, status=self.statuses.pop(0) if self.statuses else 200)

    def of(self, trace_id: str) -> list[Received]:
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def collector() -> Iterator[Collector]:
    """A running collector, in a thread of its own."""
    found = Collector()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        runner = asyncio.run_coroutine_threadsafe(_serve(found), loop).result(30)
        try:
            yield found
        finally:
            found.answers.set()
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _serve(found: Collector) -> web.AppRunner:
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    app.router.add_post("/service/{rest:.*}", found.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    return runner


def _decoded(body: bytes) -> Iterator[Received]:
    request = ExportTraceServiceRequest.FromString(body)
    for of_resource in request.resource_spans:
        resource = _plain(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Received(
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _plain(span.attributes),
                    span.status.message if span.status.code == 2 else None,
                    resource,
                    str(span),
                )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
