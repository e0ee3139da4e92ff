"""Laws of a stage whose logic hears from elsewhere: bounded transactions, woken at once, acting once all is durable."""

import asyncio
from collections.abc import Awaitable, Iterator, Sequence

from agents.stage import Stage
from app.ports import InRecord, OutRecord
from tables.partition import Changes, SingleTrip
from tests.helpers.stages import Scene, SetClock, StageBatch, Told, until
from tests.helpers.tables import Gate, LogPublisher


class Live(Told):
    """Takes three records at a time and ticks when it has heard something."""

    def __init__(self, clock: SetClock) -> None:
        super().__init__(clock, tick_writes=True)
        self.heard = 0
        self.durable: list[Changes] = []
        self.closed = False
        self.wanted = 3
        self.answers = 0  # of what begins early, so many rounds answer
        self.outputs: list[OutRecord] = []  # of the next batch

    def take(self, records: Sequence[InRecord], now_ms: int, *, behind: bool) -> Changes:
        changes = super().take(records, now_ms, behind=behind)
        changes.outputs, self.outputs = self.outputs, []
        return changes

    def tick(self, now_ms: int) -> Changes | None:
        self.heard = 0
        return super().tick(now_ms)

    def tick_in_s(self) -> float:
        return 0.0 if self.heard else 3_600.0

    def intake(self, records: Iterator[InRecord]) -> int:
        return self.wanted

    def early(self, changes: Changes) -> bool:
        return self.answers > 0

    def add_heard(self, changes: Changes, now_ms: int) -> None:
        self.answers -= 1
        changes.put(b"answer %d" % self.answers, b"v")

    def conclude(self, changes: Changes, now_ms: int) -> None:
        changes.put(b"concluded", b"v")

    def prepare(self, records: Sequence[InRecord]) -> Awaitable[None] | None:
        return None

    def settled(self, changes: Changes, now_ms: int) -> None:
        self.durable.append(changes)

    def close(self) -> None:
        self.closed = True


async def scene_of(transactions: int = 2) -> tuple[Scene, Live]:
    scene = Scene()
    live = Live(scene.clock)
    scene.stage = Stage("stage", scene._open, lambda _: live, scene.clock, lambda: 1.0, transactions=transactions)
    await scene.begin()
    return scene, live


async def test_a_batch_is_taken_in_parts_and_acknowledged_with_its_last() -> None:
    scene, live = await scene_of()
    batch = StageBatch(0, 8)
    scene.stage.feed(batch)
    await until(lambda: bool(batch.acks))
    assert (live.taken, len(live.durable), batch.acks) == (list(range(8)), 3, 1)
    await scene.stage.close()
    assert live.closed


async def test_no_more_transactions_are_on_their_way_than_allowed() -> None:
    scene, live = await scene_of(transactions=2)
    scene.publisher.gate.allow(0)
    batch = StageBatch(0, 30)
    scene.stage.feed(batch)
    await until(lambda: len(live.taken) == 6)
    for _ in range(50):
        scene.stage.wake(0)
        await asyncio.sleep(0)
    assert (len(live.taken), scene.stage.waiting(0), live.durable) == (6, 24, [])
    scene.publisher.gate.allow(None)
    await until(lambda: bool(batch.acks))
    assert live.taken == list(range(30))
    await scene.stage.close()


async def test_what_is_heard_is_decided_without_a_record_and_told_when_durable() -> None:
    scene, live = await scene_of()
    live.heard = 1
    scene.stage.wake(0)
    await until(lambda: bool(live.durable))
    assert (len(live.ticks), live.taken) == (1, [])
    scene.stage.wake(7)
    await scene.stage.revoked([0])
    live.heard = 1
    scene.stage.wake(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(live.ticks) == 1, "nothing ticks while the group rebalances"
    await scene.stage.assigned([0], kept=True)
    await until(lambda: len(live.durable) == 2)
    await scene.stage.close()


async def test_what_began_early_and_answers_at_once_is_written_with_what_began_it() -> None:
    scene, live = await scene_of()
    live.answers = 2
    scene.stage.feed(StageBatch(0, 1))
    await until(lambda: bool(live.durable))
    assert list(live.durable[0].rows) == [b"k", b"answer 1", b"answer 0", b"concluded"]
    await scene.stage.close()


async def test_the_logic_hears_of_a_transaction_once_it_counts_and_its_range_is_acknowledged_with_its_outputs() -> None:
    scene = Scene()
    live = Live(scene.clock)
    scene.single_trip = SingleTrip()
    scene.publisher = LogPublisher(scene.log, Gate(), Gate())
    scene.stage = Stage("stage", scene._open, lambda _: live, scene.clock, lambda: 1.0, transactions=2)
    await scene.begin()
    scene.publisher.output_gate.allow(0)
    live.outputs = [OutRecord("elsewhere", b"k", b"v", 0, (), 0)]
    first, second = StageBatch(0, 1), StageBatch(1, 1)
    scene.stage.feed(first)
    await until(lambda: len(live.taken) == 1)
    scene.stage.feed(second)
    await until(lambda: len(live.taken) == 2)
    await until(lambda: len(live.durable) == 2)
    assert [len(changes.outputs) for changes in live.durable] == [1, 0]
    assert first.acks == 0
    scene.publisher.output_gate.allow(None)
    await until(lambda: bool(first.acks and second.acks))
    await scene.stage.close()


async def test_nothing_is_decided_while_the_group_rebalances_however_much_waits() -> None:
    scene, live = await scene_of()
    live.wanted = 0
    batch = StageBatch(0, 30)
    scene.stage.feed(batch)
    await until(lambda: scene.stage.waiting(0) == 30)
    await scene.stage.revoked([0])
    live.wanted = live.heard = 3
    for _ in range(50):
        scene.stage.wake(0)
        await asyncio.sleep(0)
    assert (live.taken, live.ticks) == ([], [])
    await scene.stage.assigned([0], kept=True)
    await until(lambda: bool(batch.acks))
    assert live.taken == list(range(30))
    await scene.stage.close()
