"""Laws of the workflow engine as its users meet it: a running system of two processes, the API and the command line."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.helpers.cli import Answer, Headrace, said
from tests.helpers.processes import until

pytestmark = pytest.mark.broker

FLOW: dict[str, Any] = {
    "id": "double",
    "tasks": {
        "twice": {"type": "transform.cel", "with": {"from": "input.rows", "map": "{'n': row.n * 2}"}},
        "ask": {"type": "approval", "needs": ["twice"], "when": "has(input.ask)"},
        "total": {
            "type": "transform.aggregate",
            "needs": ["twice", "ask"],
            "with": {"from": "twice", "aggregates": {"sum": "sum(n)"}},
        },
    },
}
BROKEN: dict[str, Any] = {
    "id": "broken",
    "tasks": {
        "good": {"type": "transform.cel", "with": {"from": "[1]", "map": "row"}},
        "bad": {"type": "transform.cel", "needs": ["good"], "with": {"from": "input.rows", "map": "row.nothing + 1"}},
    },
}


class System:
    """Its address, and how it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def start(self, flow: str, given: Any, **options: Any) -> dict[str, Any]:
        answer = self.http.post(f"/api/v1/workflows/{flow}/execute", params=options, json={"input": given})
        assert answer.is_success, answer.text
        return dict(answer.json())

    def shown(self, execution_id: str, status: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.http.get(f"/api/v1/executions/{execution_id}").json()
            return found if found.get("status") == status else None

        return until(look, f"{execution_id} is {status}", 60)


@pytest.fixture(scope="module")
def system(module_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    headrace = Headrace(tmp_path_factory.mktemp("system"), module_broker)
    with _running(headrace) as found:
        for document in (FLOW, BROKEN):
            answer = found.http.post("/api/v1/workflows", json=document)
            assert answer.status_code == 201, answer.text
        yield found


@contextmanager
def _running(headrace: Headrace) -> Iterator[System]:
    free = ["--set", "health.port=0", "--set", "metrics.port=0", "--set", "kafka.partitions=4"]
    port = _free_port()
    with (
        headrace.running("worker", "--roles", "coordinator", *free) as engine,
        headrace.running("worker", "--roles", "api-gateway", *free, "--set", f"http.port={port}") as api,
    ):
        found = System(f"http://127.0.0.1:{port}")

        def ready() -> bool:
            assert api.process.poll() is None, api.output
            assert engine.process.poll() is None, engine.output
            try:
                return found.http.get("/health/ready").is_success
            except httpx.HTTPError:
                return False

        try:
            until(ready, "the API is ready", 90)
            yield found
        finally:
            found.http.close()


def _free_port() -> int:
    import socket  # noqa: PLC0415 - used here alone

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_an_execution_is_started_waited_for_and_read(system: System) -> None:
    done = system.start("double", {"rows": [{"n": 1}, {"n": 2}]}, wait=30)
    assert (done["status"], done["error"]) == ("succeeded", None)
    assert done["result"] == [{"sum": 6}], done["result"]
    history = system.http.get(f"/api/v1/executions/{done['execution_id']}/history").json()["events"]
    assert [event["seq"] for event in history] == list(range(len(history)))
    assert (history[0]["type"], history[-1]["type"]) == ("execution_started", "execution_ended")
    with system.http.stream("GET", f"/api/v1/executions/{done['execution_id']}/stream") as stream:
        told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert told == history


def test_orders_take_effect(system: System) -> None:
    waiting = system.start("double", {"rows": [], "ask": True})["execution_id"]
    shown = until(lambda: _waits(system, waiting), "it waits for the approval", 60)
    assert shown["status"] == "running"
    assert system.http.post(f"/api/v1/executions/{waiting}/pause").status_code == 202
    system.shown(waiting, "paused")
    assert system.http.post(f"/api/v1/executions/{waiting}/resume").status_code == 202
    system.shown(waiting, "running")
    assert system.http.post(f"/api/v1/executions/{waiting}/signal/ask", json={"ok": True}).status_code == 202
    system.shown(waiting, "succeeded")
    other = system.start("double", {"rows": [], "ask": True})["execution_id"]
    assert system.http.post(f"/api/v1/executions/{other}/cancel", json={"reason": "no"}).status_code == 202
    assert system.shown(other, "cancelled")["reason"] == "no"
    assert system.http.post(f"/api/v1/executions/{other}/cancel").status_code == 409


def _waits(system: System, execution_id: str) -> dict[str, Any] | None:
    found: dict[str, Any] = system.http.get(f"/api/v1/executions/{execution_id}").json()
    return found if any(task["status"] == "waiting" for task in found.get("tasks", ())) else None


def test_the_command_line_starts_watches_and_retries(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    def headrace(*arguments: str) -> Answer:
        return said(capsys, *arguments, "--url", system.url)

    ok = headrace("trigger", "double", "-i", '{"rows": [{"n": 4}]}', "--wait")
    assert (ok.code, "succeeded" in ok.out) == (0, True), ok
    bad = headrace("trigger", "broken", "-i", '{"rows": [{"n": 4}]}', "--wait", "--json")
    assert (bad.code, bad.json["status"], bad.json["failed_task"]) == (1, "failed", "bad"), bad
    execution_id = bad.json["execution_id"]
    assert headrace("executions", "retry", execution_id).out == "retry sent to 1 execution\n"
    until(lambda: system.shown(execution_id, "failed")["attempts"] > bad.json["attempts"], "it was tried again", 60)
    watched = headrace("executions", "watch", execution_id)
    assert (watched.code, "execution_retried" in watched.out) == (1, True)


def test_an_idempotent_start_happens_once(system: System) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    path = "/api/v1/workflows/double/execute?wait=30"
    answers = [system.http.post(path, json={"rows": [{"n": 0}]}, headers=key).json() for _ in range(3)]
    assert len({answer["execution_id"] for answer in answers}) == 1
    assert [answer["input"] for answer in answers] == [{"rows": [{"n": 0}]}] * 3
    other = system.http.post(path, json={"rows": [{"n": 1}]}, headers=key)
    assert (other.status_code, "Idempotency-Key" in other.text) == (422, True), other.text


def test_a_batch_runs_whole(system: System) -> None:
    items = [{"input": {"rows": [{"n": number}]}} for number in range(200)]
    answer = system.http.post("/api/v1/workflows/double/execute:batch", json=items).json()
    assert answer["accepted"] == 200
    for item in answer["items"]:
        system.shown(item["execution_id"], "succeeded")
