"""The fleet's way to the broker: straight while it acknowledges, over the disk while it does not.

Order is the guarantee: the readings of a device come to the broker in the order they were made, so that no window of
theirs is closed by a later one. Therefore
(1) when the broker is away, what it has not acknowledged is taken back and goes to the disk before what comes next;
(2) while anything is on disk, new readings go behind it, not beside it;
(3) the oldest on disk are always on their way, one batch until it is acknowledged, then `WINDOW_RECORDS` at most;
(4) when the last one on disk is with the producer, new readings go behind it there, and straight from then on;
(5) what is on disk is done with when the broker has acknowledged it, and stays there till then.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from agents.generate import Sender
from agents.ledger import Books
from app import metrics
from app.adapters.spool import Spool, SpoolBatch, SpoolRefused
from app.codec import as_historical
from app.domain.spool import Kept
from app.errors import PublishFailed
from app.ports import Clock, OutRecord, TakenBack, Way
from config.producer import ProducerSettings
from config.spool import SpoolSettings

log = logging.getLogger(__name__)

TICK_S: Final = 0.01
# Twice what eight lanes have under way with batches of a thousand; a crash repeats about as many.
WINDOW_RECORDS: Final = 20_000
BATCH_BYTES: Final = 1 << 20
WRITES_AT_ONCE: Final = 8
RETRY_S: Final = 1.0
SWEEP_S: Final = 1.0
FINISH_S: Final = 5.0
# Whoever was not awake for this long cannot blame the broker.
ASLEEP_S: Final = 0.25


class SpoolingLimits(NamedTuple):
    """What may change while readings are spooled; `waiting_records` may wait in memory for the disk."""

    after_ms: int
    write_interval_ms: int
    batch_records: int
    waiting_records: int
    replay_rate_per_s: int


def limits_of(spool: SpoolSettings, producer: ProducerSettings) -> SpoolingLimits:
    """The limits that settings mean."""
    return SpoolingLimits(
        after_ms=spool.after_ms,
        write_interval_ms=spool.write_interval_ms,
        batch_records=min(producer.batch_size, producer.buffer_records),
        waiting_records=producer.buffer_records,
        replay_rate_per_s=spool.replay_rate_per_s,
    )


class Retractable(Sender, Protocol):
    """A producer whose records of one topic can be had back."""

    def waiting_s(self) -> float:
        """For how long the oldest batch has been under way without an end; 0 when nothing waits."""

    def ways(self) -> Mapping[int, Way]:
        """How far each partition is."""

    def take_back(self) -> Mapping[int, TakenBack]:
        """Take everything that has no end yet, by partition, in order; nothing of it is sent later."""


class _UnderWay(NamedTuple):
    """A batch of the spool with the producer; done when so many of each partition are settled."""

    settled: Mapping[int, int]
    end: int
    records: int


class Spooler:
    """A sender that keeps the readings of one topic on disk while the broker is away."""

    def __init__(
        self,
        producer: Retractable,
        spool: Spool,
        books: Books,
        limits: Callable[[], SpoolingLimits],
        clock: Clock,
        pause: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._producer = producer
        self._send = producer.send_nowait
        self._spool = spool
        self._books = books
        self._limits = limits
        self._clock = clock
        self._pause = pause
        self._direct = True
        self._answered = False  # something of the spool was acknowledged since it began
        self._boundary: dict[int, int] = {}  # by partition, how many went ahead of what is straight again
        self._pending: deque[Kept] = deque()  # made and not on disk
        self._pending_s = 0.0
        self._ready: deque[SpoolBatch] = deque()  # read and not with the producer
        self._handed = 0  # records of the first of them that are
        self._under_way: deque[_UnderWay] = deque()
        self._refused: SpoolRefused | None = None
        self._retry_s = 0.0
        self._overflow = 0
        self._looked_s = self._patient_s = self._swept_s = clock.monotonic_s()
        self._began_s = 0.0
        self._replayed = 0
        self._allowance = 0.0
        self._stopping = self._finished = False
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    # ---- life ----

    async def start(self) -> None:
        """Take the folder and what is in it. Raises `EnvironmentError_`."""
        self._books.recovered(await self._spool.open())
        if self._spool.unread:
            self._leave_straight()
        self._task = asyncio.create_task(self._run(), name="spool")

    async def failure(self) -> BaseException:
        """Wait for the bug that ends this spooler, and return it."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    async def finish(self) -> None:
        """Let end what is under way, for a while; then have the rest on disk, where the next start finds it."""
        if self._finished:
            return
        self._finished = self._stopping = True
        if self._task is not None:
            await asyncio.wait([self._task])
        ends_s = self._clock.monotonic_s() + FINISH_S
        while self._may_still_end() and self._clock.monotonic_s() < ends_s:
            await self._pause(TICK_S)
        await self._settle()
        if self._pending or self._has_unsettled():
            self._take_back()
        while self._pending and await self._write_batch():
            pass
        if self._pending:
            self._books.lost_on_the_way(self._refused.reason if self._refused else "stopped", len(self._pending))
            self._pending.clear()
        await self._settle()
        if kept := self._books.ledger.spooled:
            log.warning(
                f"{kept:,} readings stay in the spool {self._spool.folder} until the next start",
                extra={"action": "spool_kept", "records": kept},
            )
        await self._spool.close()
        self._tell()

    def _may_still_end(self) -> bool:
        return self._has_unsettled() and not self._is_late()

    def _has_unsettled(self) -> bool:
        return any(way.settled < way.queued for way in self._producer.ways().values())

    def _is_late(self) -> bool:
        return self._producer.waiting_s() * 1000 > self._limits().after_ms

    # ---- what the fleet asks ----

    @property
    def is_away(self) -> bool:
        """Whether the broker has not acknowledged readings for long."""
        return not self._direct and (self._is_late() or not self._answered)

    @property
    def imbalance(self) -> int:
        """Records that the ledger has on disk and the spool has not; 0 unless something is wrong."""
        ready = sum(len(batch.records) for batch in self._ready) - self._handed
        return self._books.ledger.spooled - self._spool.unread - ready

    async def partitions(self, topic: str) -> int:
        """See `agents.generate.Sender`."""
        return await self._producer.partitions(topic)

    def send_nowait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        intended_ms: float | None = None,
    ) -> bool:
        """See `agents.generate.Sender`."""
        if topic != self._books.topic:
            return self._send(topic, key, value, timestamp_ms, partition, headers, intended_ms)
        if self._direct:
            if self._pending and not self._hand_over_pending():
                return False
            return self._send(topic, key, value, timestamp_ms, partition, headers, intended_ms)
        return self._keep(Kept(key, value, timestamp_ms, headers, intended_ms))

    def _keep(self, record: Kept) -> bool:
        if len(self._pending) >= self._limits().waiting_records:
            if self._refused is None:
                return False  # the disk is slow: the fleet does as `device.when_full` says
            self._pending.popleft()
            self._overflow += 1
        elif not self._pending:
            self._pending_s = self._clock.monotonic_s()
        self._pending.append(record)
        return True

    # ---- the loop ----

    async def _run(self) -> None:
        try:
            await self._producer.partitions(self._books.topic)
            while not self._stopping:
                if not await self._step():
                    await self._pause(TICK_S)
        except Exception as error:  # whatever it is, it must not end as a silent stall
            log.exception("the spool failed", extra={"action": "spool_failed"})
            self._failure = error
            self._failed.set()

    async def _step(self) -> bool:
        """One look at everything; whether there is more to do at once."""
        now_s = self._clock.monotonic_s()
        self._look(now_s)
        await self._settle()
        busy = False
        if not self._direct:
            busy = await self._write(now_s)
            busy = await self._replay(now_s - self._looked_s) or busy
            if not busy:
                self._go_straight()
        if now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            self._spool.expire()
        self._looked_s = now_s
        self._tell()
        return busy

    def _tell(self) -> None:
        if self._overflow:
            reason = self._refused.reason if self._refused else "spool_disk_full"
            self._books.lost_on_the_way(reason, self._overflow)
            self._overflow = 0
        metrics.SPOOL_RECORDS.set(self._books.ledger.spooled)

    # ---- (1) away ----

    def _look(self, now_s: float) -> None:
        after_s = self._limits().after_ms / 1000
        if now_s - self._looked_s > max(ASLEEP_S, after_s / 4):
            self._patient_s = now_s + after_s
        if self._direct and now_s >= self._patient_s and self._is_late():
            waited_s = self._producer.waiting_s()
            self._take_back()
            self._leave_straight()
            log.warning(
                f"The broker has acknowledged no readings for {waited_s:.1f} s: they go to the spool"
                f" {self._spool.folder}",
                extra={"action": "spool_begun", "records": len(self._pending)},
            )

    def _leave_straight(self) -> None:
        self._direct = self._answered = False
        self._began_s, self._replayed, self._allowance = self._clock.monotonic_s(), 0, 0.0

    def _take_back(self) -> None:
        """Have back what has no end: what is on disk anyway is ready to be sent again, the rest must go there."""
        again: list[Kept] = []
        live: list[Kept] = []
        for partition, (before, records) in self._producer.take_back().items():
            on_disk = len(records) if not self._direct else max(0, self._boundary.get(partition, 0) - before)
            again += map(_kept, records[:on_disk])
            live += map(_kept, records[on_disk:])
        size = self._limits().batch_records
        chunks = [SpoolBatch(0, again[at : at + size]) for at in range(0, len(again), size)]
        if self._under_way:
            chunks.append(SpoolBatch(self._under_way[-1].end, []))  # behind the last of them all are done with
        self._rejoin(chunks)
        self._under_way.clear()
        self._books.spooled(len(again))
        self._pending.extendleft(reversed(live))
        self._pending_s = 0.0

    def _rejoin(self, chunks: list[SpoolBatch]) -> None:
        if self._handed:  # of the first that was ready, some are among those taken back
            batch = self._ready[0]
            self._ready[0] = SpoolBatch(batch.end, batch.records[self._handed :])
            self._handed = 0
        self._ready.extendleft(reversed(chunks))

    # ---- (2) to the disk ----

    async def _write(self, now_s: float) -> bool:
        limits = self._limits()
        if self._refused is not None and now_s < self._retry_s:
            return False
        for _ in range(WRITES_AT_ONCE):
            full = len(self._pending) >= limits.batch_records
            if not self._pending or not (full or (now_s - self._pending_s) * 1000 >= limits.write_interval_ms):
                return False
            if not await self._write_batch():
                return False
        return True

    async def _write_batch(self) -> bool:
        """Write the first that wait; False when the disk does not take them."""
        records = _cut(self._pending, self._limits().batch_records)
        late = [record._replace(value=as_historical(record.value)) if record.value else record for record in records]
        try:
            await self._spool.write(late)
        except SpoolRefused as refused:
            self._pending.extendleft(reversed(records))
            self._note_refusal(refused)
            return False
        self._note_taken()
        self._pending_s = self._clock.monotonic_s()
        self._books.spooled(len(records))
        return True

    def _note_refusal(self, refused: SpoolRefused) -> None:
        self._retry_s = self._clock.monotonic_s() + RETRY_S
        if self._refused is None:
            log.error(
                f"{refused} Readings wait in memory, and beyond {self._limits().waiting_records:,} the oldest are"
                f" dropped as {refused.reason}.",
                extra={"action": "spool_refused", "reason": refused.reason},
            )
        self._refused = refused

    def _note_taken(self) -> None:
        if self._refused is not None:
            dropped = self._books.ledger.dropped.get(self._refused.reason, 0)
            log.warning(
                f"The spool {self._spool.folder} is written again; {dropped:,} readings were dropped",
                extra={"action": "spool_taken", "records": dropped},
            )
        self._refused = None

    # ---- (3) and (5) to the broker ----

    async def _replay(self, passed_s: float) -> bool:
        """Hand over what the window and the rate allow; whether more might go at once."""
        rate = self._limits().replay_rate_per_s
        self._allowance = min(self._allowance + rate * passed_s, max(1.0, rate / 10)) if rate else float(WINDOW_RECORDS)
        under_way = sum(batch.records for batch in self._under_way)
        window = WINDOW_RECORDS if self._answered else 1  # a batch tells whether the broker is back
        while under_way < window and self._allowance >= 1:
            if not self._ready:
                self._ready.extend(await self._spool.read())
            if not self._ready:
                return False
            handed, whole = self._hand_over(self._ready[0])
            under_way += handed
            self._allowance -= handed if rate else 0
            if not whole:
                return False
            await self._pause(0)
        return False

    def _hand_over(self, batch: SpoolBatch) -> tuple[int, bool]:
        """Give a batch to the producer: how many it took, and whether that is all of them."""
        topic, send, handed, refused = self._books.topic, self._send, 0, 0
        for key, value, at_ms, headers, intended_ms in islice(batch.records, self._handed, None):
            try:
                if not send(topic, key, value, at_ms, None, headers, intended_ms):
                    break
            except PublishFailed as error:
                if error.reason != "record_too_large":
                    raise
                refused += 1
            handed += 1
        self._books.unspooled(handed)
        if refused:
            self._books.lost_on_the_way("record_too_large", refused)
        self._handed += handed
        self._replayed += handed
        if self._handed < len(batch.records):
            return handed, False
        self._under_way.append(_UnderWay(_queued(self._producer.ways()), batch.end, self._handed))
        self._ready.popleft()
        self._handed = 0
        return handed, True

    async def _settle(self) -> None:
        """(5)"""
        if self._under_way:
            ways, end = self._producer.ways(), 0
            while self._under_way and _is_settled(self._under_way[0], ways):
                batch = self._under_way.popleft()
                end = max(end, batch.end)
                self._answered = self._answered or batch.records > 0
            if end:
                await self._spool.done(end)
        if not self._under_way and not self._ready and not self._spool.unread and (self._direct or self._stopping):
            await self._spool.clear()

    # ---- (4) straight again ----

    def _go_straight(self) -> None:
        if self._ready or self._spool.unread or self._refused is not None:
            return
        if self._under_way and not self._answered:
            return  # nobody has acknowledged anything since
        if self._producer.waiting_s() * 1000 > self._limits().after_ms / 2:
            return
        self._boundary = _queued(self._producer.ways())
        self._direct = True
        self._hand_over_pending()
        if self._replayed:
            seconds = self._clock.monotonic_s() - self._began_s
            log.info(
                f"the spool is sent: {self._replayed:,} readings, {seconds:.1f} s after it began",
                extra={"action": "spool_replayed", "records": self._replayed},
            )

    def _hand_over_pending(self) -> bool:
        """Give the producer what did not get to the disk; whether it took all."""
        topic, send, pending = self._books.topic, self._send, self._pending
        while pending:
            key, value, at_ms, headers, intended_ms = pending[0]
            if not send(topic, key, value, at_ms, None, headers, intended_ms):
                return False
            pending.popleft()
        return True


def _queued(ways: Mapping[int, Way]) -> dict[int, int]:
    return {partition: way.queued for partition, way in ways.items()}


def _is_settled(batch: _UnderWay, ways: Mapping[int, Way]) -> bool:
    return all(ways[partition].settled >= count for partition, count in batch.settled.items())


def _kept(record: OutRecord) -> Kept:
    return Kept(record.key, record.value, record.timestamp_ms, record.headers, record.intended_ms)


def _cut(pending: deque[Kept], most: int) -> list[Kept]:
    """Take the first of those that wait, at most `most` and about `BATCH_BYTES`, and at least one."""
    taken: list[Kept] = []
    size = 0
    while pending and len(taken) < most and size < BATCH_BYTES:
        taken.append(pending.popleft())
        size += len(taken[-1].value or b"")
    return taken
