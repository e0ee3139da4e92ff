"""Laws of records that come again, and of the limit that a signal brings, with the engine on a real broker."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.topics_admin import ensure_topics
from app.definition_wire import Definition, registration, version_of
from app.domain.workflow.events import ExecutionEnded
from app.ports import OutRecord
from app.roles.coordinator import run_engine
from app.roles.triggers import run_triggers
from config.kafka import KafkaSettings
from config.topics import DEVICE_SIGNALS, WORKFLOW_COMMANDS, WORKFLOW_STATE, WORKFLOW_TOPICS
from tests.helpers.engine import Book, ObedientExecutor, book
from tests.helpers.kafka import read_topic, until
from tests.helpers.trigger_worker import following, trigger_context

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PARTITIONS = 4
GROUP = "headrace-triggers"
NOW_MS = int(time.time() * 1000)


@pytest.fixture
async def topics(module_broker: str) -> str:
    """The service's own topics; the bootstrap server."""
    specs = [DEVICE_SIGNALS, WORKFLOW_STATE, *WORKFLOW_TOPICS]
    await ensure_topics(module_broker, specs, KafkaSettings(partitions=PARTITIONS))
    return module_broker


async def _send(bootstrap: str, records: Sequence[OutRecord]) -> None:
    async with BatchProducer(ProducerLimits(bootstrap)) as producer:
        await producer.publish(records)


async def _register(bootstrap: str, workflow: str, triggers: Sequence[dict[str, Any]], **params: Any) -> None:
    tasks = {"only": {"type": "transform.cel", "with": {"value": "1", **params}}}
    document = {"id": workflow, "triggers": list(triggers), "tasks": tasks}
    await _send(bootstrap, registration(Definition(workflow, version_of(document), document), 1))


def _signal(device: str, at_ms: int, **more: Any) -> OutRecord:
    return OutRecord(DEVICE_SIGNALS.name, device.encode(), orjson.dumps({"device_id": device, **more}), at_ms)


@asynccontextmanager
async def _running(bootstrap: str, folder: Path, executor: ObedientExecutor) -> AsyncIterator[Book]:
    context = trigger_context(bootstrap, folder=folder)
    async with following(context) as feed, book(bootstrap) as log, asyncio.TaskGroup() as group:
        group.create_task(run_engine(context, feed, executor))
        group.create_task(run_triggers(context, feed))
        yield log
        context.stop.set()


async def _read_again(bootstrap: str) -> None:
    """Put the group back to the begin of the topic, as when what it has committed is lost."""
    places = [TopicPartition(DEVICE_SIGNALS.name, number) for number in range(PARTITIONS)]
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=GROUP, enable_auto_commit=False)
    consumer.assign(places)
    await consumer.start()
    try:
        await consumer.commit(dict.fromkeys(places, 0))
    finally:
        await consumer.stop()


async def _starts(bootstrap: str, workflow: str) -> int:
    found = await read_topic(bootstrap, WORKFLOW_COMMANDS.name)
    bodies = (orjson.loads(record.value) for records in found.values() for record in records)
    return sum(each.get("workflow") == workflow for each in bodies)


async def _until_starts(bootstrap: str, workflow: str, count: int) -> None:
    async with asyncio.timeout(90):
        while await _starts(bootstrap, workflow) < count:
            pass


def _ended(log: Book, workflow: str) -> set[str]:
    return {
        name
        for name, events in log.histories.items()
        if name.startswith(f"{workflow}:") and events and isinstance(events[-1], ExecutionEnded)
    }


async def test_a_record_that_comes_again_after_its_window_starts_nothing_more(topics: str, tmp_path: Path) -> None:
    trigger = {"topic": DEVICE_SIGNALS.name, "when": "kind == 'd'", "key": "device_id", "debounce_s": 1}
    await _register(topics, "bounced", [trigger])
    devices = [f"press-{number}" for number in range(5)]
    # 0, 400, 800, 1,200 …: of each device the records 0, 3, 6 and 9 start, whenever they are read.
    records = [_signal(device, NOW_MS + 400 * step, kind="d") for step in range(10) for device in devices]
    async with _running(topics, tmp_path, ObedientExecutor()) as log:
        await _send(topics, records)
        await until(lambda: len(_ended(log, "bounced")) >= 20, "each has had its four", 90)
        await _until_starts(topics, "bounced", 50)
    first = _ended(log, "bounced")
    assert len(first) == 20
    await _read_again(topics)
    async with _running(topics, tmp_path, ObedientExecutor()) as log:
        await _until_starts(topics, "bounced", 100)
        await _send(topics, [_signal(device, NOW_MS + 60_000, kind="d") for device in devices])
        await until(lambda: len(_ended(log, "bounced") - first) >= 5, "what is new starts", 90)
    assert len(_ended(log, "bounced") - first) == 5, "and nothing else"


async def test_so_many_executions_of_a_key_run_at_once_as_the_signal_says(topics: str, tmp_path: Path) -> None:
    await _register(topics, "cool-down", [{"http": {}}], do="hang")
    executor = ObedientExecutor()
    own = {"workflow": "cool-down", "input": {}, "debounce_s": 0, "concurrency": 2}
    devices = [f"pump-{number}" for number in range(3)]
    async with _running(topics, tmp_path, executor) as log:
        await _send(topics, [_signal(d, NOW_MS, trigger=own | {"key": d}) for _ in range(5) for d in devices])
        for ended in range(0, 15, 3):
            due = min(2 * len(devices), 15 - ended)
            await _until_count(lambda: sum(_running_of(log, executor).values()), due, "places are taken")
            assert max(_running_of(log, executor).values()) <= 2
            for device in devices:
                executor.finish(next(one for one in _hanging(executor) if _key(log, one) == device))
            await _until_count(lambda: len(_ended(log, "cool-down")), ended + 3, "have ended")
    assert len(_ended(log, "cool-down")) == 15


async def _until_count(count: Callable[[], int], wanted: int, what: str) -> None:
    await until(lambda: count() == wanted, f"{wanted} {what}", 90)


def _hanging(executor: ObedientExecutor) -> list[str]:
    return sorted({place[0] for place in executor._running})


def _key(log: Book, execution_id: str) -> str | None:
    state = log.state(execution_id)
    return None if state is None else state.key


def _running_of(log: Book, executor: ObedientExecutor) -> Counter[str]:
    """How many run of each key, as far as the log says so."""
    return Counter(key for one in _hanging(executor) if (key := _key(log, one)) is not None)
