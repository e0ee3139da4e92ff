"""Laws of what an owner loads: timers that a pause used up, and how long a takeover may hold the loop."""

import pytest

from agents.engine_pace import READING_S
from app.domain.workflow.commands import Pause, Report, Resume
from app.domain.workflow.definition import Retry, Workflow
from tests.helpers.engine import started, task, workflow
from tests.helpers.stages import SetClock
from tests.unit.workflow.engine.test_engine import opened

NAP = workflow("flow", task("a", type="wait", params={"seconds": 10}), task("b", "a"))
AGAIN = workflow("flow", task("a", do="fail_first:1", retry=Retry(attempts=2, backoff_s=10, jitter=0)))
BOUND = workflow("flow", task("a", type="approval"), timeout_s=10)


@pytest.mark.parametrize(("flow", "end"), [(NAP, "succeeded"), (AGAIN, "succeeded"), (BOUND, "timed_out")])
@pytest.mark.parametrize("how", ["stays", "crash", "forgotten"])
async def test_a_timer_that_a_pause_used_up_comes_after_the_resume_even_when_the_clock_went_back(
    flow: Workflow, end: str, how: str
) -> None:
    world = await opened(flow)
    world.tell(started("flow", "e"))
    await world.take(10)
    while world.executor.running:
        world.executor.end(0)
    await world.tick()
    world.tell(Pause(execution_id="e", command_id="p"))
    await world.take(10)
    world.clock.ms += 10_050
    await world.tick()
    assert world.rows(b"t") == [], "it fell due during the pause"
    if how == "crash":
        await world.crash()
    elif how == "forgotten":
        world.engine.store.passivate(float("inf"))
    world.clock.ms -= 200
    world.tell(Resume(execution_id="e", command_id="r"))
    await world.take(10)
    await world.drain(forward_ms=300_000)
    state = world.state("e")
    assert state is not None
    assert state.status == end
    assert world.rows(b"t") == []


async def test_the_end_of_an_attempt_whose_time_is_watched_in_memory_deletes_no_row_after_a_load() -> None:
    world = await opened(workflow("bound", task("a", timeout_s=60), task("b", "a", type="approval", timeout_s=60)))
    world.tell(started("bound", "e"))
    await world.take(1)
    await world.crash()
    await world.tick()
    (order, report), *_ = world.executor.running.values()
    world.executor.running.clear()
    report(Report(execution_id="e", task="a", item=None, attempt=1, token=order.token, result=1))
    changes = world.engine.tick(world.clock.ms)
    assert changes is not None
    assert [key for key, value in changes.rows.items() if value is None] == []
    assert len([key for key in changes.rows if key.startswith(b"t")]) == 1, "the approval's timeout is durable"


class SlowClock(SetClock):
    """Each look at it takes a while."""

    look_s = 0.005
    looked_s = 0.0

    def monotonic_s(self) -> float:
        self.looked_s += self.look_s
        return super().monotonic_s() + self.looked_s


async def test_a_takeover_orders_what_is_in_hand_a_few_milliseconds_at_a_time() -> None:
    world = await opened(workflow("flow", task("a")), slots=100)
    world.tell(*(started("flow", f"e{n:02}") for n in range(60)))
    await world.take(100)
    assert len(world.executor.running) == 60
    world.clock = SlowClock()
    await world.crash()
    turns = []
    while len(world.executor.running) < 60:
        assert world.engine.tick_in_s() <= 0, "the rest does not wait"
        before = len(world.executor.running)
        await world.tick()
        turns.append(len(world.executor.running) - before)
    assert max(turns) <= READING_S / SlowClock.look_s
    assert min(turns) >= 1
    await world.drain(forward_ms=500)
    assert world.engine.active == 0


async def test_executions_of_a_lost_definition_are_given_up_a_few_milliseconds_at_a_time() -> None:
    world = await opened(workflow("flow", task("a")), slots=100)
    world.tell(*(started("flow", f"e{n:02}") for n in range(60)))
    await world.take(100)
    world.definitions.forget("flow")
    world.clock = SlowClock()
    await world.crash()
    await world.tick()
    assert 60 - READING_S / SlowClock.look_s <= world.engine.active < 60
    await world.drain(forward_ms=5_000)
    assert world.engine.active == 0


async def test_timers_that_fell_due_together_fire_a_few_milliseconds_at_a_time_and_each_once() -> None:
    world = await opened(workflow("flow", task("a", type="wait", params={"seconds": 1}), task("b", "a")))
    world.tell(*(started("flow", f"e{n:02}") for n in range(60)))
    await world.take(100)
    clock = SlowClock()
    clock.ms = world.clock.ms + 60_000
    world.clock = clock
    await world.crash()
    await world.tick()
    assert 60 - READING_S / SlowClock.look_s <= len(world.rows(b"t")) < 60
    assert world.engine.tick_in_s() <= 0, "the rest does not wait"
    await world.drain(forward_ms=5_000)
    assert (world.engine.active, world.rows(b"t")) == (0, [])
    assert sum(world.executor.made.values()) == 60


async def test_a_timer_that_is_cleared_while_it_waits_for_its_turn_is_not_brought_back() -> None:
    asks = [task(name, type="approval", timeout_s=10) for name in ("a", "b")]
    world = await opened(workflow("flow", *asks, timeout_s=10))
    world.tell(*(started("flow", f"e{n:02}") for n in range(20)))
    await world.take(100)
    clock = SlowClock()
    clock.ms = world.clock.ms + 60_000
    clock.look_s = READING_S / 3  # the first of an execution's timers looks twice
    world.clock = clock
    await world.crash()
    while world.engine.active:
        await world.tick()
        assert len(world.engine.timers) == len(world.rows(b"t"))
    assert world.rows(b"t") == []
