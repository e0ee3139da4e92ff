"""One partition's way through the batched producer: its queue, its batches under way, and who waits for them."""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from app import metrics
from app.adapters.producer_client import Client, ProducerLimits
from app.errors import PublishFailed
from app.ports import OutRecord

# What the record format may add to key, value and headers at most: lengths, deltas, attributes.
RECORD_OVERHEAD_BYTES: Final = 36
HEADER_OVERHEAD_BYTES: Final = 10
Delivered = Callable[[str, int, str | None], None]
"""Called once a batch with (topic, records, reason of failure or None)."""


@dataclass(slots=True, eq=False)
class Batch:
    """Records of one partition on their way; `first` is the lane's count of records before them."""

    records: list[OutRecord]
    first: int
    bytes: int
    holds_slot: bool = True
    settled: bool = False
    via: Client | None = None
    cut_at: float = field(default_factory=time.monotonic)

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same records in two batches, to find the one the broker refuses; the slot stays with the first."""
        middle = len(self.records) // 2
        front, back = self.records[:middle], self.records[middle:]
        front_bytes = sum(size_of(record) for record in front)
        return (
            Batch(front, self.first, front_bytes, self.holds_slot, cut_at=self.cut_at),
            Batch(back, self.first + middle, self.bytes - front_bytes, holds_slot=False, cut_at=self.cut_at),
        )


@dataclass(slots=True, eq=False)
class Waiter:
    """A `publish` that waits for the records `first` to `last` (exclusive) of a lane."""

    first: int
    last: int
    future: asyncio.Future[None]
    sealed: bool = False

    def abandon(self) -> None:
        """Nobody waits any more; a failure is counted all the same."""
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())


class Lane:
    """One partition's queue, cut into batches by one task."""

    __slots__ = (
        "appended",
        "batch_bytes",
        "broken",
        "bytes",
        "first_at",
        "flush_now",
        "foreign",
        "last_offset",
        "partition",
        "proven",
        "records",
        "sent",
        "settled",
        "task",
        "topic",
        "unbroken",
        "waiters",
        "wake",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.records: list[OutRecord] = []
        self.bytes = 0  # of `records`
        self.batch_bytes: int | None = None  # what the broker was found to take, when less than asked for
        self.appended = 0  # records ever queued
        self.settled = 0  # records acknowledged or failed, always a prefix
        self.foreign = 0  # records of others between ours
        self.sent: deque[Batch] = deque()
        self.waiters: list[Waiter] = []
        self.first_at = 0.0
        self.flush_now = False
        self.last_offset: int | None = None
        # The client that had a batch acknowledged here: only from then on the broker knows its numbering, and
        # refuses what comes behind a hole.
        self.proven: Client | None = None
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.unbroken = False  # nothing may follow a record that could not be sent
        self.broken = False  # that has happened

    def landed(self, base: int, count: int) -> None:
        """Note where a batch was appended; what lies between it and the one before it is not ours.

        `base` is -1 when nobody knows: with acks=0, or when the broker recognised a repeat too late.
        """
        if base < 0:
            return
        if self.last_offset is not None and base > self.last_offset + 1:
            self.foreign += base - self.last_offset - 1
        self.last_offset = base + count - 1

    def settle(self, batch: Batch, reason: str | None) -> None:
        """Move the settled prefix past `batch` and tell those who waited for it."""
        count = len(batch.records)
        self.sent.remove(batch)
        self.settled += count
        batch.settled = True
        still: list[Waiter] = []
        for waiter in self.waiters:
            touched = waiter.first < batch.first + count and (not waiter.sealed or batch.first < waiter.last)
            if reason is not None and touched and not waiter.future.done():
                waiter.future.set_exception(PublishFailed(reason, count, self.topic))
            elif waiter.sealed and self.settled >= waiter.last and not waiter.future.done():
                waiter.future.set_result(None)
            if not waiter.future.done():
                still.append(waiter)
        self.waiters = still
        self.wake.set()

    def waits_since(self) -> float | None:
        """When the oldest batch under way was cut, or the oldest record queued; None when nothing waits."""
        if self.sent:
            return self.sent[0].cut_at
        return self.first_at if self.records else None

    def split(self, batch: Batch) -> None:
        """Put the halves of `batch` in its place."""
        at = self.sent.index(batch)
        front, back = batch.halves()
        self.sent[at] = front
        self.sent.insert(at + 1, back)
        batch.settled = True  # in favour of its halves

    def seal(self, waiter: Waiter) -> None:
        """The last record of a `publish` is queued: it may be told once all are settled."""
        waiter.last = self.appended
        waiter.sealed = True
        if self.settled >= waiter.last and not waiter.future.done():
            waiter.future.set_result(None)
            self.waiters.remove(waiter)
        self.flush_now = True
        self.wake.set()

    def rest_s(self, limits: ProducerLimits) -> float | None:
        """Seconds until a batch is full, old enough or asked for (0: it is now); None when nothing is queued."""
        if not self.records:
            return None
        if self.flush_now or len(self.records) >= limits.batch_records:
            return 0.0
        return max(0.0, self.first_at + limits.flush_interval_ms / 1000 - time.monotonic())

    async def wait(self, rest_s: float | None = None) -> None:
        """Wait until woken, at most `rest_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rest_s):
                await self.wake.wait()

    def cut(self, limits: ProducerLimits) -> Batch:
        """Take the next batch off the queue, at most `batch_records` and `batch_bytes`, and at least one record."""
        records = self.records
        first = self.appended - len(records)
        batch_bytes = min(limits.batch_bytes, self.batch_bytes or limits.batch_bytes)
        if len(records) <= limits.batch_records and self.bytes <= batch_bytes:
            return self.cut_all()
        taken = size = 0
        for record in records[: limits.batch_records]:
            more = size_of(record)
            if size + more > batch_bytes and taken:
                break
            size += more
            taken += 1
        if taken == len(records):
            return self.cut_all()
        batch = Batch(records[:taken], first, size)
        del records[:taken]
        self.bytes -= size
        self.first_at = time.monotonic()
        return batch

    def cut_all(self) -> Batch:
        """Take everything off the queue."""
        batch = Batch(self.records, self.appended - len(self.records), self.bytes)
        self.records, self.bytes = [], 0
        self.flush_now = False
        return batch


def size_of(record: OutRecord) -> int:
    """Bytes of a record in a batch, at most, before compression."""
    _, key, value, _, headers, _, _ = record
    size = RECORD_OVERHEAD_BYTES
    if key is not None:
        size += len(key)
    if value is not None:
        size += len(value)
    for name, content in headers:
        size += len(name.encode()) + len(content or b"") + HEADER_OVERHEAD_BYTES
    return size


def observe_acknowledged(topic: str, records: list[OutRecord]) -> None:
    """Count a batch and observe each record's time from its intended instant; equal instants are counted together."""
    metrics.MESSAGES_SENT.labels(topic).inc(len(records))
    metrics.BATCHES_SENT.inc()
    if records[0].intended_ms is None:
        return
    now_ms = time.time() * 1000
    for intended_ms, count in Counter([r[6] for r in records]).items():
        if intended_ms is not None:
            metrics.SEND_DURATION.observe_many(max(0.0, now_ms - intended_ms) / 1000, count)


async def all_of(waiters: Iterable[Waiter]) -> None:
    """Wait for all, then raise the first failure; none is left unread."""
    outcomes = await asyncio.gather(*(waiter.future for waiter in waiters), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
