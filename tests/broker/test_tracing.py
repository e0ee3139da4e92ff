"""Laws of traces as their users meet them: a start is one trace, through Kafka and every process, to its calls."""

import asyncio
import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.broker import TopicFactory
from tests.helpers.cli import Headrace
from tests.helpers.databases import free_port
from tests.helpers.kafka import read_topic
from tests.helpers.processes import Started, until
from tests.helpers.tracing import Collector, Received, collector

pytestmark = pytest.mark.broker

TRACE = "a" * 32
ABOVE = f"00-{TRACE}-{'b' * 16}-01"
HOOK = "hook-hush-0815"
OUT = "plant.out"
INNER: dict[str, Any] = {
    "id": "inner",
    "tasks": {"one": {"type": "transform.cel", "with": {"from": "[1]", "map": "row"}}},
}


class System:
    """A gateway, a coordinator and a worker, with the collector they export to."""

    def __init__(self, bootstrap: str, folder: Path, site: Collector) -> None:
        self.bootstrap = bootstrap
        self.folder = folder
        self.site = site
        self.processes: list[Started] = []
        self.http = httpx.Client(trust_env=False, timeout=60)

    def flow(self, name: str) -> dict[str, Any]:
        """Every kind of call: a query, an HTTP call that fails once, a publish at a worker, another workflow."""
        rows = f"sqlite:///{self.folder}/plant.db"
        return {
            "id": name,
            "tasks": {
                "read": {"type": "source.sql", "with": {"url": rows, "query": "select * from t", "params": {}}},
                "worst": {"type": "transform.cel", "needs": ["read"], "with": {"filter": "row.t > 90"}},
                "call": {
                    "type": "sink.http",
                    "needs": ["worst"],
                    "with": {"url": f"{self.site.url}/service/${{secret:hook}}?room=7"},
                    "retry": {"attempts": 3, "backoff_s": 0.05},
                },
                "publish": {"type": "sink.kafka", "needs": ["worst"], "queue": "far", "with": {"topic": OUT}},
                "below": {"type": "workflow", "needs": ["call"], "with": {"id": "inner"}},
            },
        }

    def execute(self, flow: str, **headers: str) -> dict[str, Any]:
        answer = self.http.post(f"/api/v1/workflows/{flow}/execute", params={"wait": 30}, headers=headers, json={})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def output(self) -> str:
        return "\n".join(process.output for process in self.processes)


@pytest.fixture(scope="module")
def system(module_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    with sqlite3.connect(folder / "plant.db") as database:
        database.execute("create table t (device text, t integer)")
        database.execute("insert into t values ('a', 95), ('b', 20), ('c', 99)")
    database.close()
    TopicFactory(module_broker)(partitions=1, name=OUT)
    with collector() as site, pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        environment.setenv("HEADRACE_SECRET_HOOK", HOOK)
        found = System(module_broker, folder, site)
        stack.callback(found.http.close)
        _start(found, stack)
        for document in (INNER, found.flow("plant")):
            answer = found.http.post("/api/v1/workflows", json=document)
            assert answer.status_code == 201, answer.text
        yield found


def _start(found: System, stack: ExitStack) -> None:
    port = free_port()
    for role in ("coordinator", "worker", "api-gateway"):
        found.processes.append(stack.enter_context(_running(found, role, {"http.port": port})))
    found.http.base_url = httpx.URL(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        for process in found.processes:
            assert process.process.poll() is None, process.output
        try:
            return found.http.get("/health/ready").is_success
        except httpx.HTTPError:
            return False

    until(ready, "the API is ready", 90)


def _running(found: System, role: str, changed: dict[str, int]) -> AbstractContextManager[Started]:
    settings: dict[str, Any] = {
        "health.port": 0,
        "metrics.port": 0,
        "kafka.partitions": 2,
        "log.format": "json",
        "tasks.queues": '["far"]',
        "tasks.allow_private_addresses": "true",
        "tasks.sqlite_paths": f'["{found.folder}"]',
        "tracing.endpoint": found.site.url,
        "tracing.flush_interval_ms": 50,
        **changed,
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return Headrace(found.folder, found.bootstrap).running("worker", "--roles", role, *given)


def received(system: System, trace_id: str, count: int) -> list[Received]:
    """The spans of a trace, once there are so many."""
    until(lambda: len(system.site.of(trace_id)) >= count, f"{count} spans; {system.site.of(trace_id)}", 60)
    return system.site.of(trace_id)


def tree(spans: list[Received], parent_id: str) -> list[Any]:
    """(name, kind, failed, what is below) of each span below another, by name and start."""
    below = sorted((one for one in spans if one.parent_id == parent_id), key=lambda one: (one.name, one.start_ns))
    return [(one.name, one.kind, one.error is not None, tree(spans, one.span_id)) for one in below]


ROUTE = "POST /api/v1/workflows/{workflow_id}/execute"
EXPECTED = (
    ROUTE,
    "server",
    False,
    [
        (
            "workflow plant",
            "internal",
            False,
            [
                (
                    "task below",
                    "internal",
                    False,
                    [("workflow inner", "internal", False, [("task one", "internal", False, [])])],
                ),
                ("task call", "internal", True, [("POST", "client", True, [])]),
                ("task call", "internal", False, [("POST", "client", False, [])]),
                ("task publish", "internal", False, [(f"send {OUT}", "producer", False, [])]),
                ("task read", "internal", False, [("SELECT", "client", False, [])]),
                ("task worst", "internal", False, []),
            ],
        )
    ],
)


def test_a_start_is_one_trace_from_its_request_to_every_call(system: System) -> None:
    system.site.statuses = [503]
    done = system.execute("plant", traceparent=ABOVE)
    assert done["status"] == "succeeded", done
    spans = received(system, TRACE, 14)
    assert tree(spans, "b" * 16) == [EXPECTED]
    assert len(spans) == 14
    of = {one.span_id: one for one in spans}
    for one in spans:
        assert one.start_ns <= one.end_ns
        # Of a parent that another process timed by the millisecond, on the same clock.
        above = of.get(one.parent_id)
        assert above is None or above.start_ns <= one.start_ns + 1_000_000
    owners = {one.name: one.resource["process.pid"] for one in spans}
    coordinator, worker, gateway = (process.pid for process in system.processes)
    assert (owners["workflow plant"], owners[f"send {OUT}"], owners[ROUTE]) == (coordinator, worker, gateway)
    assert not [one for one in spans if HOOK in one.raw]
    (failed, tried) = (one for one in spans if one.name == "POST")
    assert failed.attributes["http.response.status_code"] == 503
    assert tried.attributes["url.full"] == f"{system.site.url}/[REDACTED]?[REDACTED]"
    _check_context_passed_on(system, spans)


def _check_context_passed_on(system: System, spans: list[Received]) -> None:
    called = [call["headers"]["traceparent"] for call in system.site.calls]
    assert called == [f"00-{TRACE}-{one.span_id}-01" for one in spans if one.name == "POST"]
    above = {one.name: f"00-{TRACE}-{one.span_id}-01" for one in spans}
    for topic, name in ((OUT, f"send {OUT}"), ("workflow.tasks.far", "task publish"), ("workflow.commands", ROUTE)):
        partitions = asyncio.run(read_topic(system.bootstrap, topic))
        records = [record for one in partitions.values() for record in one]
        found = {dict(record.headers).get("traceparent", b"").decode() for record in records}
        assert above[name] in found, topic


def test_a_start_that_nobody_traces_is_a_trace_whose_id_is_in_the_log(system: System) -> None:
    broken = {
        **INNER,
        "id": "broken",
        "tasks": {"bad": {"type": "transform.cel", "with": {"from": "[1]", "map": "row.a"}}},
    }
    assert system.http.post("/api/v1/workflows", json=broken).status_code == 201
    done = system.execute("broken")
    assert done["status"] == "failed", done

    def line() -> dict[str, Any] | None:
        lines = [
            json.loads(one) for one in system.output().splitlines() if done["execution_id"] in one and one[0] == "{"
        ]
        return next((one for one in lines if one.get("action") == "execution_failed"), None)

    logged = until(line, "the failure is logged", 30)
    spans = received(system, logged["trace_id"], 3)
    assert tree(spans, "") == [
        (ROUTE, "server", False, [("workflow broken", "internal", True, [("task bad", "internal", True, [])])])
    ]


def test_a_start_that_the_caller_does_not_record_is_not_recorded(system: System) -> None:
    unsampled = "c" * 32
    assert system.execute("inner", traceparent=f"00-{unsampled}-{'d' * 16}-00")["status"] == "succeeded"
    system.execute("inner", traceparent=f"00-{'e' * 32}-{'d' * 16}-01")
    received(system, "e" * 32, 3)
    assert system.site.of(unsampled) == []


def test_a_process_that_is_asked_to_stop_exports_what_waits(system: System) -> None:
    port = free_port()
    with _running(system, "api-gateway", {"http.port": port, "tracing.flush_interval_ms": 60_000}) as gateway:
        url = f"http://127.0.0.1:{port}/api/v1/workflows/unknown/execute"
        header = {"traceparent": f"00-{'f' * 32}-{'d' * 16}-01"}

        def asked() -> bool:
            assert gateway.process.poll() is None, gateway.output
            try:
                return system.http.post(url, headers=header).status_code == 404
            except httpx.HTTPError:
                return False

        until(asked, "the gateway answers", 60)
        assert system.site.of("f" * 32) == []
        gateway.signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0
    assert 404 in {one.attributes["http.response.status_code"] for one in system.site.of("f" * 32)}
