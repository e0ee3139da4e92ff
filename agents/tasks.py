"""Takes the orders of one task queue, has them carried out, and reports.

For each order, which is the guarantee that none is lost:
(1) it is read from `workflow.tasks.<queue>`; what cannot be read becomes a dead letter;
(2) it waits until the executor takes it: meanwhile no further record is looked at, so that the transport stops
    fetching when its outstanding records are reached;
(3) what the executor reports goes to `workflow.commands`, on the partition of its execution;
(4) once that is acknowledged the order is done; the range of its batch is acknowledged when all in it are done.
A process that dies leaves its ranges unacknowledged: another takes the orders again, under the same idempotency
keys, and the engine heeds the first report of each.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final

import orjson

from agents.stage import StageBatch
from app.domain.workflow.commands import Heartbeat, Report, TaskError
from app.domain.workflow.orders import TaskOrder
from app.domain.workflow.placement import partition_of
from app.ports import Clock, InRecord, OutRecord, Publisher, TaskExecutor
from app.workflow_wire import decode_order, encode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER

# An executor that refuses an order says nothing when a slot of its kind is free again.
LOOK_AGAIN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The bounds of one queue: orders under way, lateness of an order, a kept value, and one report."""

    in_flight: int = 256
    late_ms: int = 60_000
    keep_bytes: int = 65_536
    report_bytes: int = 1_000_000


class _Batch:
    """The range of one batch: acknowledged once all its orders are done."""

    def __init__(self, batch: StageBatch) -> None:
        self._batch = batch
        self._left = len(batch.records)

    def done(self) -> None:
        """One order fewer."""
        self._left -= 1
        if not self._left:
            self._batch.ack()


class TaskQueue:
    """One queue's orders in this process; `partitions` is the number of partitions of `workflow.commands`."""

    def __init__(
        self, executor: TaskExecutor, publisher: Publisher, clock: Clock, partitions: int, limits: QueueLimits
    ) -> None:
        self.processed = 0
        self.in_flight = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._executor = executor
        self._publisher = publisher
        self._clock = clock
        self._partitions = partitions
        self._limits = limits
        self._room = asyncio.Event()
        self._outgoing: list[tuple[OutRecord, Callable[[], None] | None]] = []
        self._sends: set[asyncio.Task[None]] = set()

    async def run(self, batches: AsyncIterator[StageBatch]) -> None:
        """Take batches until they end."""
        async for batch in batches:
            taken = _Batch(batch)
            for record in batch.records:
                await self._take(record, taken)

    async def close(self) -> None:
        """Send what was reported, then end; what still runs is taken again by others."""
        if self._sends:
            await asyncio.wait(self._sends, timeout=LOOK_AGAIN_S * 100)
        for task in list(self._sends):
            task.cancel()
        await asyncio.gather(*self._sends, return_exceptions=True)

    # ---- (1) (2) ----

    async def _take(self, record: InRecord, batch: _Batch) -> None:
        try:
            order = decode_order(record.value)
        except ValueError as error:
            self._send(self._letter(record, str(error)), self._finisher(batch))
            return
        now_ms = self._clock.now_ms()
        if order.deadline_ms is not None and now_ms > order.deadline_ms + self._limits.late_ms:
            late = f"the order came {(now_ms - order.deadline_ms) / 1000:.1f} s after its deadline"
            self._report(order, _failure(order, TaskError(type="Timeout", message=late), now_ms), batch)
            return
        while self.in_flight >= self._limits.in_flight:
            await self._wait_for_room(None)
        self.in_flight += 1
        while not self._executor.submit(order, lambda said: self._heard(order, said, batch)):
            await self._wait_for_room(LOOK_AGAIN_S)

    async def _wait_for_room(self, at_most_s: float | None) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(at_most_s):
                await self._room.wait()
        except TimeoutError:
            return

    # ---- (3) (4) ----

    def _heard(self, order: TaskOrder, said: Report | Heartbeat, batch: _Batch) -> None:
        if isinstance(said, Heartbeat):
            self._send(self._command(order, said), None)
            return
        self.in_flight -= 1
        self._room.set()
        self._report(order, said, batch)

    def _report(self, order: TaskOrder, report: Report, batch: _Batch) -> None:
        record = self._command(order, report)
        size = len(record.value or b"")
        if size > self._limits.report_bytes:
            sizes = {"bytes": size, "limit_bytes": self._limits.report_bytes}
            message = f"the report of the result has {size} bytes, and {self._limits.report_bytes} can be sent"
            error = TaskError(type="ResultTooLarge", message=message, retryable=False, detail=sizes)
            record = self._command(order, replace(report, result=None, error=error))
        self._send(record, self._finisher(batch))

    def _finisher(self, batch: _Batch) -> Callable[[], None]:
        def finish() -> None:
            self.processed += 1
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
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
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
