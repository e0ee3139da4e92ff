"""A stage with tables: each partition has a worker that decides batch after batch, one at a time.

For each batch of a partition, which is the guarantee (`tables.partition` numbers the same steps):
(1) records that the tables have already applied are left out;
(2) the logic decides: new rows and outputs, no await in between;
(3) rows, applied offset and outputs become durable in one write;
(4) outputs, changelog and marker are acknowledged by the broker, while the next batch is decided;
(5) the range is acknowledged to the transport, which commits it.
A worker that fails fails the stage: nothing it held was acknowledged, so another owner takes it again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Protocol

from app import metrics
from app.domain.pace import Pace
from app.ports import Clock, InRecord
from tables.partition import Changes, TablePartition, Transaction

log = logging.getLogger(__name__)


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


OpenPartition = Callable[[int], Awaitable[TablePartition]]
MakeLogic = Callable[[TablePartition], Logic]


class _Worker:
    """The life of one partition on this node."""

    def __init__(self, partition: int, stage: "Stage") -> None:
        self.partition = partition
        # Batches with the instant of their arrival; bounded by the transport's outstanding batches.
        self.queue: asyncio.Queue[tuple[StageBatch, int]] = asyncio.Queue()
        self.tables: TablePartition | None = None
        self.suspended = False
        self.processed = 0
        self._stage = stage
        self._settling: set[asyncio.Task[None]] = set()
        self._pace = Pace()
        self._tick_due_s = 0.0
        self.task = asyncio.create_task(self._run(), name=f"{stage.name}-{partition}")

    async def _run(self) -> None:
        stage = self._stage
        try:
            self.tables = await stage.open_partition(self.partition)
            logic = stage.make_logic(self.tables)
            self._tick_due_s = stage.clock.monotonic_s() + stage.tick_s()
            while True:
                arrived = await self._next()
                if arrived is not None:
                    self._take(logic, self.tables, *arrived)
                # Between batches too: on a busy partition there is no pause in which to tick.
                if stage.clock.monotonic_s() >= self._tick_due_s:
                    self._tick_due_s = stage.clock.monotonic_s() + stage.tick_s()
                    if not self.suspended:
                        self._tick(logic, self.tables)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the stage, which ends the process with it
            # `Fenced` too: a process that lost its partitions without being told starts anew.
            stage.fail(error)

    async def _next(self) -> tuple[StageBatch, int] | None:
        """The next batch, or None when a tick is due before there is one."""
        try:
            async with asyncio.timeout(max(0.0, self._tick_due_s - self._stage.clock.monotonic_s())):
                return await self.queue.get()
        except TimeoutError:
            return None

    def _take(self, logic: Logic, tables: TablePartition, batch: StageBatch, arrived_ms: int) -> None:
        applied = tables.applied.get(batch.topic, -1)
        records = batch.records
        # (1)
        if records[0].offset <= applied:
            records = [record for record in records if record.offset > applied]
        if not records:
            self._start(self._after_all(batch))
            return
        last = records[-1]
        now_ms = self._stage.clock.now_ms()
        behind = self._pace.behind(last.offset, batch.highwater, arrived_ms, now_ms)
        # (2)
        changes = logic.take(records, now_ms, behind=behind)
        # (3)
        written = tables.write(changes, batch.topic, last.offset, timestamp_ms=now_ms)
        self.processed += len(records)
        lag_s = max(0.0, (now_ms - last.timestamp) / 1000)
        metrics.LAG_SECONDS.labels(batch.topic, str(batch.partition)).set(lag_s)
        self._start(self._settle(tables, written, now_ms, batch))

    def _tick(self, logic: Logic, tables: TablePartition) -> None:
        now_ms = self._stage.clock.now_ms()
        changes = logic.tick(now_ms)
        if changes is not None:
            self._start(self._settle(tables, tables.write(changes, timestamp_ms=now_ms), now_ms, None))

    async def _settle(
        self, tables: TablePartition, written: Transaction, now_ms: int, batch: StageBatch | None
    ) -> None:
        # (4)
        await tables.settle(written, timestamp_ms=now_ms)
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

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stage.fail(error)

    async def settled(self, timeout_s: float) -> None:
        """Wait until what is written so far is settled, for at most `timeout_s`."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=timeout_s)

    async def close(self) -> None:
        """Give the partition up: what is under way ends or is redelivered to the next owner."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.settled(self._stage.close_timeout_s)
        for task in list(self._settling):
            task.cancel()
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
    ) -> None:
        self.name = name
        self.open_partition = open_partition
        self.make_logic = make_logic
        self.clock = clock
        self.tick_s = tick_s
        self.close_timeout_s = close_timeout_s
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._workers: dict[int, _Worker] = {}

    @property
    def ready(self) -> bool:
        """Whether every assigned partition is restored and takes records."""
        return all(worker.tables is not None for worker in self._workers.values())

    @property
    def partitions(self) -> tuple[int, ...]:
        """The partitions of this node."""
        return tuple(sorted(self._workers))

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

    async def revoked(self, partitions: Iterable[int]) -> None:
        """The group rebalances: no tick until it is known who owns what.

        What a tick wrote is no batch that the transport waits for, so it is waited for here: settled behind another
        owner's claim it would be `Fenced`, and end this process.
        """
        workers = [worker for partition in partitions if (worker := self._workers.get(partition)) is not None]
        for worker in workers:
            worker.suspended = True
        await asyncio.gather(*(worker.settled(self.close_timeout_s) for worker in workers))

    async def assigned(self, partitions: Iterable[int], *, kept: bool) -> None:
        """Open what is new and close what is gone.

        `kept` says that no other generation lay in between, so that nobody else can have owned what
        this node had before: those partitions go on without being opened again.
        """
        wanted = set(partitions)
        gone = [p for p in self._workers if p not in wanted or not kept]
        await asyncio.gather(*(self._workers.pop(p).close() for p in gone))
        for partition in wanted:
            worker = self._workers.get(partition) or _Worker(partition, self)
            worker.suspended = False
            self._workers[partition] = worker

    def feed(self, batch: StageBatch) -> None:
        """Queue one batch for its partition; one that is not ours is left for its owner."""
        worker = self._workers.get(batch.partition)
        if worker is not None:
            worker.queue.put_nowait((batch, self.clock.now_ms()))

    async def close(self) -> None:
        """Close every partition."""
        workers, self._workers = list(self._workers.values()), {}
        await asyncio.gather(*(worker.close() for worker in workers))
