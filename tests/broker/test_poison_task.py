"""The law of a task that ends every process it runs in: it fails with its cause, and the engine outlives it."""

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.helpers.cli import Headrace
from tests.helpers.processes import until

pytestmark = pytest.mark.broker

LIVES = 6  # of engines; the third is to be the last


def test_a_task_that_ends_the_engine_runs_apart_and_fails_with_its_cause(module_broker: str, tmp_path: Path) -> None:
    headrace = Headrace(tmp_path, module_broker)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    flags = [
        "health.port=0",
        "metrics.port=0",
        "kafka.partitions=2",
        "kafka.session_timeout_ms=3000",
        'tasks.python_modules=["tests.helpers.poison"]',
    ]
    common = [word for flag in flags for word in ("--set", flag)]
    with ExitStack() as stack:
        http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30))
        stack.enter_context(headrace.running("worker", "--roles", "api-gateway", *common, "--set", f"http.port={port}"))
        names: dict[str, str] = {}

        def statuses() -> dict[str, str]:
            return {name: http.get(f"/api/v1/executions/{names[name]}").json().get("status", "") for name in names}

        lives = 0
        while not names or statuses() != {"stay": "succeeded", "leave": "failed"}:
            assert lives < LIVES, statuses()
            with headrace.running("worker", "--roles", "coordinator", *common) as engine:
                lives += 1
                if not names:
                    until(lambda: _is_ready(http), "the API is ready", 90)
                    names = {name: _started(http, name) for name in ("leave", "stay")}
                until(
                    lambda: engine.process.poll() is not None or statuses() == {"stay": "succeeded", "leave": "failed"},
                    "the engine ends or the executions do",
                    90,
                )
        shown = http.get(f"/api/v1/executions/{names['leave']}").json()
    assert lives > 1, "an engine has ended of it"
    assert "ProcessDied" in str(shown["error"]), shown["error"]
    assert "exit code 3" in str(shown["error"]), shown["error"]


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/health/ready").is_success
    except httpx.HTTPError:
        return False


def _started(http: httpx.Client, name: str) -> str:
    task = {"type": "transform.python", "with": {"function": f"tests.helpers.poison:{name}", "mode": "async"}}
    assert http.post("/api/v1/workflows", json={"id": name, "tasks": {"only": task}}).is_success
    answer = http.post(f"/api/v1/workflows/{name}/execute", json={"input": {}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["execution_id"])
