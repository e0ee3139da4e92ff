"""Each example workflow runs to its end on the real engine, with the real task types, and does what it says."""

import asyncio
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from app.adapters.clock import SystemClock
from app.adapters.topics_admin import ensure_topics
from app.definition_wire import Definition, registration, version_of
from app.definitions.text import read_text
from app.domain.workflow.commands import RetryExecution, Signal
from app.domain.workflow.events import ApprovalRequested, ChildStarted, TaskFailed
from app.domain.workflow.state import Execution
from app.http.health import HealthRegistry
from app.roles.context import Context
from app.roles.coordinator import run_coordinator
from config.kafka import KafkaSettings
from config.settings import Settings
from config.topics import (
    DEVICE_COMMANDS,
    DEVICE_DEADLETTER,
    DEVICE_ROLLUPS,
    DEVICE_SIGNALS,
    TELEMETRY_TOPICS,
    WORKFLOW_STATE,
    WORKFLOW_TOPICS,
)
from tests.helpers.engine import Book, book, started
from tests.helpers.kafka import read_topic, until
from tests.unit.workflow.definitions.test_examples import FILES

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]


def definition(path: Path) -> Definition:
    """An example without its schedules: what a test finds must not depend on the hour."""
    document = dict(read_text(path.read_bytes()).data)
    if "triggers" in document:
        document["triggers"] = [one for one in document["triggers"] if "schedule" not in one]
    return Definition(path.stem, version_of(document), document)


DEFINITIONS = {path.stem: definition(path) for path in FILES}
DEVICE = "press-0001"


@dataclass
class Site:
    """What the examples touch: files, a database, and somebody who listens over HTTP."""

    broker: str
    folder: Path
    heard: list[Any] = field(default_factory=list)
    url: str = ""

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def database(self) -> Path:
        return self.folder / "plant.sqlite"

    def lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.files / name).read_text().splitlines()]

    def rows(self, query: str) -> list[Any]:
        with sqlite3.connect(self.database) as connection:
            return connection.execute(query).fetchall()

    def settings(self) -> Settings:
        return Settings(
            kafka={"bootstrap_servers": self.broker, "session_timeout_ms": 6_000},
            tables={"directory": str(self.folder / "tables")},
            producer={"flush_interval_ms": 1},
            tasks={
                "files_directory": str(self.files),
                "sqlite_paths": [str(self.database)],
                "payload_directory": str(self.folder / "payloads"),
                "secrets_directory": str(self.folder / "secrets"),
                "allow_private_addresses": True,
            },
        )


def _served(site: Site) -> ThreadingHTTPServer:
    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            site.heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer({})

        def do_GET(self) -> None:
            device = parse_qs(urlsplit(self.path).query)["device"][0]
            self._answer({"device": device, "limits": {"low": 10, "high": 90}})

        def _answer(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Listener)


@pytest.fixture(scope="module")
def site(module_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    topics = (*TELEMETRY_TOPICS, *WORKFLOW_TOPICS, WORKFLOW_STATE)
    asyncio.run(ensure_topics(module_broker, topics, KafkaSettings(partitions=2)))
    made = Site(module_broker, tmp_path_factory.mktemp("site"))
    made.files.mkdir()
    with sqlite3.connect(made.database) as connection:
        connection.execute("create table readings (device_id text, at integer, temperature real)")
        rows = [(DEVICE, 1, 80.0), (DEVICE, 2, 95.5), (DEVICE, 3, 91.0), ("press-0002", 1, 99.0)]
        connection.executemany("insert into readings values (?, ?, ?)", rows)
    server = _served(made)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    secrets = made.folder / "secrets"
    secrets.mkdir()
    (secrets / "plant_db").write_text(f"sqlite:///{made.database}")
    (secrets / "alert_url").write_text(f"{made.url}/alert")
    (secrets / "registry_url").write_text(f"{made.url}/devices")
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


async def register(broker: str) -> None:
    """As `headrace workflows apply` does it."""
    async with AIOKafkaProducer(bootstrap_servers=broker, acks="all") as producer:
        for one in DEFINITIONS.values():
            for record in registration(one, time.time_ns() // 1_000_000):
                await producer.send_and_wait(record.topic, record.value, record.key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(site: Site) -> AsyncIterator[Book]:
    """The whole role coordinator, with the examples registered."""
    health, stop, chosen = HealthRegistry(frozenset(), "1"), asyncio.Event(), site.settings()
    context = Context(chosen, lambda: chosen, health, stop, SystemClock())
    async with book(site.broker) as opened:
        await register(site.broker)
        running = asyncio.create_task(run_coordinator(context))
        await until(lambda: running.done() or health.ready().ok, "the coordinator is ready")
        yield opened
        stop.set()
        await running


async def begin(log: Book, name: str, given: dict[str, Any]) -> str:
    one = str(uuid.uuid4())
    await log.tell(started(name, one, given, version=DEFINITIONS[name].version))
    return one


async def run(log: Book, name: str, **given: Any) -> Execution:
    return await log.ended(await begin(log, name, given))


async def succeeded(log: Book, name: str, **given: Any) -> Execution:
    state = await run(log, name, **given)
    assert state.status == "succeeded", (state.failed_task, state.error)
    return state


async def send(broker: str, topic: str, *values: dict[str, Any]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(topic, orjson.dumps(value), DEVICE.encode())


def rollup(start: int, **fields: Any) -> dict[str, Any]:
    return {
        "device_id": DEVICE,
        "metric": "temperature",
        "window_start": start,
        "window_ms": 10_000,
        "revision": 0,
        "is_final": True,
        **fields,
    }


async def test_a_signal_becomes_a_report_of_the_device_s_last_minutes(log: Book, site: Site) -> None:
    now_ms = time.time_ns() // 1_000_000 // 10_000 * 10_000
    rollups = [rollup(now_ms - at * 10_000, low=80.0 + at, high=90.0 + at, mean=85.0) for at in (3, 2, 1)]
    await send(site.broker, DEVICE_ROLLUPS.name, *rollups)
    signal = {"signal_id": "s1", "rule": "hot", "severity": "critical", "at": now_ms, "state": "raised"}
    await succeeded(log, "demo-signal-report", device_id=DEVICE, metric="temperature", **signal)
    [report] = [report for report in site.lines("demo/reports.jsonl") if report["signal_id"] == "s1"]
    summary = {"metric": "temperature", "windows": 3, "lowest": 81.0, "highest": 93.0, "average": 85.0}
    wanted = {"signal_id": "s1", "device_id": DEVICE, "rule": "hot", "severity": "critical", "at": now_ms}
    assert report == {**wanted, "looked_at": 3, "metrics": [summary]}


async def test_a_signal_on_the_topic_starts_the_report(log: Book, site: Site) -> None:
    signal = {"signal_id": "live", "rule": "hot", "severity": "warning", "at": 1, "state": "raised"}
    one = {**signal, "device_id": "press-0007", "metric": None}
    await send(site.broker, DEVICE_SIGNALS.name, {**one, "state": "cleared"}, one)
    reports = site.files / "demo" / "reports.jsonl"
    wanted = "the report of the signal"
    await until(lambda: reports.exists() and '"live"' in reports.read_text(), wanted)
    found = [report for report in site.lines("demo/reports.jsonl") if report["signal_id"] == "live"]
    assert [(report["device_id"], report["looked_at"]) for report in found] == [("press-0007", 0)]


async def test_the_demonstration_fails_once_says_what_to_do_and_succeeds_after_it(log: Book, site: Site) -> None:
    state = await run(log, "demo-needs-retry")
    assert (state.status, state.failed_task) == ("failed", "calibrate")
    assert state.error is not None
    assert f"headrace executions retry {state.execution_id}" in state.error.message
    await log.tell(RetryExecution(execution_id=state.execution_id, command_id="again"))
    state = await log.ended(state.execution_id, runs=2)
    assert state.status == "succeeded"
    assert site.lines("demo/calibrations.jsonl") == [{"machine": DEVICE, "limit": 90.0, "calibrated": True}]


async def test_an_overheated_press_is_told_of_and_kept(log: Book, site: Site) -> None:
    await succeeded(log, "press-overheat", device_id=DEVICE)
    assert {"device": DEVICE, "count": 2} in site.heard
    assert site.rows("select device_id, at, temperature from incidents order by at") == [
        (DEVICE, 2, 95.5),
        (DEVICE, 3, 91.0),
    ]


async def test_a_press_that_cannot_be_looked_at_is_written_down_before_the_end(log: Book, site: Site) -> None:
    one = await begin(log, "press-overheat", {})
    state = await log.ended(one)
    assert (state.status, state.reason) == ("failed", "")
    [failure] = site.lines("failures/press-overheat.jsonl")
    assert failure["task"] == "readings"


async def test_a_shift_is_summed_by_line(log: Book, site: Site) -> None:
    (site.files / "shift.csv").write_text("line,made,scrap\na,10,1\nb,5,0\na,20,2\nb,7,50\n")
    await succeeded(log, "shift-report", file="shift.csv")
    [file] = (site.files / "reports" / "shift").glob("**/*.parquet")
    assert pq.read_table(file).to_pylist() == [
        {"line": "a", "parts": 30, "scrap": 3, "orders": 2},
        {"line": "b", "parts": 5, "scrap": 0, "orders": 1},
    ]


@pytest.mark.parametrize("allowed", [True, False])
async def test_maintenance_waits_for_leave(log: Book, site: Site, allowed: bool) -> None:
    one = await begin(log, "maintenance-approval", {"machine": DEVICE, "cool_down_s": 0.1})
    await log.seen(one, lambda events: any(isinstance(event, ApprovalRequested) for event in events), "it asks")
    answer = {"allowed": allowed, "by": "ada"}
    await log.tell(Signal(execution_id=one, command_id="c", name="maintenance", payload=answer))
    state = await log.ended(one)
    assert state.status == "succeeded"
    orders = site.lines("maintenance/orders.jsonl")
    mine = [order for order in orders if order["order"] == f"work order {one}"]
    assert mine == ([{"machine": DEVICE, "allowed_by": "ada", "order": f"work order {one}"}] if allowed else [])


async def test_every_device_of_a_fleet_gets_its_order_from_a_sub_workflow(log: Book, site: Site) -> None:
    devices = [f"pump-{at:04}" for at in range(7)]
    state = await succeeded(log, "fleet-calibration", devices=devices, interval_ms=500, at=1)
    assert state.result == [{"device_id": device, "place": at} for at, device in enumerate(devices)]
    children = [event for event in log.histories[state.execution_id] if isinstance(event, ChildStarted)]
    assert len({child.child_id for child in children}) == len(devices)
    records = await read_topic(site.broker, DEVICE_COMMANDS.name)
    told = [orjson.loads(record.value) for some in records.values() for record in some]
    assert sorted(one["target"] for one in told) == devices
    assert {(one["command"], one["scope"], one["interval_ms"]) for one in told} == {("set_interval", "device", 500)}


async def test_dead_letters_of_the_last_hour_are_counted_kept_and_told_of(log: Book, site: Site) -> None:
    letters = [{"stage": "transform", "reason": reason} for reason in ("malformed", "malformed", "unknown")]
    await send(site.broker, DEVICE_DEADLETTER.name, *letters)
    await succeeded(log, "letter-audit")
    assert site.rows("select stage, reason, letters from letters order by reason") == [
        ("transform", "malformed", 2),
        ("transform", "unknown", 1),
    ]
    assert {"stage": "transform", "reason": "malformed", "letters": 2} in site.heard


async def test_a_line_through_the_rollups_says_where_a_device_is_heading(log: Book, site: Site) -> None:
    now_ms = time.time_ns() // 1_000_000 // 10_000 * 10_000
    rollups = [rollup(now_ms - at * 10_000, metric="vibration", mean=10.0 - at) for at in range(9, 0, -1)]
    await send(site.broker, DEVICE_ROLLUPS.name, *rollups)
    state = await succeeded(log, "drift-forecast", device_id=DEVICE, metric="vibration")
    assert not [event for event in log.histories[state.execution_id] if isinstance(event, TaskFailed)]
    [file] = (site.files / "forecasts").glob("**/*.json")
    [forecast] = json.loads(file.read_text())
    assert forecast["slope"] == pytest.approx(1 / 10_000)
    assert (forecast["device_id"], forecast["rising"], forecast["limit"]) == (DEVICE, True, 90)
