"""Laws of a stage whose logic hears from elsewhere: bounded transactions, woken at once, acting once all is durable."""

import asyncio
from collections.abc import Awaitable, Sequence

from agents.stage import Stage
from app.ports import InRecord
from tables.partition import Changes
from tests.helpers.stages import Scene, SetClock, StageBatch, Told, until


class Live(Told):
    """Takes three records at a time and ticks when it has heard something."""

    def __init__(self, clock: SetClock) -> None:
        super().__init__(clock, tick_writes=True)
        self.heard = 0
        self.durable: list[Changes] = []
        self.closed = False

    def tick(self, now_ms: int) -> Changes | None:
        self.heard = 0
        return super().tick(now_ms)

    def tick_in_s(self) -> float:
        return 0.0 if self.heard else 3_600.0

    def intake(self) -> int:
        return 3

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
