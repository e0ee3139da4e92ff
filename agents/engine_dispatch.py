"""Hands attempts to executors: to that of this process while it has a free slot, else to a topic or a fair line.

An attempt of the queue `default` waits here for a slot of this process, in a line that is fair between workflows;
what waits is only named, the order is made when it is handed out. With `workflow.local_tasks` off, and for every
other queue, the order is a record of `workflow.tasks.<queue>`. It is sent after the decision is durable and not
with it: no task may begin for a decision that does not count. What a crash in between leaves unsent the next owner
sends, with everything else that is in flight, under the same token: the token is the `seq` of the event that began
the attempt, so the first report of either delivery counts and the second is stale. A new token would throw away
what a worker has been doing for hours; that both may run is what the idempotency key is for.

What nobody waits for any more is called back by a record of the same topic under the same key, behind its orders.
"""

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from agents.engine_terms import LOCAL_QUEUE, Owner, Terms, Wanted
from app import metrics
from app.domain.workflow.commands import Heartbeat, Report, TaskError
from app.domain.workflow.fair_queue import FairQueue
from app.domain.workflow.orders import Recall, TaskOrder
from app.errors import PublishFailed
from app.ports import Clock, OutRecord, Publisher, Reported, TaskExecutor
from app.task_ends import error_of
from app.workflow_wire import encode_order, encode_recall
from config.topics import workflow_tasks

LOOK_AGAIN_S: Final = 0.1
PASSED_OVER: Final = 64
# What the publisher says of an order that no trying again makes sendable.
UNKNOWN_TOPIC: Final = "unknown_topic"
TOO_LARGE: Final = "record_too_large"
_Place = tuple[str, int | None]
_Waiting = tuple[str, int]


class _Running(NamedTuple):
    owner: Owner
    token: int


class OrderPublisher(Publisher, Protocol):
    """A publisher that tells whether a topic is there (`app.adapters.producer` fits)."""

    async def partitions(self, topic: str) -> int:
        """Raises `PublishFailed` when there is no such topic; takes its time, and holds up no `publish`."""


class _Order(NamedTuple):
    """An order on its way to a topic, and whom to tell when it cannot go there; a recall has neither."""

    record: OutRecord
    owner: Owner | None
    order: TaskOrder | None


class Dispatcher:
    """The attempts of every partition of this process that wait or run here."""

    def __init__(
        self,
        executor: TaskExecutor | None,
        publisher: OrderPublisher,
        clock: Clock,
        terms: Callable[[], Terms],
        fail: Callable[[BaseException], None],
    ) -> None:
        """`fail` is told when an order could not be sent: what was decided would wait for ever."""
        self._executor = executor
        self._publisher = publisher
        self._clock = clock
        self._terms = terms
        self._fail = fail
        self._line: FairQueue[_Waiting, tuple[Owner, Wanted]] = FairQueue()
        self._running: dict[str, dict[_Place, _Running]] = {}  # by execution
        self._owners: dict[Owner, Reported] = {}
        self._sending: dict[str, list[_Order]] = {}
        self._topics: set[str] = set()  # known to be there
        self._sends: set[asyncio.Task[None]] = set()
        self._pumping = False
        self._later: asyncio.TimerHandle | None = None

    @property
    def backlog(self) -> int:
        """Attempts that wait for a slot of this process."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Attempts that run in this process."""
        return sum(len(places) for places in self._running.values())

    def is_local(self, queue: str) -> bool:
        """Whether attempts of this queue run in this process."""
        return self._executor is not None and queue == LOCAL_QUEUE and self._terms().local_tasks

    def offer(self, owner: Owner, wanted: Wanted) -> None:
        """Begin an attempt as soon as may be."""
        executor = self._executor
        if executor is None or not self.is_local(wanted.queue):
            self._send(owner, wanted)
        elif len(self._line) or not executor.free or not self._hand_over(executor, owner, wanted):
            self._wait(owner, wanted)
            self._pump_soon()

    def cancel(self, execution_id: str, task: str | None, item: int | None, before: int) -> None:
        """Stop what runs here for an execution, as far as its token is lower than `before`.

        What waits in line is found stale when its turn comes.
        """
        running = self._running.get(execution_id)
        if self._executor is None or running is None:
            return
        places = running if task is None else ((task, item),)
        found = [place for place in places if (one := running.get(place)) is not None and one.token < before]
        if not found:
            return
        for place in found:
            self._forget(execution_id, place)
        self._executor.cancel(execution_id, task, item, before=before)
        self._pump_soon()

    def recall(self, queue: str, recall: Recall) -> None:
        """Tell the workers of a queue that nobody waits any more for what they were ordered."""
        if not self.is_local(queue):
            key, now_ms = recall.execution_id.encode(), self._clock.now_ms()
            record = OutRecord(workflow_tasks(queue).name, key, encode_recall(recall), now_ms)
            self._send_soon(_Order(record, None, None))

    def drop(self, owner: Owner) -> None:
        """A partition goes: its attempts are ended and not reported."""
        self._owners.pop(owner, None)
        gone = [name for name, places in self._running.items() if any(one.owner is owner for one in places.values())]
        for execution_id in gone:
            self.cancel(execution_id, None, None, sys.maxsize)

    async def close(self) -> None:
        """End what is being sent."""
        if self._later is not None:
            self._later.cancel()
        for task in self._sends:
            task.cancel()
        await asyncio.gather(*self._sends, return_exceptions=True)

    # ---- here ----

    def _hand_over(self, executor: TaskExecutor, owner: Owner, wanted: Wanted) -> bool:
        """False when every slot is taken."""
        order = owner.order(wanted)
        if order is None:
            return True
        report = self._owners.get(owner)
        if report is None:
            report = self._owners[owner] = partial(self._reported, owner)
        if not executor.submit(order, report):
            return False
        self._running.setdefault(order.execution_id, {})[order.task, order.item] = _Running(owner, order.token)
        owner.began(order)
        self._began(wanted)
        return True

    def _forget(self, execution_id: str, place: _Place) -> None:
        running = self._running[execution_id]
        del running[place]
        if not running:
            del self._running[execution_id]

    def _wait(self, owner: Owner, wanted: Wanted) -> None:
        key = (wanted.execution_id, wanted.dispatch.token)
        self._line.push(key, (owner, wanted), wanted.workflow, wanted.priority)

    def _reported(self, owner: Owner, report: Report | Heartbeat) -> None:
        if isinstance(report, Report):
            place = (report.task, report.item)
            one = self._running.get(report.execution_id, {}).get(place)
            if one is not None and one.token == report.token:
                self._forget(report.execution_id, place)
            if len(self._line):
                self._pump_soon()
        if not owner.closed:
            owner.hear(report)

    def _pump_soon(self) -> None:
        """After the executor has let go of the slot."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        self._fill()
        if len(self._line) and self._later is None:
            # The end of an attempt that was cancelled is not reported.
            self._later = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look)

    def _look(self) -> None:
        self._later = None
        self._pump()

    def _fill(self) -> None:
        """Hand over what waits. What needs a slot of another kind than is free is passed over, a few at a time.

        The kind of a task is known from its order, which is made once for all that wait of the same task.
        """
        executor = self._executor
        aside: list[tuple[Owner, Wanted]] = []
        full: set[tuple[str, str]] = set()
        try:
            while executor is not None and executor.free and len(aside) < PASSED_OVER:
                found = self._line.pop()
                if found is None:
                    break
                owner, wanted = found
                kind = (wanted.workflow, wanted.dispatch.task)
                if owner.closed:
                    continue
                if kind in full or not self._hand_over(executor, owner, wanted):
                    full.add(kind)
                    aside.append((owner, wanted))
        except Exception as error:  # noqa: BLE001 - a bug here must end the process, not stall a partition
            self._fail(error)
        for owner, wanted in aside:
            self._wait(owner, wanted)

    # ---- elsewhere ----

    def _send(self, owner: Owner, wanted: Wanted) -> None:
        order = owner.order(wanted)
        if order is None:
            return
        value = encode_order(order)
        limit = self._terms().record_bytes
        if len(value) > limit:
            owner.hear(_refused(order, f"the order of {len(value)} bytes is larger than a record may be, {limit}"))
            return
        topic = workflow_tasks(order.queue).name
        headers = (("traceparent", order.traceparent.encode()),) if order.traceparent else ()
        key = order.execution_id.encode()
        record = OutRecord(topic, key, value, self._clock.now_ms(), headers)
        self._began(wanted)
        self._send_soon(_Order(record, owner, order))

    def _send_soon(self, one: _Order) -> None:
        topic = one.record.topic
        sending = self._sending.get(topic)
        if sending is not None:
            sending.append(one)
            return
        self._sending[topic] = [one]
        task = asyncio.create_task(self._flush(topic), name="workflow tasks")
        self._sends.add(task)
        task.add_done_callback(self._sent)

    async def _flush(self, topic: str) -> None:
        """Send what one turn of the loop has gathered for a topic; what cannot go there is a failed attempt."""
        try:
            if topic not in self._topics:
                await self._publisher.partitions(topic)
                self._topics.add(topic)
        except PublishFailed as error:
            for one in self._sending.pop(topic):
                self._refused(one, error)
            return
        sending = self._sending.pop(topic)
        try:
            await self._publisher.publish([one.record for one in sending])
        except PublishFailed:
            # Which one it was is found by sending each alone; those that were taken come twice, which is allowed.
            for one in sending:
                await self._send_alone(one)

    async def _send_alone(self, one: _Order) -> None:
        try:
            await self._publisher.publish([one.record])
        except PublishFailed as error:
            self._refused(one, error)

    def _refused(self, one: _Order, error: PublishFailed) -> None:
        """Tell the engine of an order that can never be sent; raises what concerns more than this order."""
        order = one.order
        if order is None or one.owner is None:
            if error.reason != UNKNOWN_TOPIC:
                raise error
            self._topics.discard(one.record.topic)
            return  # without the topic no order ever was on it
        if error.reason == UNKNOWN_TOPIC:
            self._topics.discard(one.record.topic)
            message = f"there is no task queue {order.queue!r}: no worker has it in tasks.queues"
            failure = TaskError(type="UnknownQueue", message=message)
        elif error.reason == TOO_LARGE:
            size = len(one.record.value or b"")
            message = f"the order has {size} bytes with the input and results that it needs, too many for a record"
            failure = TaskError(type="OrderTooLarge", message=message, retryable=False, detail={"bytes": size})
        else:
            raise error
        if not one.owner.closed:
            now_ms = self._clock.now_ms()
            one.owner.hear(
                Report(
                    execution_id=order.execution_id,
                    task=order.task,
                    item=order.item,
                    attempt=order.attempt,
                    token=order.token,
                    error=failure,
                    started_ms=now_ms,
                )
            )

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sends.discard(task)
        if error := error_of(task):
            self._fail(error)

    def _began(self, wanted: Wanted) -> None:
        if wanted.asked_ms:
            late_s = max(0.0, (self._clock.now_ms() - wanted.asked_ms) / 1000)
            metrics.WORKFLOW_TRIGGER_LATENCY.observe(late_s)


def _refused(order: TaskOrder, why: str) -> Report:
    """An attempt that cannot be handed out."""
    return Report(
        execution_id=order.execution_id,
        task=order.task,
        item=order.item,
        attempt=order.attempt,
        token=order.token,
        error=TaskError(type="PayloadTooLarge", message=why, retryable=False),
    )
