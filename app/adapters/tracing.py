"""Exports spans by OTLP over HTTP with OpenTelemetry's SDK; the one module that imports it.

Import it only where `tracing.endpoint` is set. Spans come with their ids and times, from events: the SDK's tracer,
which makes both itself, would cost 13 µs a span on the event loop where a finished span costs 2.
"""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

import app
from app import metrics
from app.domain.trace import Kind, Span
from config.tracing import TracingSettings

log = logging.getLogger(__name__)

PATH: Final = "/v1/traces"
CLOSE_S: Final = 3.0
_KINDS: Final[Mapping[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_OK: Final = Status(StatusCode.UNSET)


class _Counted(SpanExporter):
    """Another exporter, counted; says once when the collector does not answer, and once when it does again."""

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self.taken = 0
        self.is_closed = False  # what is still under way has been counted
        self._exporter = exporter
        self._where = where
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """In the thread of the batch processor."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            log.exception("spans could not be exported", extra={"action": "trace_export_failed"})
            result = SpanExportResult.FAILURE
        finally:
            self.taken += len(spans)
        if self.is_closed:
            return result
        is_ok = result is SpanExportResult.SUCCESS
        metrics.TRACE_SPANS.labels("exported" if is_ok else "failed").inc(len(spans))
        if is_ok and self._failing:
            log.info("spans reach %s again", self._where, extra={"action": "trace_export_recovered"})
        elif not is_ok and not self._failing:
            log.warning(
                "spans do not reach %s; trace_spans_total counts what is lost",
                self._where,
                extra={"action": "trace_export_failed"},
            )
        self._failing = not is_ok
        return result

    def shutdown(self) -> None:
        """Break off what is being tried."""
        self._exporter.shutdown()


class OtlpTracing:
    """Implements `app.ports.Tracing`; `ended` is for one thread, that of the event loop."""

    def __init__(self, settings: TracingSettings, roles: frozenset[str]) -> None:
        assert settings.endpoint is not None, "without an endpoint there is nothing to export to"
        # Each failed try would be a line; the exporter's wrapper says what there is to say.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self.sample_ratio = settings.sample_ratio
        self._limit = settings.queue_spans
        self._given = 0
        where = endpoint_of(settings.endpoint)
        self._exporter = _Counted(
            OTLPSpanExporter(endpoint=where, headers=_headers(settings), timeout=settings.export_timeout_ms / 1000),
            _shown(where),
        )
        self._processor = BatchSpanProcessor(
            self._exporter,
            # One more than is ever let in: nothing is dropped uncounted.
            max_queue_size=settings.queue_spans + 1,
            schedule_delay_millis=settings.flush_interval_ms,
            max_export_batch_size=min(settings.batch_spans, settings.queue_spans),
        )
        self._resource = Resource.create(
            {
                "service.name": settings.service_name,
                "service.version": app.__version__,
                "service.instance.id": str(uuid.uuid4()),
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
                "headrace.roles": sorted(roles),
            }
        )
        self._scope = InstrumentationScope("headrace", app.__version__)

    def ended(self, span: Span) -> None:
        """Take a span that has ended; it is dropped when too many wait."""
        if not span.context.is_sampled:
            return
        if self._given - self._exporter.taken >= self._limit:
            metrics.TRACE_SPANS.labels("dropped").inc()
            return
        self._given += 1
        self._processor.on_end(self._finished(span))

    def _finished(self, span: Span) -> ReadableSpan:
        trace_id = int(span.context.trace_id, 16)
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote=False, trace_flags=_SAMPLED)
        return ReadableSpan(
            name=span.name,
            context=SpanContext(trace_id, int(span.context.span_id, 16), is_remote=False, trace_flags=_SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS[span.kind],
            status=_OK if span.error is None else Status(StatusCode.ERROR, span.error or None),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )

    def close(self) -> None:
        """Export what waits, for at most `CLOSE_S`; blocks. What is left then is counted as dropped."""
        closing = threading.Thread(target=self._processor.shutdown, name="tracing close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(CLOSE_S / 3)
        self._exporter.is_closed = True
        left = self._given - self._exporter.taken
        if left > 0:
            metrics.TRACE_SPANS.labels("dropped").inc(left)


def endpoint_of(url: str) -> str:
    """The URL that spans are posted to: with OTLP's own path where it has none."""
    return url.rstrip("/") + PATH if urlsplit(url).path in {"", "/"} else url


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _headers(settings: TracingSettings) -> dict[str, str] | None:
    """As OTEL_EXPORTER_OTLP_HEADERS is written, which counts where the settings have none."""
    if settings.headers is None:
        return None
    pairs = (pair.partition("=") for pair in settings.headers.get_secret_value().split(",") if pair.strip())
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}
