"""Laws of what an owner loads: timers that a pause used up, and how long a takeover may hold the loop."""

import pytest

from app.domain.workflow.commands import Pause, Report, Resume
from app.domain.workflow.definition import Retry, Workflow
from tests.helpers.engine import started, task, workflow
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
