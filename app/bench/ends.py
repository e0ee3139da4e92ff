"""The ends of executions as a reader of the histories sees them, and what they say of a fault.

A reader's own clock is what counts. The instants in the histories are those of the deciding engine, before its decision
was on the broker; and what a new owner sends for one that died bears the dead one's.
"""

import contextlib
import itertools
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.adapters.consumers import stop_consumer
from app.adapters.topic_reader import TopicReader
from app.bench.engine import Engine
from app.domain.workflow.events import ExecutionEnded, ExecutionStarted
from app.task_ends import Parts
from app.workflow_wire import decode_run
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_EVENTS

BIN_MS: Final = 20
BEFORE_MS: Final = 400
AFTER_MS: Final = 1_500
_POLL_MS: Final = 100
# Every event says its type; four of five records need not be decoded while the load runs on the same cores.
_ENDED: Final = b'"execution_ended"'


@dataclass(slots=True)
class Seen:
    """When a reader saw ends, in ms of the wall clock: by partition, ascending, and the first of each execution."""

    by_partition: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Ends:
    """What the histories say.

    `started` and `ended` are ids; `lives` from the API's acceptance to the end that a reader saw, ms. `sent_again` are
    ends that a new owner sent once more, not knowing that they were out; `changed` those that then said something else,
    which no end may; `failed` those that did not succeed.
    """

    lives: dict[str, tuple[int, int]] = field(default_factory=dict)
    sent_again: int = 0
    changed: int = 0
    failed: int = 0
    started: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)


@contextlib.asynccontextmanager
async def reading(bootstrap: str) -> AsyncIterator[Seen]:
    """What a reader sees while the block runs. A reader that breaks ends the block."""
    seen = Seen()
    name = WORKFLOW_EVENTS.name
    count = await TopicReader(KafkaSettings(bootstrap_servers=bootstrap)).partitions(name)
    parts = [TopicPartition(name, number) for number in range(count)]
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, fetch_max_wait_ms=_POLL_MS)
    await consumer.start()
    try:
        consumer.assign(parts)
        await consumer.seek_to_end(*parts)
        async with Parts() as group:
            task = group.create_task(_read(consumer, seen), name="reader of ends")
            try:
                yield seen
            finally:
                task.cancel()
    finally:
        await stop_consumer(consumer)


async def _read(consumer: AIOKafkaConsumer, seen: Seen) -> None:
    while True:
        with contextlib.suppress(KafkaError):  # a broker may be killed meanwhile: the next one is asked
            for part, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                now_ms = int(time.time() * 1000)
                for record in records:
                    if _ENDED in record.value:
                        run = decode_run(record.value)
                        if isinstance(run.events[-1], ExecutionEnded) and run.execution_id not in seen.ended:
                            seen.ended[run.execution_id] = now_ms
                            seen.by_partition.setdefault(part.partition, []).append(now_ms)


async def ends_of(engine: Engine, seen: Seen) -> Ends:
    """Read the histories whole, and put to each end when it was seen."""
    found = Ends()
    asked: dict[str, int] = {}
    ended: dict[str, ExecutionEnded] = {}
    async for _, run in engine.runs():
        for event in run.events:
            if isinstance(event, ExecutionStarted):
                asked.setdefault(run.execution_id, event.asked_at or event.at)
            elif isinstance(event, ExecutionEnded):
                if (first := ended.setdefault(run.execution_id, event)) is not event:
                    found.sent_again += first == event
                    found.changed += first != event
                    continue
                found.failed += event.status != "succeeded"
    found.started = set(asked)
    found.ended = ended.keys() & seen.ended.keys()
    found.lives = {one: (asked.get(one, seen.ended[one]), seen.ended[one]) for one in found.ended}
    return found


def gap_ms(seen: Seen, since_ms: float, until_ms: float) -> float:
    """The longest time without an end on one partition, between the last end before `since_ms` and `until_ms`.

    A partition on which nothing ends any more counts with the time until then. Raises `ValueError` where nothing ended.
    """
    longest = 0.0
    for instants in seen.by_partition.values():
        first = max(0, bisect_left(instants, since_ms) - 1)
        some: list[float] = [*instants[first : bisect_right(instants, until_ms)], until_ms]
        longest = max([longest, *(after - before for before, after in itertools.pairwise(some))])
    if not longest:
        raise ValueError("no end was seen on any partition")
    return longest


def in_hand_ms(ends: Ends, killed_ms: float) -> float:
    """Until the last execution that was under way at the kill has ended."""
    return max((ended - killed_ms for began, ended in ends.lives.values() if began < killed_ms <= ended), default=0.0)


def bins(ends: Ends, instants: Sequence[float]) -> list[float]:
    """Ends in each bin around a kill, the mean of all kills."""
    counts = [0] * ((BEFORE_MS + AFTER_MS) // BIN_MS)
    every = sorted(ended for _, ended in ends.lives.values())
    for instant in instants:
        start = instant - BEFORE_MS
        for ended in every[bisect_left(every, start) : bisect_left(every, instant + AFTER_MS)]:
            counts[int((ended - start) // BIN_MS)] += 1
    return [count / max(1, len(instants)) for count in counts]
