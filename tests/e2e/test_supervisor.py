"""Laws of the supervisor, with real processes on free ports."""

import signal
from collections.abc import Iterator

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text

from app.supervisor_run import ROLES
from tests.helpers.processes import Started, answered, get, started, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def up() -> Iterator[Started]:
    with started("up") as running:
        yield running


def _urls(running: Started) -> tuple[str, str]:
    return running.said(r"Health\s+(\S+)/health")[1], running.said(r"Metrics\s+(\S+)/metrics")[1]


def _samples(url: str, **labels: str) -> dict[str, float]:
    answer = get(f"{url}/metrics")
    assert answer is not None
    return {
        sample.name: sample.value
        for family in text(answer.text)
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    }


def test_one_health_and_one_exposition_answer_for_every_role(up):
    health, metrics = _urls(up)
    body = answered(f"{health}/health", 200)
    assert body["status"] == "ok"
    assert body["children"].keys() == set(ROLES)
    assert {"producer: joined", "kafka"} <= body["checks"].keys()
    for role in ROLES:
        found = _samples(metrics, role=role)
        assert found["process_resident_memory_bytes"] > 0
        assert found["supervisor_child_up"] == 1
    assert _samples(metrics, role="producer", topic="device.telemetry")["kafka_messages_sent_total"] == 7


def test_the_merged_exposition_is_valid_openmetrics_too(up):
    health, metrics = _urls(up)
    answered(f"{health}/health/ready", 200)
    answer = get(f"{metrics}/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert answer is not None
    families = {family.name: family for family in openmetrics(answer.text)}
    roles = {sample.labels["role"] for sample in families["process_cpu_seconds"].samples}
    assert roles == {*ROLES, "supervisor"}
    assert all("role" in sample.labels for family in families.values() for sample in family.samples)


def test_each_port_speaks_of_its_own_matter(up):
    health, metrics = _urls(up)
    for url in (f"{health}/metrics", f"{metrics}/health"):
        answer = get(url)
        assert answer is not None
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_killed_child_is_started_again(up):
    health, metrics = _urls(up)
    answered(f"{health}/health/ready", 200)
    killed = up.children()["worker"]
    killed.kill()
    body = answered(f"{health}/health", 200, lambda body: body["children"]["worker"]["restarts"] == 1)
    assert body["children"]["worker"]["pid"] != killed.pid
    assert _samples(metrics, role="worker")["supervisor_child_restarts_total"] == 1
    assert "killed by SIGKILL" in up.output


def test_a_frozen_child_shows_as_down_and_hangs_nothing(up):
    health, metrics = _urls(up)
    answered(f"{health}/health/ready", 200)
    frozen = up.children()["worker"]
    frozen.suspend()
    body = answered(f"{health}/health", 503)
    assert body["children"]["worker"]["status"] == "down"
    assert body["children"]["producer"]["status"] == "ok"
    assert "process_cpu_seconds_total" not in _samples(metrics, role="worker")
    frozen.resume()
    answered(f"{health}/health", 200)


def test_a_child_that_stands_still_is_killed_and_started_again():
    with started("up", "impatient") as running:
        health, _ = _urls(running)
        answered(f"{health}/health/ready", 200)
        stopped = running.children()["worker"]
        stopped.suspend()
        body = answered(f"{health}/health", 200, lambda body: body["children"]["worker"]["restarts"] == 1)
        assert body["children"]["worker"]["pid"] != stopped.pid
        assert "it stands still for 1." in running.output


def test_a_child_that_no_longer_answers_is_replaced():
    with started("up", "block_loop") as running:
        health, _ = _urls(running)
        answered(f"{health}/health", 503, lambda body: body["children"]["producer"]["restarts"] >= 1)
        assert "no answer for" in running.output


def test_no_child_outlives_a_killed_supervisor(up):
    health, _ = _urls(up)
    answered(f"{health}/health/ready", 200)
    children = list(up.children().values())
    assert len(children) == len(ROLES)
    up.signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_children_stop_in_order_and_the_ledger_balances(up):
    health, _ = _urls(up)
    answered(f"{health}/health/ready", 200)
    children = list(up.children().values())
    up.signal(signal.SIGINT)
    assert up.ended() == 0
    stops = [line.split()[0] for line in up.lines if line.endswith(" stops")]
    assert stops == ["producer", "worker", "coordinator", "api-gateway"]
    assert "Ledger balanced: 10 generated, 10 acknowledged, 0 in flight" in up.output
    assert not any(child.is_running() for child in children)
    assert "WARNING" not in up.output


def test_a_killed_producer_leaves_what_it_had_in_flight_as_unknown(up):
    health, metrics = _urls(up)
    answered(f"{health}/health/ready", 200)
    assert _samples(metrics, role="producer", outcome="acknowledged")["telemetry_ledger_records_total"] == 7
    up.children()["producer"].kill()
    answered(f"{health}/health", 200, lambda body: body["children"]["producer"]["restarts"] == 1)
    up.signal(signal.SIGTERM)
    assert up.ended() == 0
    assert "20 generated, 17 acknowledged, 0 in flight, 3 unknown after a crash" in up.output
    assert "INCOMPLETE since a process was killed" in up.output


def test_the_second_interrupt_ends_everything_at_once():
    with started("up", "ignore_stop") as running:
        health, _ = _urls(running)
        answered(f"{health}/health/ready", 200)
        children = list(running.children().values())
        running.signal(signal.SIGINT)
        until(lambda: answered(f"{health}/health", 503)["status"] == "stopping", "the stop has begun")
        running.signal(signal.SIGINT)
        assert running.ended(15) == 130  # an orderly stop may take 30 s
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []


def test_a_child_that_cannot_run_stops_everything_with_its_own_message():
    with started("up", "hopeless") as running:
        assert running.ended() == 3
        assert "The disk is full." in running.output
        assert "Traceback" not in running.output


def test_a_crashing_child_is_tried_again_with_growing_pauses():
    with started("up", "crash") as running:
        health, _ = _urls(running)
        answered(f"{health}/health", 503, lambda body: body["children"]["producer"]["restarts"] >= 3)
        pauses = [float(line.split(" in ")[1].split()[0]) for line in running.lines if "it starts again in" in line]
        assert pauses[:3] == [0.02, 0.04, 0.08]


def test_config_is_what_the_children_have_in_force():
    with started("up", "ignore_stop") as running:  # its producer has another deadline than the supervisor
        health, _ = _urls(running)
        answered(f"{health}/health/ready", 200)
        supervisor = running.children()["worker"].environ()["HEADRACE_SUPERVISOR_URL"]
        assert answered(f"{supervisor}/config", 200)["settings"]["health"]["stop_deadline_s"] == 0.5
