"""Laws of the whole: `headrace up` on a bare folder, killed in every part, still tells the truth."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.processes import Started, get, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SETTINGS = {
    "http.port": 0,
    "health.port": 0,
    "metrics.port": 0,
    "embedded.port": 0,
    "embedded.heap_mib": 384,
    "device.count": 200,
    "device.sample_interval_ms": 200,
    "device.fault_interval_ms": 60_000,
    "rollup.grace_ms": 1000,
    "rollup.idle_timeout_ms": 1000,
    "supervisor.restart_backoff_ms": 100,
}


class Up(Started):
    """A running `headrace up` in its own folder."""

    @property
    def bootstrap(self) -> str:
        """Kafka's address, once it was told."""
        return self.said(r"Kafka\s+(\S+:\d+)")[1]

    def child(self, role: str) -> psutil.Process | None:
        """The process of a role, if it runs."""
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if role == "kafka" and "kafka.Kafka" in line:
                return process
            if "--roles" in line and line[line.index("--roles") + 1] == role:
                return process
        return None

    def runs(self, role: str, other_than: int | None = None) -> psutil.Process:
        """The process of a role, once it runs."""

        def look() -> psutil.Process | None:
            found = self.child(role)
            return found if found is not None and found.pid != other_than else None

        return until(look, f"{role} runs", 60)

    def total(self, name: str) -> float:
        """The sum of a metric over all roles."""
        answer = get(self.said(r"Metrics\s+(\S+)")[1])
        if answer is None:
            return 0.0
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in answer.text.splitlines() if re.match(rf"{name}[{{ ]", line)
        )


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = start(tmp_path)
    yield running
    end(running)


def start(folder: Path) -> Up:
    flags = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return Up(
        subprocess.Popen(
            [sys.executable, "-m", "app", "up", *flags],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )


def end(running: Up) -> None:
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        try:
            running.process.wait(60)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(running.pid).children(recursive=True):
                process.kill()
            running.process.kill()
            running.process.wait(10)
    running.close()


def healthy(running: Up) -> None:
    url = running.said(r"Health\s+(\S+)")[1] + "/ready"
    until(lambda: (answer := get(url)) is not None and answer.status_code == 200, f"ready: {url}", 120)


def rollups_are_recomputed(bootstrap: str, folder: Path) -> None:
    """`headrace check rollups` compares a fair number of windows and finds no difference."""
    result = subprocess.run(
        [sys.executable, "-m", "app", "check", "rollups", "--json", *_rollup_flags()],
        cwd=folder,
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": bootstrap, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["windows"] > 1000, found


def _rollup_flags() -> list[str]:
    return [word for key, value in SETTINGS.items() if key.startswith("rollup") for word in ("--set", f"{key}={value}")]


def test_ctrl_c_leaves_no_process_and_a_balanced_ledger(up):
    healthy(up)
    until(lambda: up.total("rollups_emitted_total") > 100, "rollups are emitted", 120)
    children = psutil.Process(up.pid).children(recursive=True)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0, up.output
    assert "Ledger balanced" in up.output
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    warnings = [line for line in up.lines if "WARNING" in line]
    # The demonstration that fails on purpose says so, once.
    assert [line for line in warnings if "demo-needs-retry" not in line] == [], up.output
    assert len(warnings) <= 1, warnings
    assert "Traceback" not in up.output, up.output


def test_one_workflow_succeeds_on_live_signals_and_the_one_that_fails_on_purpose_is_put_right(up, tmp_path):
    healthy(up)
    api = up.said(r"API and docs\s+(\S+)/docs")[1]
    execution_id = up.said(r"executions retry (demo-needs-retry-\w+)")[1]
    until(lambda: _read(f"{api}/api/v1/executions/{execution_id}").get("status") == "failed", "it has failed", 120)
    retried = subprocess.run(
        [sys.executable, "-m", "app", "executions", "retry", execution_id, "--url", api],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert retried.returncode == 0, retried.stdout + retried.stderr
    until(lambda: _read(f"{api}/api/v1/executions/{execution_id}").get("status") == "succeeded", "it is put right", 120)
    reports = f"{api}/api/v1/executions?workflow=demo-signal-report&status=succeeded"
    until(lambda: _read(reports).get("items"), "a signal has its report", 120)
    assert (tmp_path / ".headrace" / "files" / "demo" / "reports.jsonl").read_text()


def _read(url: str) -> dict[str, Any]:
    answer = get(url)
    return answer.json() if answer is not None and answer.status_code == 200 else {}


def test_rollups_survive_the_kill_of_every_process(up, tmp_path):
    """Kill -9 of worker, producer, gateway and broker in turn: no gap, no double count."""
    healthy(up)
    for role in ("worker", "producer", "api-gateway", "worker", "kafka"):
        victim = up.runs(role)
        victim.kill()
        up.runs(role, other_than=victim.pid)
        healthy(up)
    emitted = up.total("rollups_emitted_total")
    until(lambda: up.total("rollups_emitted_total") > emitted + 100, "rollups are emitted again", 120)
    rollups_are_recomputed(up.bootstrap, tmp_path)


def test_a_killed_supervisor_takes_everything_with_it_and_the_next_start_recovers(tmp_path):
    first = start(tmp_path)
    try:
        healthy(first)
        until(lambda: first.total("rollups_emitted_total") > 100, "rollups are emitted", 120)
        children = psutil.Process(first.pid).children(recursive=True)
        first.process.kill()
        until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), "all are gone")
    finally:
        end(first)
    second = start(tmp_path)
    try:
        healthy(second)
        until(lambda: second.total("rollups_emitted_total") > 100, "rollups are emitted", 120)
        rollups_are_recomputed(second.bootstrap, tmp_path)
    finally:
        end(second)
