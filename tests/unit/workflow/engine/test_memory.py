"""Laws of what stays in memory: a bound in bytes, and nothing of a partition that went."""

import gc
import weakref

from agents.stage import Stage
from app import metrics
from app.domain.workflow.commands import Signal
from app.domain.workflow.definition import MapOver
from app.roles.coordinator import export_mailboxes
from tests.helpers.engine import started, task, workflow
from tests.helpers.stages import SetClock
from tests.unit.workflow.engine.test_engine import opened

ASK = workflow("ask", task("a"), task("ask", "a", type="approval"), task("b", "ask"))


async def test_histories_in_memory_are_no_larger_than_they_may_be_and_the_others_go_on_from_their_rows() -> None:
    world = await opened(ASK, cache_bytes=50_000, chunk_bytes=4_096)
    names = [f"e{n:02}" for n in range(40)]
    world.tell(*(started("ask", name, {"x": "x" * 5_000}) for name in names))
    await world.drain(forward_ms=500)
    assert 0 < world.engine.store.cached_bytes <= 50_000
    assert len(world.engine.store) <= 10
    world.tell(*(Signal(execution_id=name, command_id="s", name="ask") for name in names))
    await world.drain(forward_ms=500)
    assert [world.state(name).status for name in names] == ["succeeded"] * 40  # type: ignore[union-attr]
    assert (len(world.engine.store), world.engine.store.cached_bytes) == (0, 0)


async def test_the_size_of_what_is_in_memory_is_that_of_its_records_however_it_came_there() -> None:
    world = await opened(workflow("fan", task("a", map=MapOver(over="input.l", concurrency=4))), chunk_events=5)
    world.tell(started("fan", "e", {"l": list(range(30))}), started("fan", "f", {"l": [1, 2]}))
    await world.take(10)
    for _ in range(20):
        world.executor.end(0)
        await world.tick()
    written = world.engine.store.cached_bytes
    assert written > 0
    await world.crash()
    for name in ("e", "f"):
        world.engine.store.get(name)
    assert world.engine.store.cached_bytes == written
    world.engine.store.passivate(float("inf"))
    assert (len(world.engine.store), world.engine.store.cached_bytes) == (0, 0)


async def test_one_execution_stays_in_memory_however_large_it_is() -> None:
    world = await opened(ASK, cache_bytes=1)
    world.tell(started("ask", "e", {"x": "x" * 5_000}))
    await world.drain(forward_ms=500)
    assert len(world.engine.store) == 1


async def test_of_a_partition_that_went_nothing_stays_in_memory() -> None:
    world = await opened(ASK)
    world.tell(*(started("ask", f"e{n}") for n in range(10)))
    await world.drain(forward_ms=500)
    engines = {0: world.engine}
    stage = Stage("workflow", None, None, SetClock(), lambda: 1.0)  # type: ignore[arg-type]
    export_mailboxes(stage, engines)
    assert list(engines) == [0]
    store = world.engine.store
    assert len(store) == 10
    world.engine.close()
    assert (len(store), store.cached_bytes) == (0, 0)
    metrics.WORKFLOW_MAILBOX.labels("0").set(7)
    export_mailboxes(stage, engines)
    assert engines == {}
    assert metrics.WORKFLOW_MAILBOX.labels("0")._value.get() == 0
    gone = weakref.ref(world.engine)
    del world.engine
    gc.collect()
    assert gone() is None
