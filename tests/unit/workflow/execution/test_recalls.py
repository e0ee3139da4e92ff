"""Laws of recalls: what nobody waits for any more is not begun, or is ended; nothing else is touched."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.tasks import OrderBatch, QueueLimits, TaskQueue
from app.adapters.clock import SystemClock
from app.domain.workflow.commands import Heartbeat, Report
from app.domain.workflow.orders import Recall, TaskOrder
from app.ports import Reported
from app.workflow_wire import decode_command, decode_recall, encode_order, encode_recall
from config.topics import WORKFLOW_DEADLETTER
from tests.helpers.streams import Outbox, Record
from tests.helpers.task_types import eventually, order

TOPIC = "workflow.tasks.q"


class Hand:
    """An executor that a test drives by hand."""

    def __init__(self, slots: int = 100) -> None:
        self.slots = slots
        self.running: dict[str, tuple[TaskOrder, Reported]] = {}
        self.begun: list[str] = []

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    def submit(self, order: TaskOrder, report: Reported) -> bool:
        if self.free <= 0:
            return False
        self.begun.append(_name(order))
        self.running[_name(order)] = (order, report)
        return True

    def cancel(
        self, execution_id: str, task: str | None = None, item: int | None = None, *, before: int | None = None
    ) -> None:
        assert before is not None
        meant = Recall(execution_id=execution_id, recalls_before=before, task=task, item=item)
        for name in [name for name, (one, _) in self.running.items() if meant.covers(one)]:
            del self.running[name]

    async def close(self) -> None:
        self.running.clear()

    def end(self, name: str) -> None:
        one, report = self.running.pop(name)
        report(
            Report(execution_id=one.execution_id, task=one.task, item=one.item, attempt=one.attempt, token=one.token)
        )


def _name(one: TaskOrder) -> str:
    return f"{one.execution_id}/{one.task}/{one.token}"


class Batch:
    """What the transport gives; `highwater` is where its partition ends."""

    def __init__(self, records: Sequence[Record], highwater: int, partition: int) -> None:
        self.topic = TOPIC
        self.partition = partition
        self.records = records
        self.highwater: int | None = highwater
        self.is_current = True
        self.acks = 0

    def ack(self) -> None:
        self.acks += 1


def batch(first: int, *said: TaskOrder | Recall | bytes, highwater: int | None = None, partition: int = 0) -> Batch:
    values = [
        one if isinstance(one, bytes) else encode_order(one) if isinstance(one, TaskOrder) else encode_recall(one)
        for one in said
    ]
    records = [Record(TOPIC, partition, at, 0, b"e", value) for at, value in enumerate(values, first)]
    return Batch(records, first + len(records) if highwater is None else highwater, partition)


class Scene:
    """A queue that takes what a test feeds it."""

    def __init__(self, slots: int = 100) -> None:
        self.executor = Hand(slots)
        self.outbox = Outbox()
        self._feed: asyncio.Queue[Batch] = asyncio.Queue()
        self.queue = TaskQueue(self.executor, self.outbox, SystemClock(), 2, QueueLimits())

    def feed(self, *batches: Batch) -> None:
        for one in batches:
            self._feed.put_nowait(one)

    async def batches(self) -> AsyncIterator[OrderBatch]:
        while True:
            yield await self._feed.get()

    def reported(self) -> list[str]:
        said = [decode_command(record.value) for record in self.outbox.records]
        return [f"{one.execution_id}/{one.task}/{one.token}" for one in said if isinstance(one, Report)]


@contextlib.asynccontextmanager
async def scene(slots: int = 100) -> AsyncIterator[Scene]:
    made = Scene(slots)
    running = asyncio.create_task(made.queue.run(made.batches()))
    try:
        yield made
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await made.queue.close()


def one(task: str = "a", token: int = 1, execution_id: str = "e") -> TaskOrder:
    return order("test.async", task=task, token=token, execution_id=execution_id)


def recall(before: int, task: str | None = None, item: int | None = None, execution_id: str = "e") -> Recall:
    return Recall(execution_id=execution_id, recalls_before=before, task=task, item=item)


async def test_recall_ends_what_runs_and_reports_nothing_of_it() -> None:
    async with scene() as made:
        orders, recalled = batch(0, one("a", 1), one("b", 2), one("c", 9)), batch(3, recall(5))
        made.feed(orders)
        await eventually(lambda: len(made.executor.running) == 3)
        made.feed(recalled)
        await eventually(lambda: list(made.executor.running) == ["e/c/9"])
        await eventually(lambda: recalled.acks)
        assert (orders.acks, made.queue.in_flight) == (0, 1)
        made.executor.end("e/c/9")
        await eventually(lambda: orders.acks)
        assert made.reported() == ["e/c/9"]


async def test_recall_reaches_an_executor_that_is_full_and_frees_it_for_those_behind() -> None:
    async with scene(slots=1) as made:
        made.feed(batch(0, one("a", 1), one("b", 2), one("c", 3, "other")))
        await eventually(lambda: made.executor.begun)
        made.feed(batch(3, recall(3)))
        await eventually(lambda: list(made.executor.running) == ["other/c/3"])
        assert made.executor.begun == ["e/a/1", "other/c/3"]


async def test_order_is_not_begun_when_its_recall_lies_behind_it() -> None:
    """It was delivered before, to a worker that died: this one must not begin what is recalled already."""
    async with scene() as made:
        first = batch(10, one("a", 1), one("x", 1, "other"), highwater=13)
        made.feed(first)
        await eventually(lambda: made.queue._waiting)
        assert made.executor.begun == []
        made.feed(batch(12, recall(2)))
        await eventually(lambda: made.executor.begun)
        assert made.executor.begun == ["other/x/1"]
        made.executor.end("other/x/1")
        await eventually(lambda: first.acks)


async def test_partition_that_says_it_is_longer_than_what_comes_holds_up_nobody_for_long() -> None:
    async with scene() as made:
        made.feed(batch(0, one(), highwater=1_000))
        await eventually(lambda: made.executor.begun)


@pytest.mark.parametrize("is_ours", [True, False], ids=["paused with all that may be outstanding", "revoked"])
async def test_partition_that_is_never_read_up_holds_up_no_other_one_however_busy_that_is(is_ours: bool) -> None:
    async with scene() as made:
        new = batch(0, one("new", 1, "other"), highwater=100_000)
        made.feed(batch(0, one("old", 1), partition=1), new)
        await eventually(lambda: made.executor.begun == ["e/old/1"])
        new.is_current = is_ours
        for token in range(2, 1_000):
            made.feed(batch(token - 1, one("old", token), partition=1))
            await eventually(lambda token=token: f"e/old/{token}" in made.executor.begun)  # type: ignore[misc]
            if not made.queue._read_up:
                break
            await asyncio.sleep(0.01)  # nothing of it is waited for: the other one is busy
        else:
            pytest.fail("its orders wait for good")
        made.feed(batch(token, one("last", 1), partition=1))
        await eventually(lambda: "e/last/1" in made.executor.begun)
        assert ("other/new/1" in made.executor.begun) is is_ours


async def test_partition_that_comes_back_further_on_is_read_up_first() -> None:
    """Others have had it meanwhile, and obeyed a recall that this one has not read."""
    async with scene() as made:
        made.feed(batch(0, one("a", 1, "other")))
        await eventually(lambda: made.executor.begun == ["other/a/1"])
        made.feed(batch(10, one("a", 2), highwater=12))
        await eventually(lambda: made.queue._waiting)
        made.feed(batch(11, recall(3)))
        made.feed(batch(12, one("a", 4)))
        await eventually(lambda: len(made.executor.begun) == 2)
        assert made.executor.begun == ["other/a/1", "e/a/4"]


async def test_order_that_comes_after_its_recall_is_not_begun() -> None:
    async with scene() as made:
        late = batch(1, one("a", 1), one("a", 7))
        made.feed(batch(0, recall(5, "a")), late)
        await eventually(lambda: made.executor.begun)
        assert made.executor.begun == ["e/a/7"]
        made.executor.end("e/a/7")
        await eventually(lambda: late.acks)


async def test_recall_that_comes_again_ends_no_later_attempt() -> None:
    async with scene() as made:
        made.feed(batch(0, one("a", 1), recall(2, "a"), one("a", 4)), batch(1, recall(2, "a")))
        await eventually(lambda: made.executor.begun)
        again = batch(3, recall(2, "a"))
        made.feed(again)
        await eventually(lambda: again.acks)
        assert list(made.executor.running) == ["e/a/4"]


async def test_order_that_is_delivered_again_while_it_runs_runs_once_and_is_done_for_both() -> None:
    async with scene() as made:
        before, again = batch(0, one()), batch(0, one())
        made.feed(before)
        await eventually(lambda: made.executor.begun)
        before.is_current = False
        made.feed(again, batch(1, one("b")))
        await eventually(lambda: len(made.executor.begun) == 2)
        made.executor.end("e/a/1")
        await eventually(lambda: again.acks)
        assert (made.executor.begun, made.reported()) == (["e/a/1", "e/b/1"], ["e/a/1"])


async def test_order_of_a_partition_that_was_given_up_is_not_begun() -> None:
    async with scene(slots=1) as made:
        gone = batch(0, one("a"), one("b"))
        made.feed(gone)
        await eventually(lambda: made.executor.begun)
        gone.is_current = False
        made.feed(batch(2, one("c")))
        made.executor.end("e/a/1")
        await eventually(lambda: len(made.executor.begun) == 2)
        assert made.executor.begun == ["e/a/1", "e/c/1"]
        assert gone.acks == 0


@pytest.mark.parametrize("value", [b"", b"null", b'{"recalls_before": 1}', b'{"recalls_before": "x"}', b"\xff"])
async def test_recall_that_cannot_be_read_is_a_dead_letter_and_runs_nothing(value: bytes) -> None:
    async with scene() as made:
        broken = batch(0, value)
        made.feed(broken)
        await eventually(lambda: broken.acks)
        assert [record.topic for record in made.outbox.records] == [WORKFLOW_DEADLETTER.name]
        assert made.executor.begun == []


async def test_heartbeat_of_a_recalled_order_is_harmless() -> None:
    async with scene() as made:
        made.feed(batch(0, one()))
        await eventually(lambda: made.executor.begun)
        _, report = made.executor.running["e/a/1"]
        made.feed(batch(1, recall(2)))
        await eventually(lambda: not made.executor.running)
        report(Heartbeat(execution_id="e", task="a", item=None, attempt=1, token=1))
        report(Report(execution_id="e", task="a", item=None, attempt=1, token=1))
        assert made.reported() == []


@given(
    st.builds(
        Recall,
        execution_id=st.text(min_size=1),
        recalls_before=st.integers(0, 2**53),
        task=st.none() | st.text(),
        item=st.none() | st.integers(0, 10_000),
    )
)
def test_recall_comes_back_and_no_order_is_one(made: Recall) -> None:
    assert decode_recall(encode_recall(made)) == made
    assert decode_recall(encode_order(one(made.task or "a", made.recalls_before))) is None
