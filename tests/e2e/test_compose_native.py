"""Laws of docker-compose.yml in motion: each service's own command, environment and health check, run natively."""

import asyncio
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.adapters.topics_admin import wait_for_broker
from tests.helpers import compose
from tests.helpers.databases import PASSWORD, DatabaseAbsent, postgresql
from tests.helpers.native import Kafka, Ports, Service
from tests.helpers.processes import get, until

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]

EVERY_ROLE = {"process_resident_memory_bytes", "process_cpu_seconds_total", "config_info", "asyncio_tasks"}
OF_A_ROLE = {
    "producer": {"kafka_messages_sent_total", "device_data_generated_total", "telemetry_ledger_records_total"},
    "worker": {"rollups_emitted_total", "sink_records_total", "stream_lag_records", "telemetry_duplicates_total"},
    "coordinator": {"workflow_executions_active", "workflow_task_retries_total"},
    "api-gateway": {"http_requests_total", "http_request_duration_seconds_count"},
}


class Stack:
    """All services of the file that can run here, started in the order of their dependencies."""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.ports = Ports()
        self.definitions = compose.services(environ)
        self.services: dict[str, Service] = {}
        self.outcomes: dict[str, tuple[int, float]] = {}

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.ports['kafka']}"

    def url(self, service: str, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[f'{service} {port}']}"

    def start_kafka(self) -> None:
        port, host_port, controller = self.ports["kafka"], self.ports["kafka host"], self.ports["kafka controller"]
        replaced = {
            "kafka:9092": f"127.0.0.1:{port}",
            "://:9092": f"://127.0.0.1:{port}",
            "://:29092": f"://127.0.0.1:{host_port}",
            "127.0.0.1:29092": f"127.0.0.1:{host_port}",
            "kafka:9093": f"127.0.0.1:{controller}",
            "://:9093": f"://127.0.0.1:{controller}",
            "/var/lib/kafka/data": str(self.folder / "kafka" / "data"),
        }
        kafka = self._keep(Kafka(self.definitions["kafka"], self.folder / "kafka", replaced))
        kafka.start()
        # The image's own check is a Java tool that this machine has no jar of; ours asks at the same address.
        address = kafka.here(kafka.definition["healthcheck"]["test"][-1])
        asyncio.run(wait_for_broker(address, 60.0))
        asyncio.run(wait_for_broker(f"127.0.0.1:{host_port}", 10.0))  # where programs of the host find it

    def start_ours(self, name: str, **replaced: str) -> None:
        """Start a service of our image; `start_kafka` comes first, as `depends_on` has it."""
        ports = {port: self.ports[f"{name} {port}"] for port in ("8080", "8081", "9095")}
        replaced = {"kafka:9092": self.bootstrap, "0.0.0.0": "127.0.0.1", **ports, **replaced}
        self._keep(Service(name, self.definitions[name], self.folder / name, replaced)).start()

    def start_prometheus(self) -> None:
        """Start Prometheus on the file of the repository, with each target where it is here."""
        document = yaml.safe_load(compose.PROMETHEUS.read_text("utf-8"))
        for job in document["scrape_configs"]:
            for found in job.pop("dns_sd_configs", []):  # no name server knows our processes
                running = [f"{name}:{found['port']}" for name in found["names"] if name in self.services]
                job["static_configs"] = [{"targets": running}]
            for group in job["static_configs"]:
                group["targets"] = [self._target(target) for target in group["targets"]]
        folder = self.folder / "prometheus"
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
        replaced = {
            "/etc/prometheus/": f"{folder}/",
            "=/prometheus": f"={folder}/data",
            "0.0.0.0:9090": f"127.0.0.1:{self.ports['prometheus 9090']}",
            "127.0.0.1:9090": f"127.0.0.1:{self.ports['prometheus 9090']}",
        }
        self._keep(Service("prometheus", self.definitions["prometheus"], folder, replaced)).start()

    def stop(self) -> None:
        """Stop what still runs, dependents first."""
        for name in reversed(list(self.services)):
            if name not in self.outcomes:
                self.outcomes[name] = self.services[name].stop()

    def kill(self) -> None:
        for service in self.services.values():
            service.kill()

    def _keep(self, service: Service) -> Service:
        self.services[service.name] = service
        return service

    def _target(self, target: str) -> str:
        name, port = target.split(":")
        service = "prometheus" if name == "localhost" else name
        return f"127.0.0.1:{self.ports[f'{service} {port}']}"


def roles() -> list[str]:
    return [name for name, service in compose.ours().items() if "profiles" not in service]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give the plain `docker compose up`, healthy, and with Prometheus where it is installed."""
    running = Stack(tmp_path_factory.mktemp("compose"))
    with ExitStack() as ending:
        ending.callback(running.kill)
        running.start_kafka()
        for name in roles():
            running.start_ours(name)
        if shutil.which("prometheus"):
            running.start_prometheus()
        for name in roles():
            running.services[name].wait_healthy()
        yield running


def samples(stack: Stack, name: str) -> dict[str, float]:
    """The sums over labels of what a role exposes."""
    answer = get(f"{stack.url(name, '9095')}/metrics")
    assert answer is not None
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


@pytest.mark.parametrize("name", roles())
def test_a_probe_of_a_healthy_service_says_so(stack: Stack, name: str) -> None:
    done = stack.services[name].probe()
    assert (done.returncode, done.stdout) == (0, "200 ok\n")


def test_records_flow_from_the_fleet_to_rollups_sink_and_api(stack: Stack) -> None:
    until(lambda: samples(stack, "worker").get("rollups_emitted_total", 0) > 1000, "rollups")
    found = until(lambda: _items(get(f"{stack.url('api-gateway', '8080')}/api/v1/rollups")), "rollups in the API")
    assert {"device_id", "metric", "window_start"} <= set(found[0])
    assert until(lambda: _items(get(f"{stack.url('api-gateway', '8080')}/api/v1/devices")), "devices in the API")
    until(lambda: samples(stack, "worker").get("sink_records_total", 0) > 1000, "rows in the sink")
    with closing(sqlite3.connect(stack.folder / "worker" / ".headrace" / "headrace.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rollups = next(name for name in tables if "rollup" in name)
        # The counter counts every row that was written, a revision of one as well.
        until(lambda: database.execute(f"SELECT count(*) FROM {rollups}").fetchone()[0] > 1000, "rollups in the sink")


def _items(answer: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = answer.json()["items"] if answer is not None and answer.status_code == 200 else []
    return items


@pytest.mark.parametrize("name", roles())
def test_every_role_exposes_its_metrics(stack: Stack, name: str) -> None:
    assert get(f"{stack.url('api-gateway', '8080')}/health") is not None
    until(lambda: (EVERY_ROLE | OF_A_ROLE[name]) <= set(samples(stack, name)), f"metrics of {name}")


@pytest.mark.parametrize("name", roles())
def test_a_role_keeps_within_its_limit_of_memory(stack: Stack, name: str) -> None:
    limit = compose.size_bytes(stack.definitions[name]["deploy"]["resources"]["limits"]["memory"])
    assert stack.services[name].memory_bytes() < 0.8 * limit


@pytest.mark.parametrize("name", roles())
def test_a_role_without_a_volume_writes_nothing(stack: Stack, name: str) -> None:
    written = {path.name for path in stack.services[name].folder.iterdir()}
    assert written == ({".headrace"} if stack.definitions[name].get("volumes") else set())


def test_prometheus_finds_every_role_up(stack: Stack) -> None:
    if "prometheus" not in stack.services:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    prometheus = stack.services["prometheus"]
    if shutil.which("wget"):
        prometheus.wait_healthy()
    url = stack.url("prometheus", "9090")

    def all_up() -> dict[str, str] | None:
        answer = get(f"{url}/api/v1/targets?state=active")
        active = answer.json()["data"]["activeTargets"] if answer is not None and answer.status_code == 200 else []
        found = {target["labels"].get("role", target["labels"]["job"]): target["health"] for target in active}
        return found if found and set(found.values()) == {"up"} else None

    assert set(until(all_up, "targets are up")) == {*roles(), "prometheus"}
    query = f"{url}/api/v1/query?query=count%20by%20(role)%20(config_info)"
    counted = until(lambda: _result(get(query), len(roles())), "metrics of every role in Prometheus")
    assert {one["metric"]["role"] for one in counted} == set(roles())


def _result(answer: Any, count: int) -> list[dict[str, Any]] | None:
    found = answer.json()["data"]["result"] if answer is not None and answer.status_code == 200 else []
    return found if len(found) == count else None


def test_a_healthy_start_logs_json_and_no_warning(stack: Stack) -> None:
    for name in roles():
        lines = [json.loads(line) for line in stack.services[name].log.splitlines()]
        assert {line["environment"] for line in lines} == {"compose"}
        assert [line for line in lines if line["level"] in {"ERROR", "CRITICAL"}] == []
        # Of libraries a warning may be about the machine: a timer that was late, a heartbeat in a rebalance.
        assert [line for line in lines if line["level"] == "WARNING" and _is_our_own(line["logger"])] == []


def _is_our_own(logger: str) -> bool:
    return logger.partition(".")[0] in {"app", "agents", "tables", "config"}


def test_the_profile_brings_rows_to_postgresql(stack: Stack) -> None:
    """A second worker node takes partitions from the first and feeds the database of the profile."""
    with ExitStack() as ending:
        try:
            server = ending.enter_context(postgresql())
        except DatabaseAbsent as error:
            pytest.skip(str(error))
        stack.definitions = compose.services({"POSTGRES_PASSWORD": PASSWORD})
        database = Service(
            "postgres", stack.definitions["postgres"], stack.folder / "postgres", {"5432": str(server.port)}
        )
        if shutil.which("pg_isready"):
            assert database.probe().returncode == 0
        stack.start_ours("worker-postgres", **{"postgres:5432/headrace": f"127.0.0.1:{server.port}/postgres"})
        ending.callback(stack.services["worker-postgres"].kill)
        stack.services["worker-postgres"].wait_healthy()
        stack.services["worker"].wait_healthy()
        until(lambda: asyncio.run(_rollups_in(server.url)) > 1000, "rollups in PostgreSQL")
        until(
            lambda: (
                sorted(_partitions(stack, "worker") + _partitions(stack, "worker-postgres")) == list("0123")
                and len(_partitions(stack, "worker")) == 2
            ),
            "each worker node has two of the four partitions",
        )
        code, took_s = stack.outcomes["worker-postgres"] = stack.services["worker-postgres"].stop()
        assert code == 0, stack.services["worker-postgres"].log[-4000:]
        assert took_s < 25
        until(lambda: len(_partitions(stack, "worker")) == 4, "the first worker has all partitions again")


async def _rollups_in(url: str) -> int:
    """Rows of the rollups' table; 0 while there is none."""
    database = await asyncpg.connect(url)
    try:
        name = await database.fetchval("SELECT tablename FROM pg_tables WHERE tablename LIKE '%rollup%'")
        return int(await database.fetchval(f"SELECT count(*) FROM {name}")) if name else 0
    finally:
        await database.close()


def _partitions(stack: Stack, name: str) -> list[str]:
    answer = get(f"{stack.url(name, '8081')}/health")
    assert answer is not None
    return re.findall(r"\d+", answer.json()["checks"]["transform"]["detail"])


def test_every_service_stops_in_order_within_its_grace(stack: Stack) -> None:
    stack.stop()
    assert {name: code for name, (code, _) in stack.outcomes.items() if name != "kafka"} == {
        name: 0 for name in stack.services if name != "kafka"
    }, {name: stack.services[name].log[-3000:] for name in roles()}
    assert stack.outcomes["kafka"][0] == 143, "a JVM says by which signal it was stopped"
    for name, (_, took_s) in stack.outcomes.items():
        assert took_s < 0.9 * compose.seconds(stack.definitions[name]["stop_grace_period"])
    assert get(f"{stack.url('api-gateway', '8080')}/health") is None
