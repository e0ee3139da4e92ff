"""Laws of Kafka triggers on a real broker: every signal one execution id, through kills and new definitions."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.topics_admin import ensure_topics
from app.definition_wire import Definition, registration, version_of
from app.domain.workflow.events import ExecutionEnded
from app.domain.workflow.placement import partition_of
from app.ports import OutRecord
from app.roles.context import Context
from app.roles.coordinator import run_engine
from app.roles.triggers import run_triggers
from app.workflow_wire import decode_command
from config.kafka import KafkaSettings
from config.topics import (
    DEVICE_SIGNALS,
    WORKFLOW_COMMANDS,
    WORKFLOW_DEADLETTER,
    WORKFLOW_DEFINITIONS,
    WORKFLOW_STATE,
    WORKFLOW_TOPICS,
    TopicSpec,
)
from tests.helpers.engine import Book, ObedientExecutor, book
from tests.helpers.kafka import read_topic, until
from tests.helpers.trigger_worker import following, trigger_context

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PARTITIONS = 4
LONG_AGO_MS = 1
# Of today: what is older than the retention of its topic the broker may delete before it is read.
NOW_MS = int(time.time() * 1000)
TASKS = {"only": {"type": "transform.cel", "with": {"value": "1"}}}


@pytest.fixture
async def topics(module_broker: str) -> str:
    """The service's own topics; the bootstrap server."""
    specs = [DEVICE_SIGNALS, WORKFLOW_STATE, *WORKFLOW_TOPICS]
    await ensure_topics(module_broker, specs, KafkaSettings(partitions=PARTITIONS))
    return module_broker


async def send(bootstrap: str, records: Iterable[OutRecord]) -> None:
    async with BatchProducer(ProducerLimits(bootstrap)) as producer:
        await producer.publish(list(records))


async def register(bootstrap: str, workflow: str, *triggers: dict[str, Any], **more: Any) -> None:
    document = {"id": workflow, "triggers": list(triggers), "tasks": TASKS, **more}
    await send(bootstrap, registration(Definition(workflow, version_of(document), document), LONG_AGO_MS))


def signals(numbers: Iterable[int], topic: str = DEVICE_SIGNALS.name, **more: Any) -> list[OutRecord]:
    return [
        OutRecord(
            topic, f"press-{n % 7}".encode(), orjson.dumps({"n": n, "device_id": f"press-{n % 7}", **more}), NOW_MS
        )
        for n in numbers
    ]


async def started(bootstrap: str, workflow: str) -> list[tuple[str, Any]]:
    """Id and input of every start on `workflow.commands`, repeats included."""
    found = []
    for partition, records in (await read_topic(bootstrap, WORKFLOW_COMMANDS.name)).items():
        for record in records:
            if orjson.loads(record.value)["type"] != "start":
                continue
            start: Any = decode_command(record.value)
            assert partition == partition_of(start.execution_id, PARTITIONS)
            if start.workflow == workflow:
                found.append((start.execution_id, start.input))
    return found


async def until_started(bootstrap: str, workflow: str, numbers: Iterable[int]) -> list[tuple[str, Any]]:
    wanted = set(numbers)
    ends_s = time.monotonic() + 100
    while True:
        found = await started(bootstrap, workflow)
        missing = wanted - {given["n"] for _, given in found}
        if not missing:
            return found
        assert time.monotonic() < ends_s, f"{len(missing)} signals started nothing: {sorted(missing)[:20]}"


@asynccontextmanager
async def worker(bootstrap: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.helpers.trigger_worker", bootstrap)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def triggering(bootstrap: str) -> AsyncIterator[Context]:
    """The triggers in this process."""
    context = trigger_context(bootstrap)
    async with following(context) as feed, asyncio.TaskGroup() as group:
        group.create_task(run_triggers(context, feed))
        await until(lambda: context.health.ready().ok and "triggers" in str(context.health.ready()), "it has joined")
        yield context
        context.stop.set()
    assert "triggers" not in context.health.watched


def ended(log: Book, workflow: str) -> dict[str, str]:
    """The status of the executions of a workflow that have ended, by id."""
    lasts = {name: events[-1] for name, events in log.histories.items() if name.startswith(f"{workflow}:") and events}
    return {name: last.status for name, last in lasts.items() if isinstance(last, ExecutionEnded)}


async def test_with_the_engine_every_signal_is_one_execution_and_a_debounced_key_only_one(
    topics: str, tmp_path: Path
) -> None:
    listens = {"topic": DEVICE_SIGNALS.name, "when": "kind == 'e'"}
    await register(topics, "each", listens)
    await register(topics, "first", {**listens, "key": "device_id", "debounce_s": 300})
    context = trigger_context(topics, folder=tmp_path)
    async with following(context) as feed, book(topics) as log, asyncio.TaskGroup() as group:
        group.create_task(run_engine(context, feed, ObedientExecutor()))
        group.create_task(run_triggers(context, feed))
        sent = signals(range(140), kind="e")
        await send(topics, [*sent, *sent[:20]])
        await until(lambda: len(ended(log, "each")) == 160, "every record has had its execution", 90)
        await until(lambda: len(ended(log, "first")) == 7, "one of each device", 90)
        context.stop.set()
    assert {status for name in ("each", "first") for status in ended(log, name).values()} == {"succeeded"}
    assert len(ended(log, "first")) == 7


async def test_every_signal_gives_one_execution_id_also_after_kills(topics: str) -> None:
    await register(topics, "killed", {"topic": DEVICE_SIGNALS.name, "when": "kind == 'kill'"})
    async with worker(topics) as first:
        await send(topics, signals(range(500), kind="kill"))
        await until_started(topics, "killed", range(100))
        await send(topics, signals(range(500, 1_500), kind="kill"))
        first.kill()
    async with worker(topics) as second:
        await send(topics, signals(range(1_500, 2_000), kind="kill"))
        await until_started(topics, "killed", range(2_000))
        second.terminate()
        assert await second.wait() == 0
    async with worker(topics):
        await send(topics, signals([2_000], kind="kill"))
        found = await until_started(topics, "killed", range(2_001))
    ids: dict[int, set[str]] = {}
    for execution_id, given in found:
        ids.setdefault(given["n"], set()).add(execution_id)
    assert all(len(each) == 1 for each in ids.values()), "a redelivered record starts under the id it had"
    assert len(set().union(*ids.values())) == 2_001, "no two records share an id"


async def test_the_watchdog_follows_the_triggers(topics: str) -> None:
    await register(topics, "watched", {"topic": DEVICE_SIGNALS.name, "when": "kind == 'watched'"})
    async with triggering(topics) as context:
        before = context.health.watched["triggers"]().processed
        await send(topics, signals(range(10), kind="watched"))
        await until(lambda: context.health.watched["triggers"]().processed >= before + 10, "they are processed", 60)
        await until(lambda: context.health.watched["triggers"]().lag == 0, "none waits", 60)


async def test_a_definition_that_comes_later_brings_its_topic_and_workflows_share_one(topics: str) -> None:
    async with triggering(topics):
        await ensure_topics(topics, [TopicSpec("plant.orders", "key", "none")], KafkaSettings(partitions=2))
        await register(topics, "orders-a", {"topic": "plant.orders"})
        await send(topics, signals(range(5), "plant.orders"))
        await until_started(topics, "orders-a", range(5))
        await register(topics, "orders-b", {"topic": "plant.orders"}, {"topic": "plant.returns"})
        await ensure_topics(topics, [TopicSpec("plant.returns", "key", "none")], KafkaSettings(partitions=2))
        await send(topics, signals(range(5, 10), "plant.returns"))
        await until_started(topics, "orders-b", range(5, 10))
        await send(topics, signals(range(10, 15), "plant.orders"))
        a = {given["n"]: one for one, given in await until_started(topics, "orders-a", range(10, 15))}
        b = {given["n"]: one for one, given in await until_started(topics, "orders-b", range(10, 15))}
    for n in range(10, 15):
        assert a[n].removeprefix("orders-a") == b[n].removeprefix("orders-b")


async def test_poison_is_a_dead_letter_and_what_is_debounced_lives_together(topics: str) -> None:
    await register(
        topics, "bounced", {"topic": DEVICE_SIGNALS.name, "when": "kind == 'b'", "key": "device_id", "debounce_s": 30}
    )
    poison = [OutRecord(DEVICE_SIGNALS.name, b"x", b"{oops", NOW_MS)]
    async with triggering(topics):
        await send(topics, [*poison, *signals(range(70), kind="b")])
        found = await until_started(topics, "bounced", range(70))
    places = {given["device_id"]: set() for _, given in found}  # type: ignore[var-annotated]
    for execution_id, given in found:
        places[given["device_id"]].add(partition_of(execution_id, PARTITIONS))
    assert all(len(each) == 1 for each in places.values())
    letters = [
        orjson.loads(each.value)
        for run in (await read_topic(topics, WORKFLOW_DEADLETTER.name)).values()
        for each in run
    ]
    assert [(each["kind"], each["reason"]) for each in letters] == [("trigger", "malformed_json")]


async def test_the_schedules_of_a_definition_are_put_and_taken_back(topics: str) -> None:
    async def commands() -> list[tuple[str, str]]:
        read = await read_topic(topics, WORKFLOW_COMMANDS.name)
        bodies = (orjson.loads(record.value) for run in read.values() for record in run)
        return [(each["type"], each["entity_id"]) for each in bodies if each["type"].startswith("schedule")]

    async def until_told(command: tuple[str, str]) -> None:
        async with asyncio.timeout(30):
            while command not in await commands():
                pass

    await register(topics, "nightly", {"schedule": "0 3 * * *", "timezone": "Europe/Berlin"}, {"schedule": "@hourly"})
    async with triggering(topics):
        for n in (1, 2):
            await until_told(("schedule_put", f"schedule:nightly.{n}"))
        summary = {"id": "nightly.2", "workflow": "nightly", "source": "definition"}
        await send(topics, [OutRecord(WORKFLOW_DEFINITIONS.name, b"schedule:nightly.2", orjson.dumps(summary), NOW_MS)])
        await register(topics, "nightly", {"schedule": "0 3 * * *", "timezone": "Europe/Berlin"})
        await until_told(("schedule_delete", "schedule:nightly.2"))
