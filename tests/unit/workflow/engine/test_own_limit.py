"""Law of the limit that a signal brings with it: so many executions of its key at once, whoever owns them."""

from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.world import World


async def test_the_limit_of_a_signal_holds_for_the_executions_of_its_key_across_a_takeover() -> None:
    flow = workflow("cool", task("a", do="hang"))
    world = World(flow, slots=10)
    await world.open()
    signal = {"kind": "kafka", "concurrency": 2}
    world.tell(*(started("cool", f"p{n}", key="press", trigger=signal) for n in range(4)))
    world.tell(started("cool", "other", key="pump", trigger=signal), started("cool", "asked", key="press"))
    await world.take(10)
    running = {"p0", "p1", "other", "asked"}
    for _ in range(2):
        names = {name for name in ("p0", "p1", "p2", "p3", "other", "asked") if _is_running(world, name)}
        assert names == running, "another key, and what no signal asked for, are not held up"
        assert world.engine.gate.running("cool", "press") == 2
        await world.crash(disk_too=True)
        await world.tick()
    await world.drain()
    assert {world.state(f"p{n}").status for n in range(4)} == {"succeeded"}  # type: ignore[union-attr]
    assert world.engine.gate.running("cool", "press") == 0


def _is_running(world: World, name: str) -> bool:
    state = world.state(name)
    return state is not None and state.status == "running"
