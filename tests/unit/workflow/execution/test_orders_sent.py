"""Laws of orders for task queues: one that cannot be sent is a failed attempt, and nobody else's trouble."""

import asyncio
from collections.abc import Sequence

from agents.engine_dispatch import Dispatcher
from agents.engine_terms import Terms, Wanted
from app.adapters.clock import SystemClock
from app.domain.workflow.commands import Heartbeat, Report
from app.domain.workflow.effects import Dispatch
from app.domain.workflow.orders import TaskOrder
from app.errors import PublishFailed
from app.ports import OutRecord
from tests.helpers.task_types import eventually, order


class Topics:
    """Knows the queue `here`; refuses records of more than 1,000 bytes, or everything."""

    def __init__(self) -> None:
        self.sent: list[OutRecord] = []
        self.closed = False

    async def partitions(self, topic: str) -> int:
        if topic != "workflow.tasks.here":
            raise PublishFailed("unknown_topic", 0, topic)
        return 1

    async def publish(self, records: Sequence[OutRecord]) -> None:
        if self.closed:
            raise PublishFailed("stopped", len(records))
        if any(len(record.value or b"") > 1_000 for record in records):
            raise PublishFailed("record_too_large", 1)
        self.sent += records

    def last_offset(self, topic: str, partition: int) -> int | None:
        return None


class Owner:
    """Gives out the orders it was made with, by their task."""

    closed = False

    def __init__(self, *orders: TaskOrder) -> None:
        self.orders = {one.task: one for one in orders}
        self.heard: list[Report | Heartbeat] = []

    def order(self, wanted: Wanted) -> TaskOrder | None:
        return self.orders[wanted.dispatch.task]

    def began(self, order: TaskOrder) -> None:
        raise AssertionError(f"{order.task} begins elsewhere")

    def hear(self, report: Report | Heartbeat) -> None:
        self.heard.append(report)

    def wanted(self) -> list[Wanted]:
        return [Wanted("e-1", "w", 0, one.queue, Dispatch(one.task, None, 1, 1), 0) for one in self.orders.values()]


async def offered(topics: Topics, owner: Owner) -> list[BaseException]:
    failures: list[BaseException] = []
    dispatcher = Dispatcher(None, topics, SystemClock(), Terms, failures.append)
    for wanted in owner.wanted():
        dispatcher.offer(owner, wanted)
    await eventually(lambda: failures or len(topics.sent) + len(owner.heard) == len(owner.orders))
    await asyncio.sleep(0)
    await dispatcher.close()
    return failures


async def test_order_for_a_queue_that_is_not_there_fails_its_attempt_alone() -> None:
    topics, owner = Topics(), Owner(order("a", task="a", queue="gone"), order("b", task="b", queue="here"))
    assert await offered(topics, owner) == []
    (report,) = owner.heard
    assert isinstance(report, Report)
    assert report.error is not None
    assert (report.task, report.error.type, report.error.retryable) == ("a", "UnknownQueue", True)
    assert [record.topic for record in topics.sent] == ["workflow.tasks.here"]


async def test_order_too_large_for_a_record_fails_its_attempt_alone() -> None:
    large = order("a", task="a", queue="here", value="x" * 2_000)
    topics, owner = Topics(), Owner(large, order("b", task="b", queue="here"))
    assert await offered(topics, owner) == []
    (report,) = owner.heard
    assert isinstance(report, Report)
    assert report.error is not None
    assert (report.task, report.error.type, report.error.retryable) == ("a", "OrderTooLarge", False)
    assert len(topics.sent) == 1


async def test_broker_trouble_ends_the_process_and_reports_nothing() -> None:
    topics, owner = Topics(), Owner(order("a", task="a", queue="here"))
    topics.closed = True
    failures = await offered(topics, owner)
    assert [type(failure) for failure in failures] == [PublishFailed]
    assert owner.heard == []
