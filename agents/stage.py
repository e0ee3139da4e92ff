"""A stage with tables: each partition has a worker that decides batch after batch, one at a time.

For each batch of a partition, which is the guarantee (`tables.partition` numbers the same steps):
(1) records that the tables have already applied are left out;
(2) the logic decides: new rows and outputs; what a `LiveLogic` hears at once of what it began early belongs to it;
(3) rows, applied offset and outputs become durable in one write;
(4) changelog and marker are acknowledged by the broker, while the next batch is decided, then the outputs;
(5) the range is acknowledged to the transport, which commits it.
A worker that fails fails the stage: nothing it held was acknowledged, so another owner takes it again. One that is
`Fenced` gives its partition up, and the group is asked who is to have it: another owner was there, or may have been.
"""

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Final, Protocol, runtime_checkable

from app import metrics
from app.domain.pace import Pace
from app.errors import Fenced
from app.ports import Clock, InRecord
from app.task_ends import error_of
from tables.partition import Changes, TablePartition, Transaction

log = logging.getLogger(__name__)

# Turns of the loop in which what began early may answer; a function that waits for nothing answers in the first.
EARLY_TURNS: Final = 3
# Transactions that count and whose outputs are on their way: fewer than the slots of `tables.partition.SingleTrip`.
UNDELIVERED: Final = 48
# A partition that is nobody's: the group has been asked, and answers in well under a second.
FENCED_PATIENCE_S: Final = 20.0
# More often than this, somebody else goes on writing: the process starts anew, and says so.
FENCES: Final = 5
FENCES_WITHIN_S: Final = 60.0


class StageBatch(Protocol):
    """One event of the batch-native transport."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def records(self) -> Sequence[InRecord]: ...
    @property
    def highwater(self) -> int | None: ...
    def ack(self) -> None: ...


class Logic(Protocol):
    """The decisions of one partition; it reads its tables and returns what changes."""

    def take(self, records: Sequence[InRecord], now_ms: int, *, behind: bool) -> Changes:
        """Decide a batch; `behind` says that records wait which were there a while ago (`app.domain.pace`)."""

    def tick(self, now_ms: int) -> Changes | None:
        """Decide what is due by the wall clock; None when nothing is."""


@runtime_checkable
class LiveLogic(Logic, Protocol):
    """Logic that also hears from elsewhere than its topic, and acts once a decision is durable.

    What it heard it decides in its next `take` or `tick`, whichever comes first; whoever tells it something
    calls `Stage.wake`. Its ticks come when it wants them, not in intervals. What it returns is finished by
    `conclude`; before, it may begin what need not wait for durability, and hear of it (decision 0014).
    """

    def tick_in_s(self) -> float:
        """Seconds until the next tick is wanted, 0 or less for now."""

    def intake(self, records: Iterator[InRecord]) -> int:
        """How many of the `records` that wait it would take now; 0 for none until it ticked or was woken."""

    def prepare(self, records: Sequence[InRecord]) -> Awaitable[None] | None:
        """Called before `take` with the same records: what has to be waited for first, None for nothing."""

    def early(self, changes: Changes) -> bool:
        """Begin what of the changes need not wait until they are durable; whether that was anything."""

    def add_heard(self, changes: Changes, now_ms: int) -> None:
        """Decide what was heard since, as a part of the same changes."""

    def conclude(self, changes: Changes, now_ms: int) -> None:
        """Nothing is added any more: make the rows and outputs."""

    def settled(self, changes: Changes, now_ms: int) -> None:
        """These changes are durable; called in their order."""

    def close(self) -> None:
        """The partition goes to another owner, or the process ends."""


OpenPartition = Callable[[int], Awaitable[TablePartition]]
MakeLogic = Callable[[TablePartition], Logic]


class _Worker:
    """The life of one partition on this node."""

    def __init__(self, partition: int, stage: "Stage") -> None:
        self.partition = partition
        # Batches with the instant of their arrival; bounded by the transport's outstanding batches.
        self.queue: deque[tuple[StageBatch, int]] = deque()
        self.tables: TablePartition | None = None
        self.suspended = False
        self.fenced = False
        self.processed = 0
        self.wake = asyncio.Event()
        self._stage = stage
        self._live: LiveLogic | None = None
        self._settling: set[asyncio.Task[None]] = set()
        self._counting = 0  # transactions written that do not count yet
        self._written = asyncio.Event()  # clear from a decision that is being added to until it is written
        self._written.set()
        self._last_told = asyncio.Event()  # set when the last transaction so far is durable and the logic knows
        self._last_told.set()
        self._pace = Pace()
        self._tick_due_s = 0.0
        self._offset_taken = -1
        self.task = asyncio.create_task(self._run(), name=f"{stage.name}-{partition}")
        self.task.add_done_callback(self._stopped)

    @property
    def waiting(self) -> int:
        """Records that came and are not decided."""
        return sum(
            batch.records[-1].offset - max(self._offset_taken, batch.records[0].offset - 1) for batch, _ in self.queue
        )

    async def _run(self) -> None:
        stage = self._stage
        self.tables = await stage.open_partition(self.partition)
        logic = stage.make_logic(self.tables)
        self._live = logic if isinstance(logic, LiveLogic) else None
        self._plan_tick()
        while True:
            await self._until_work()
            if (wanted := self._wanted()) > 0:
                await self._take(logic, self.tables, wanted)
            # Between batches too: on a busy partition there is no pause in which to tick.
            if self._in_s() <= 0:
                if not self.suspended and self._has_room():
                    await self._tick(logic, self.tables)
                self._plan_tick()

    # ---- when ----

    def _plan_tick(self) -> None:
        self._tick_due_s = self._stage.clock.monotonic_s() + (0.0 if self._live else self._stage.tick_s())

    def _in_s(self) -> float:
        """Seconds until the next tick."""
        if self._live is not None:
            return self._live.tick_in_s()
        return self._tick_due_s - self._stage.clock.monotonic_s()

    def _has_room(self) -> bool:
        """Whether one more transaction may be on its way."""
        return self._counting < self._stage.transactions and len(self._settling) < UNDELIVERED

    def _wanted(self) -> int:
        """Records to take now; none while it is not known whose the partition will be: they come again to its owner."""
        if not self.queue or self.suspended or not self._has_room():
            return 0
        if self._live is None:
            return sys.maxsize
        return self._live.intake(self._waiting_records())

    def _waiting_records(self) -> Iterator[InRecord]:
        """The first batch of the queue but for what was taken of it."""
        return (record for record in self.queue[0][0].records if record.offset > self._offset_taken)

    async def _until_work(self) -> None:
        """Return when records may be taken or a tick is due, and a transaction may begin.

        The partition with nothing to do waits to be woken: by a batch, a settled transaction or `Stage.wake`.
        """
        await asyncio.sleep(0)  # others have their turn between two transactions, and may add to the next
        while True:
            self.wake.clear()
            if self._wanted() > 0:
                return
            ticking = self._has_room() and not (self.suspended and self._live is not None)
            pause_s = self._in_s() if ticking else None
            if pause_s is not None and pause_s <= 0:
                return
            try:
                async with asyncio.timeout(pause_s):
                    await self.wake.wait()
            except TimeoutError:
                return

    # ---- what ----

    async def _take(self, logic: Logic, tables: TablePartition, wanted: int) -> None:
        batch, arrived_ms = self.queue[0]
        taken = max(tables.applied.get(batch.topic, -1), self._offset_taken)
        records = batch.records
        # (1)
        if records[0].offset <= taken:
            records = [record for record in records if record.offset > taken]
        if not records:
            self.queue.popleft()
            self._start(self._after_all(batch))
            return
        whole = len(records) <= wanted
        if not whole:
            records = records[:wanted]
        if self._live is not None and (preparing := self._live.prepare(records)) is not None:
            await preparing
            if self.suspended:
                return
        if whole:
            self.queue.popleft()
        last = records[-1]
        self._offset_taken = last.offset
        now_ms = self._stage.clock.now_ms()
        behind = self._pace.behind(last.offset, batch.highwater, arrived_ms, now_ms)
        # (2)
        changes = logic.take(records, now_ms, behind=behind)
        written = await self._write(tables, changes, now_ms, batch.topic, last.offset)
        self.processed += len(records)
        lag_s = max(0.0, (now_ms - last.timestamp) / 1000)
        metrics.LAG_SECONDS.labels(batch.topic, str(batch.partition)).set(lag_s)
        self._start(self._settle(tables, written, now_ms, changes, batch if whole else None))

    async def _tick(self, logic: Logic, tables: TablePartition) -> None:
        now_ms = self._stage.clock.now_ms()
        changes = logic.tick(now_ms)
        if changes is not None:
            written = await self._write(tables, changes, now_ms)
            self._start(self._settle(tables, written, now_ms, changes, None))

    async def _write(
        self, tables: TablePartition, changes: Changes, now_ms: int, topic: str | None = None, offset: int = -1
    ) -> Transaction:
        """(2), its end: what begins early and answers at once is decided with what began it. And (3)."""
        live = self._live
        self._written.clear()
        try:
            if live is not None:
                for _ in range(EARLY_TURNS):
                    if self.suspended or not live.early(changes):
                        break
                    await asyncio.sleep(0)
                    live.add_heard(changes, now_ms)
                live.conclude(changes, now_ms)
            return tables.write(changes, topic, offset, timestamp_ms=now_ms)
        finally:
            self._written.set()

    async def _settle(
        self, tables: TablePartition, written: Transaction, now_ms: int, changes: Changes, batch: StageBatch | None
    ) -> None:
        before, told = self._last_told, asyncio.Event()
        self._last_told = told
        # (4)
        self._counting += 1
        try:
            await tables.settle(written, timestamp_ms=now_ms)
        finally:
            self._counting -= 1
        if self._live is not None:
            # One in two trips may count after a later one: it is told before all the same.
            await before.wait()
            self._live.settled(changes, self._stage.clock.now_ms())
            told.set()
        self.wake.set()
        await tables.deliver(timestamp_ms=now_ms)
        # (5)
        if batch is not None:
            batch.ack()

    async def _after_all(self, batch: StageBatch) -> None:
        """Acknowledge a repeat once everything written before it is settled."""
        before = [task for task in self._settling if task is not asyncio.current_task()]
        if before:
            await asyncio.gather(*before)
        batch.ack()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settled)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if error := error_of(task):
            self._stage.ended(self, error)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        self.wake.set()
        self._stopped(task)

    async def settled(self, timeout_s: float) -> None:
        """Wait until what is written so far is settled, for at most `timeout_s`."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=timeout_s)

    async def hushed(self, timeout_s: float) -> None:
        """Wait until what is decided so far is written, settled and told, for at most `timeout_s` in all.

        The group waits for `kafka.rebalance_timeout_ms` (10 s) and then goes on without this member.
        """
        now_s = asyncio.get_running_loop().time
        until = now_s() + timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._written.wait()
        await self.settled(max(0.0, until - now_s()))
        if self.tables is not None:
            await self.tables.hush(max(0.0, until - now_s()), timestamp_ms=self._stage.clock.now_ms())

    def go_on(self) -> None:
        """The partition stays here."""
        self.suspended = False
        if self.tables is not None:
            self.tables.go_on()

    async def retire(self) -> None:
        """Give the partition up: what is under way ends or is redelivered to the next owner. The store stays open."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.settled(self._stage.close_timeout_s)
        for task in list(self._settling):
            task.cancel()
        live, self._live = self._live, None
        if live is not None:
            live.close()
        if self.tables is not None:
            self.tables.give_up()

    async def close(self) -> None:
        """Give the partition up, and its folder."""
        await self.retire()
        self.let_go()

    def let_go(self) -> None:
        if self.tables is not None:
            self.tables.close()


class Stage:
    """The partitions of a stage on this node; `failed` is set to the first error that ends it."""

    def __init__(
        self,
        name: str,
        open_partition: OpenPartition,
        make_logic: MakeLogic,
        clock: Clock,
        tick_s: Callable[[], float],
        close_timeout_s: float = 5.0,
        transactions: int = sys.maxsize,
    ) -> None:
        """`transactions` bounds how many of a partition are on their way at once; what comes meanwhile waits.

        `ask_anew`, set by who knows the group, has it give the partitions out again.
        """
        self.name = name
        self.open_partition = open_partition
        self.make_logic = make_logic
        self.clock = clock
        self.tick_s = tick_s
        self.close_timeout_s = close_timeout_s
        self.transactions = transactions
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ask_anew: Callable[[], None] | None = None
        self._fences: dict[int, list[float]] = {}
        self._workers: dict[int, _Worker] = {}
        self._gone: list[_Worker] = []

    @property
    def ready(self) -> bool:
        """Whether every assigned partition is restored and takes records."""
        return all(worker.tables is not None and not worker.fenced for worker in self._workers.values())

    @property
    def partitions(self) -> tuple[int, ...]:
        """The partitions of this node."""
        return tuple(sorted(self._workers))

    @property
    def count(self) -> int:
        """How many partitions this node has."""
        return len(self._workers)

    @property
    def processed(self) -> int:
        """Records decided since the partitions came here."""
        return sum(worker.processed for worker in self._workers.values())

    def fail(self, error: BaseException) -> None:
        """Note the first error; whoever runs the stage waits for it."""
        if self.failed.done():
            log.warning("%s failed while it stopped: %s", self.name, error, extra={"action": "stage_failed"})
        else:
            self.failed.set_exception(error)

    def ended(self, worker: _Worker, error: BaseException) -> None:
        """A worker has ended: `Fenced`, its partition waits to be given out anew; else the stage has failed."""
        if self._workers.get(worker.partition) is not worker:
            # It was given up; what it held comes again to the partition's owner.
            log.warning("%s failed while it stopped: %s", self.name, error, extra={"action": "stage_failed"})
            return
        if not isinstance(error, Fenced) or self.ask_anew is None:
            self.fail(error)
            return
        if worker.fenced:
            return
        now_s = self.clock.monotonic_s()
        recent = [at_s for at_s in self._fences.get(worker.partition, ()) if now_s - at_s < FENCES_WITHIN_S]
        self._fences[worker.partition] = [*recent, now_s]
        if len(recent) >= FENCES:
            self.fail(error)
            return
        worker.fenced = worker.suspended = True
        log.warning(
            "partition %d of %s is given up: %s",
            worker.partition,
            self.name,
            error,
            extra={"action": "partition_fenced", "partition": worker.partition},
        )
        self.ask_anew()

        def look() -> None:
            if self._workers.get(worker.partition) is worker:
                self.fail(error)

        asyncio.get_running_loop().call_later(FENCED_PATIENCE_S, look)

    async def revoked(self, partitions: Iterable[int]) -> None:
        """The group rebalances: no tick until it is known who owns what.

        What a tick wrote is no batch that the transport waits for, so it is waited for here: settled behind another
        owner's claim it would be `Fenced`, and end this process. Nor do the tables say anything behind that claim, or
        the other owner would be the one that is `Fenced`.
        """
        workers = [worker for partition in partitions if (worker := self._workers.get(partition)) is not None]
        for worker in workers:
            worker.suspended = True
        await asyncio.gather(*(worker.hushed(self.close_timeout_s) for worker in workers))

    async def assigned(self, partitions: Iterable[int], *, kept: bool) -> None:
        """Open what is new and end the work on what is gone; `let_go` closes its folders.

        `kept` says that no other generation lay in between, so that nobody else can have owned what
        this node had before: those partitions go on without being opened again.
        """
        await self.let_go()
        wanted = set(partitions)
        given_up = [worker for p, worker in self._workers.items() if p not in wanted or not kept or worker.fenced]
        reopened = [worker for worker in given_up if worker.partition in wanted]
        self._gone = given_up.copy()  # noted first: a stop in the midst of this closes them all
        self._workers = {p: worker for p, worker in self._workers.items() if worker not in given_up}
        await asyncio.gather(*(worker.retire() for worker in given_up))
        for worker in reopened:
            self._gone.remove(worker)
            worker.let_go()
        for partition in wanted:
            worker = self._workers.get(partition) or _Worker(partition, self)
            worker.go_on()
            worker.wake.set()
            self._workers[partition] = worker

    async def let_go(self) -> None:
        """Close the folders of what went in the last round: 20 to 40 ms of this loop for each."""
        while self._gone:
            self._gone.pop().let_go()
            await asyncio.sleep(0)

    def feed(self, batch: StageBatch) -> None:
        """Queue one batch for its partition; one that is not ours is left for its owner."""
        worker = self._workers.get(batch.partition)
        if worker is not None:
            worker.queue.append((batch, self.clock.now_ms()))
            worker.wake.set()

    def wake(self, partition: int) -> None:
        """The logic of a partition has heard something; what is not ours any more is left alone."""
        worker = self._workers.get(partition)
        if worker is not None:
            worker.wake.set()

    def waiting(self, partition: int) -> int:
        """Records of a partition that came and are not decided."""
        worker = self._workers.get(partition)
        return worker.waiting if worker is not None else 0

    async def close(self) -> None:
        """Close every partition."""
        workers, self._workers, self._gone = [*self._workers.values(), *self._gone], {}, []
        await asyncio.gather(*(worker.close() for worker in workers))
