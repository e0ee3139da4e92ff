"""Laws of how long a start is known: as long as its execution is kept, and after an absence until all came again."""

import pytest

from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.world import World

LINE = workflow("line", task("a"), task("b", "a"))
RETENTION_MS = 86_400_000


async def _ended(**terms: int) -> World:
    world = World(LINE, **terms)
    await world.open()
    world.tell(started("line", "line:signals-0-7"))
    await world.drain()
    return world


@pytest.mark.parametrize("absent_ms", [0, 1, RETENTION_MS, 10 * RETENTION_MS])
async def test_a_start_that_comes_again_after_an_absence_of_any_length_begins_nothing(absent_ms: int) -> None:
    world = await _ended(retention_ms=RETENTION_MS)
    before = len(world.history("line:signals-0-7"))
    world.clock.ms += absent_ms
    await world.crash(disk_too=True)
    for _ in range(50):
        world.clock.ms += 10_000
        await world.tick()
    world.tell(started("line", "line:signals-0-7"))
    await world.drain(forward_ms=1_000)
    assert len(world.history("line:signals-0-7")) == before
    assert set(world.executor.made.values()) == {1}


@pytest.mark.parametrize("retention_ms", [1_000, 3_600_000])
async def test_what_is_older_than_the_retention_is_forgotten_all_the_same(retention_ms: int) -> None:
    world = await _ended(retention_ms=retention_ms)
    for _ in range(20):
        world.clock.ms += max(2_000, retention_ms // 10)
        await world.tick()
    assert world.rows(b"f") == []
