"""Laws of the export: spans arrive whole, the loop never waits for them, and what is lost is counted."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
from pydantic import SecretStr

from app.adapters.tracing import CLOSE_S, OtlpTracing, endpoint_of
from app.domain.trace import Span, TraceContext
from app.metrics import TRACE_SPANS
from config.tracing import TracingSettings
from tests.helpers.processes import until
from tests.helpers.tracing import Collector, collector

# Run by another interpreter: what a process without traces has imported once every role could begin.
PROBE = """
import asyncio, sys
from app import wiring
from app.roles import coordinator, gateway, queues, worker
from app.adapters.tasks.types import http_call, sink_kafka, sink_sql, source_sql
from config.settings import Settings

async def main():
    roles = frozenset({"api-gateway", "coordinator", "worker"})
    async with wiring._tracing(Settings(), roles) as tracing:
        assert tracing is None
    found = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "google"))]
    assert "app.adapters.tracing" not in sys.modules and not found, found
    async with wiring._tracing(Settings(tracing={"endpoint": "http://127.0.0.1:9"}), roles) as tracing:
        assert tracing is not None and "opentelemetry.sdk" in sys.modules

asyncio.run(main())
print("well")
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Collector]:
    with collector() as found:
        yield found


@pytest.fixture
def site(running: Collector) -> Collector:
    running.spans.clear()
    running.headers.clear()
    running.status = 200
    return running


def span(number: int = 1, *, sampled: bool = True, parent_id: str | None = None, error: str | None = None) -> Span:
    return Span(
        context=TraceContext("ab" * 16, f"{number:016x}", sampled),
        parent_id=parent_id,
        name="task a",
        kind="client",
        start_ns=1_763_689_000_000_000_001,
        end_ns=1_763_689_000_000_000_009,
        attributes={"text": "t", "whole": 7, "real": 0.5, "flag": True},
        error=error,
    )


def tracing(site: Collector, **settings: object) -> OtlpTracing:
    made = TracingSettings.model_validate({"endpoint": site.url, "flush_interval_ms": 20, **settings})
    return OtlpTracing(made, frozenset({"coordinator"}))


def counted() -> dict[str, float]:
    return {name: TRACE_SPANS.labels(name)._value.get() for name in ("exported", "failed", "dropped")}


def since(before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in counted().items()}


def test_a_span_arrives_as_it_was(site: Collector) -> None:
    before = counted()
    exported = tracing(site, service_name="plant", headers=SecretStr("api-key=a%20b"))
    exported.ended(span(1, parent_id="cd" * 8, error="it broke"))
    exported.ended(span(2))
    exported.ended(span(3, sampled=False))
    exported.close()
    first, second = site.spans
    assert first[:7] == (
        "ab" * 16, f"{1:016x}", "cd" * 8, "task a", "client", 1_763_689_000_000_000_001, 1_763_689_000_000_000_009,
    )  # fmt: skip
    assert first.attributes == {"text": "t", "whole": 7, "real": 0.5, "flag": True}
    assert (first.error, second.error, second.parent_id) == ("it broke", None, "")
    assert (first.resource["service.name"], first.resource["telemetry.sdk.name"]) == ("plant", "opentelemetry")
    assert site.headers[0]["api-key"] == "a b"
    assert since(before) == {"exported": 2, "failed": 0, "dropped": 0}


def test_what_does_not_fit_into_the_queue_is_dropped_and_counted(site: Collector) -> None:
    before = counted()
    site.answers.clear()
    exported = tracing(site, queue_spans=10, batch_spans=5)
    for number in range(1, 101):
        exported.ended(span(number))
    site.answers.set()
    exported.close()
    done = since(before)
    assert done["dropped"] == 90
    assert done["exported"] == len(site.spans) == 10
    assert [int(one.span_id, 16) for one in site.spans] == list(range(1, 11))


def test_a_collector_that_refuses_is_said_once_and_again_when_it_is_back(
    site: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    before, site.status = counted(), 400

    def refused(number: int) -> bool:
        return since(before)["failed"] == number

    exported = tracing(site)
    with caplog.at_level("INFO", "app.adapters.tracing"):
        for number in (1, 2):
            exported.ended(span(number))
            until(partial(refused, number), "the span is refused")
        site.status = 200
        exported.ended(span(3))
        until(lambda: site.spans, "the span arrives")
        exported.close()
    said = [record.action for record in caplog.records]  # type: ignore[attr-defined]
    assert said == ["trace_export_failed", "trace_export_recovered"]
    assert since(before) == {"exported": 1, "failed": 2, "dropped": 0}


def test_a_collector_that_hangs_does_not_hold_up_the_end(site: Collector) -> None:
    before = counted()
    site.answers.clear()
    try:
        exported = tracing(site, batch_spans=1)
        for number in (1, 2, 3):
            exported.ended(span(number))
        began_s = time.monotonic()
        exported.close()
        assert time.monotonic() - began_s < CLOSE_S + 10
        assert since(before)["dropped"] == 3
    finally:
        site.answers.set()


def test_the_path_of_otlp_is_added_where_there_is_none() -> None:
    assert [endpoint_of(url) for url in ("http://c:4318", "http://c:4318/", "https://c/otlp/v1/traces")] == [
        "http://c:4318/v1/traces", "http://c:4318/v1/traces", "https://c/otlp/v1/traces",
    ]  # fmt: skip


def test_without_an_endpoint_the_sdk_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
