"""What tests do with a real broker: read whole topics, wait for conditions, freeze or kill a broker of their own."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.embedded import EmbeddedKafka
from app.ports import OutRecord
from tests.helpers.broker import embedded_settings

T0_MS = 1_763_689_000_000
DEADLINE_S = 30.0
T = TypeVar("T")


async def until(found: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first answer that is true, asked again and again while the loop goes on."""
    ends_s = time.monotonic() + deadline_s
    never = asyncio.Event()
    while not (answer := found()):
        if time.monotonic() > ends_s:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        try:
            async with asyncio.timeout(0.01):
                await never.wait()
        except TimeoutError:
            continue
    return answer


async def read_topic(bootstrap: str, topic: str, **settings: Any) -> dict[int, list[Any]]:
    """Every record of a topic by partition, up to its end of now."""
    options = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "fetch_max_wait_ms": 20, **settings}
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, **options) as consumer, asyncio.timeout(DEADLINE_S):
        partitions = [TopicPartition(topic, number) for number in sorted(await _partitions(consumer, topic))]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: dict[int, list[Any]] = {one.partition: [] for one in partitions}
        for one in partitions:
            while await consumer.position(one) < ends[one]:
                for records in (await consumer.getmany(one, timeout_ms=50)).values():
                    found[one.partition] += records
        return found


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    await consumer._client._wait_on_metadata(topic)
    return set(consumer.partitions_for_topic(topic) or ())


async def values_of(bootstrap: str, topic: str, **settings: Any) -> list[bytes]:
    """The values of a topic, partition after partition."""
    found = await read_topic(bootstrap, topic, **settings)
    return [record.value for partition in sorted(found) for record in found[partition]]


def records(
    topic: str, values: Sequence[bytes], partition: int | None = 0, key: bytes | None = None
) -> list[OutRecord]:
    return [OutRecord(topic, key, value, T0_MS, (), partition) for value in values]


@contextmanager
def own_kafka(folder: Path, **overrides: str) -> Iterator[EmbeddedKafka]:
    """A broker that the test may freeze, kill and start again, on the same port and data."""
    kafka = EmbeddedKafka(embedded_settings(folder), overrides=overrides)
    asyncio.run(kafka.start())
    try:
        yield kafka
    finally:
        for pid in kafka.pids.values():
            os.kill(pid, signal.SIGCONT)
        asyncio.run(kafka.stop())


def stopped(pid: int) -> None:
    """Return when every thread of a process that was sent SIGSTOP stands: until then it may still answer."""
    ends_s = time.monotonic() + DEADLINE_S
    while not all(_state(thread) in "TZ" for thread in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < ends_s, f"{pid} does not stop"
        os.sched_yield()


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def frozen(kafka: EmbeddedKafka) -> Iterator[None]:
    """The broker keeps its connections and answers nobody."""
    (pid,) = kafka.pids.values()
    os.kill(pid, signal.SIGSTOP)
    try:
        stopped(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
