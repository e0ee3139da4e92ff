"""Takes the orders of one task queue, has them carried out, and reports.

For each order, which is the guarantee that none is lost:
(1) it is read from `workflow.tasks.<queue>`; what cannot be read becomes a dead letter;
(2) it waits until the executor takes it; records behind it are read on, until the transport's outstanding records
    are reached, for a recall of it may be among them;
(3) what the executor reports goes to `workflow.commands`, on the partition of its execution;
(4) once that is acknowledged the order is done; the range of its batch is acknowledged when all in it are done.
A process that dies leaves its ranges unacknowledged: another takes the orders again, under the same idempotency
keys, and the engine heeds the first report of each.

A recall lies on the partition of the orders that it means. It is obeyed when it is read: what runs is asked to stop,
then ended; what waits is not begun; neither is reported. An order that comes after its recall is not begun either.
Orders of a partition that is newly ours may be repeats whose recall is there already: none of them begins before the
partition is read up to the end that it had when it became ours. Those of other partitions do not wait for that.
"""

import asyncio
import base64
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import orjson

from agents.stage import StageBatch
from app.domain.workflow.commands import Heartbeat, Report, TaskError
from app.domain.workflow.orders import Recall, TaskOrder
from app.domain.workflow.placement import partition_of
from app.ports import Clock, InRecord, OutRecord, Publisher, TaskExecutor
from app.task_ends import error_of
from app.workflow_wire import decode_order, decode_recall, encode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER

# An executor that refuses an order says nothing when a slot of its kind is free again.
LOOK_AGAIN_S: Final = 0.02
# A partition from which nothing comes for so long counts as read up: it is not ours any more, or has as many records
# outstanding as the transport allows, and more come only when some of them are done.
READ_UP_S: Final = 1.0
# Executions whose recalls are remembered for orders that come late, and so many of one.
RECALLS_KEPT: Final = 10_000
RECALLS_OF_ONE: Final = 64
# Records read in one turn of the loop.
READ_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The bounds of one queue: orders under way, lateness of an order, a kept value, and one report."""

    in_flight: int = 256
    late_ms: int = 60_000
    keep_bytes: int = 65_536
    report_bytes: int = 1_000_000


class OrderBatch(StageBatch, Protocol):
    """A batch that knows whether it is still ours."""

    @property
    def is_current(self) -> bool:
        """False once its partition was given up: its records are delivered again, here or elsewhere."""


class _Batch:
    """The range of one batch: acknowledged once all its records are done."""

    __slots__ = ("_batch", "_left")

    def __init__(self, batch: OrderBatch) -> None:
        self._batch = batch
        self._left = len(batch.records)

    @property
    def is_current(self) -> bool:
        """See `OrderBatch`."""
        return self._batch.is_current

    def done(self) -> None:
        """One record fewer."""
        self._left -= 1
        if not self._left:
            self._batch.ack()


class _Waiting:
    """An order that has not begun."""

    __slots__ = ("batch", "is_recalled", "order")

    def __init__(self, order: TaskOrder, batch: _Batch) -> None:
        self.order = order
        self.batch = batch
        self.is_recalled = False


class _Running:
    """An order under way; delivered again meanwhile, it is done for all its batches at once."""

    __slots__ = ("batches", "order")

    def __init__(self, order: TaskOrder, batch: _Batch) -> None:
        self.order = order
        self.batches = [batch]


class _ReadUp:
    """A partition that is new here: its orders wait until it is read up to where it ended then."""

    __slots__ = ("came_s", "orders", "until")

    def __init__(self) -> None:
        self.orders: deque[_Waiting] = deque()
        self.until = 0
        self.came_s = 0.0


_Attempt = tuple[str, str, int | None, int]


class TaskQueue:
    """One queue's orders in this process; `partitions` is the number of partitions of `workflow.commands`."""

    def __init__(
        self, executor: TaskExecutor, publisher: Publisher, clock: Clock, partitions: int, limits: QueueLimits
    ) -> None:
        self.processed = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._executor = executor
        self._publisher = publisher
        self._clock = clock
        self._partitions = partitions
        self._limits = limits
        self._line: deque[_Waiting] = deque()
        self._waiting: dict[str, list[_Waiting]] = {}  # the same by execution
        self._running: dict[_Attempt, _Running] = {}
        self._recalls: OrderedDict[str, list[Recall]] = OrderedDict()
        self._next_offset: dict[int, int] = {}
        self._read_up: dict[int, _ReadUp] = {}
        self._change = asyncio.Event()
        self._outgoing: list[tuple[OutRecord, Callable[[], None] | None]] = []
        self._sends: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Orders under way."""
        return len(self._running)

    async def run(self, batches: AsyncIterator[OrderBatch]) -> None:
        """Take batches until they end; raises what keeps orders from beginning."""
        beginning = asyncio.create_task(self._begin_all(), name="task orders")
        reading = asyncio.create_task(self._read_all(batches), name="task records")
        try:
            await asyncio.wait({beginning, reading}, return_when=asyncio.FIRST_COMPLETED)
            if error := error_of(beginning if beginning.done() else reading):
                raise error
        finally:
            for task in (beginning, reading):
                task.cancel()
            await asyncio.gather(beginning, reading, return_exceptions=True)

    async def close(self) -> None:
        """Send what was reported, then end; what still runs is taken again by others."""
        if self._sends:
            await asyncio.wait(self._sends, timeout=LOOK_AGAIN_S * 100)
        for task in list(self._sends):
            task.cancel()
        await asyncio.gather(*self._sends, return_exceptions=True)

    # ---- (1) ----

    async def _read_all(self, batches: AsyncIterator[OrderBatch]) -> None:
        async for batch in batches:
            self._note_begin(batch)
            taken = _Batch(batch)
            for number, record in enumerate(batch.records, 1):
                self._read(record, taken)
                if number % READ_AT_ONCE == 0:
                    await asyncio.sleep(0)
            self._note_position(batch)
            self._change.set()

    def _note_begin(self, batch: OrderBatch) -> None:
        known = self._next_offset.get(batch.partition)
        # Further on than we were others have had it, and read recalls that we have not.
        if batch.records[0].offset != known and batch.highwater is not None:
            self._read_up.setdefault(batch.partition, _ReadUp()).until = batch.highwater
        self._note_coming(batch.partition)

    def _note_coming(self, partition: int) -> _ReadUp | None:
        reading = self._read_up.get(partition)
        if reading is not None:
            reading.came_s = self._clock.monotonic_s()
        return reading

    def _note_position(self, batch: OrderBatch) -> None:
        after = self._next_offset[batch.partition] = batch.records[-1].offset + 1
        reading = self._note_coming(batch.partition)
        if reading is not None and after >= reading.until:
            self._release(batch.partition)

    def _release(self, partition: int) -> None:
        self._line.extend(self._read_up.pop(partition).orders)

    def _release_quiet(self) -> None:
        now_s = self._clock.monotonic_s()
        for partition in [each for each, reading in self._read_up.items() if now_s - reading.came_s >= READ_UP_S]:
            self._release(partition)

    def _read(self, record: InRecord, batch: _Batch) -> None:
        recall = decode_recall(record.value)
        if recall is not None:
            self._recall(recall)
            self._finisher([batch])()
            return
        try:
            order = decode_order(record.value)
        except ValueError as error:
            self._send(self._letter(record, str(error)), self._finisher([batch]))
            return
        if any(one.covers(order) for one in self._recalls.get(order.execution_id, ())):
            self._finisher([batch])()
            return
        waiting = _Waiting(order, batch)
        reading = self._read_up.get(record.partition)
        (self._line if reading is None else reading.orders).append(waiting)
        self._waiting.setdefault(order.execution_id, []).append(waiting)

    def _recall(self, recall: Recall) -> None:
        """End what is meant, and remember it for orders that come late."""
        name = recall.execution_id
        for waiting in self._waiting.get(name, ()):
            waiting.is_recalled = waiting.is_recalled or recall.covers(waiting.order)
        found = [attempt for attempt, running in self._running.items() if recall.covers(running.order)]
        for attempt in found:
            self._finisher(self._running.pop(attempt).batches)()
        if found:
            self._executor.cancel(name, recall.task, recall.item, before=recall.recalls_before)
        known = [one for one in self._recalls.pop(name, ()) if (one.task, one.item) != (recall.task, recall.item)]
        self._recalls[name] = [recall] if recall.task is None else [*known, recall][-RECALLS_OF_ONE:]
        if len(self._recalls) > RECALLS_KEPT:
            self._recalls.popitem(last=False)

    # ---- (2) ----

    async def _begin_all(self) -> None:
        while True:
            self._release_quiet()
            if not self._line or len(self._running) >= self._limits.in_flight:
                await self._wait_for_change(LOOK_AGAIN_S if self._line or self._read_up else None)
                continue
            waiting = self._line[0]
            if waiting.is_recalled:
                self._finisher([waiting.batch])()
            elif waiting.batch.is_current and not self._begin(waiting):
                await self._wait_for_change(LOOK_AGAIN_S)
                continue
            self._line.popleft()
            self._forget(waiting)

    def _begin(self, waiting: _Waiting) -> bool:
        """False when the executor has no room for it."""
        order, batch = waiting.order, waiting.batch
        now_ms = self._clock.now_ms()
        if order.deadline_ms is not None and now_ms > order.deadline_ms + self._limits.late_ms:
            late = f"the order came {(now_ms - order.deadline_ms) / 1000:.1f} s after its deadline"
            self._report(order, _failure(order, TaskError(type="Timeout", message=late), now_ms), [batch])
            return True
        attempt = (order.execution_id, order.task, order.item, order.token)
        running = self._running.get(attempt)
        if running is not None:
            running.batches.append(batch)
            return True
        self._running[attempt] = _Running(order, batch)
        if self._executor.submit(order, lambda said: self._heard(attempt, order, said)):
            return True
        del self._running[attempt]
        return False

    def _forget(self, waiting: _Waiting) -> None:
        others = self._waiting[waiting.order.execution_id]
        if len(others) == 1:
            del self._waiting[waiting.order.execution_id]
        else:
            others.remove(waiting)

    async def _wait_for_change(self, at_most_s: float | None) -> None:
        self._change.clear()
        try:
            async with asyncio.timeout(at_most_s):
                await self._change.wait()
        except TimeoutError:
            return

    # ---- (3) (4) ----

    def _heard(self, attempt: _Attempt, order: TaskOrder, said: Report | Heartbeat) -> None:
        if isinstance(said, Heartbeat):
            self._send(self._command(order, said), None)
            return
        running = self._running.pop(attempt, None)
        if running is not None:
            self._change.set()
            self._report(order, said, running.batches)

    def _report(self, order: TaskOrder, report: Report, batches: list[_Batch]) -> None:
        record = self._command(order, report)
        size = len(record.value or b"")
        if size > self._limits.report_bytes:
            sizes = {"bytes": size, "limit_bytes": self._limits.report_bytes}
            message = f"the report of the result has {size} bytes, and {self._limits.report_bytes} can be sent"
            error = TaskError(type="ResultTooLarge", message=message, retryable=False, detail=sizes)
            record = self._command(order, replace(report, result=None, error=error))
        self._send(record, self._finisher(batches))

    def _finisher(self, batches: list[_Batch]) -> Callable[[], None]:
        def finish() -> None:
            self.processed += 1
            self._change.set()
            for batch in batches:
                batch.done()

        return finish

    def _command(self, order: TaskOrder, said: Report | Heartbeat) -> OutRecord:
        headers = (("traceparent", order.traceparent.encode()),) if order.traceparent else ()
        partition = partition_of(order.execution_id, self._partitions)
        key = order.execution_id.encode()
        return OutRecord(WORKFLOW_COMMANDS.name, key, encode_command(said), self._clock.now_ms(), headers, partition)

    def _send(self, record: OutRecord, then: Callable[[], None] | None) -> None:
        """Everything said in one turn of the loop goes in one call."""
        self._outgoing.append((record, then))
        if len(self._outgoing) == 1:
            task = asyncio.create_task(self._flush(), name="task reports")
            self._sends.add(task)
            task.add_done_callback(self._sent)

    async def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        await self._publisher.publish([record for record, _ in outgoing])
        for _, then in outgoing:
            if then is not None:
                then()

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sends.discard(task)
        if (error := error_of(task)) and not self.failed.done():
            self.failed.set_exception(error)

    def _letter(self, record: InRecord, detail: str) -> OutRecord:
        value = record.value or b""
        now_ms = self._clock.now_ms()
        body = {
            "kind": "command",
            "reason": "unreadable_order",
            "detail": detail,
            "value": base64.b64encode(value[: self._limits.keep_bytes]).decode(),
            "value_bytes": len(value),
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "at": now_ms,
        }
        return OutRecord(WORKFLOW_DEADLETTER.name, record.key, orjson.dumps(body), now_ms)


def _failure(order: TaskOrder, error: TaskError, now_ms: int) -> Report:
    return Report(
        execution_id=order.execution_id,
        task=order.task,
        item=order.item,
        attempt=order.attempt,
        token=order.token,
        error=error,
        started_ms=now_ms,
    )
