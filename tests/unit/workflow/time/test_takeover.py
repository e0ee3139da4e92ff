"""The law of schedules and backfills: wherever their owner dies, every due time is run once and its end is heard."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.schedules import Timekeeper, _backfill_row, _schedule_row
from app.domain.workflow.backfill import BackfillSpec, BackfillStart
from app.domain.workflow.cadence import Cadence
from app.domain.workflow.definition import Concurrency
from app.domain.workflow.events import ExecutionStarted
from app.domain.workflow.schedule import SchedulePause, SchedulePut, ScheduleRunNow, ScheduleSpec
from tests.helpers.engine import task, workflow
from tests.unit.workflow.engine.world import EXPRESSIONS, World

FLOWS: Final = (
    workflow("line", task("a"), task("b", "a")),
    workflow("bad", task("a", do="fail")),
    workflow("one", task("a"), concurrency=Concurrency(limit=1)),
)
STOPS: Final = ("", "", "", "decided", "written", "lost", "settled")
T0: Final = 1_763_689_000_000
COUNT: Final = 7

STEP: Final = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 5), st.sampled_from(STOPS)),
    st.tuples(st.just("tick"), st.sampled_from(STOPS)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("time"), st.integers(1, 3_000)),
    st.tuples(st.just("repeat"), st.integers(0, 40)),
    st.tuples(st.just("run"), st.integers(0, 3)),
)


def tell(world: World, *commands: Any) -> None:
    for command in commands:
        world._append(command.entity_id.encode(), msgspec.json.encode(command))


def _starts(world: World, prefix: str) -> list[ExecutionStarted]:
    firsts = (events[0] for name, events in world._histories.items() if name.startswith(prefix))
    return [first for first in firsts if isinstance(first, ExecutionStarted)]


async def play(flow: str, overlap: str, steps: Sequence[tuple[Any, ...]]) -> None:
    world = World(*FLOWS, slots=3, cache_executions=3)
    world.make_entities = lambda get: Timekeeper(get, world.definitions, EXPRESSIONS, lambda: 1)
    await world.open()
    every_second = Cadence(every_ms=1_000)
    spec = ScheduleSpec(workflow=flow, cadence=every_second, overlap=overlap, catch_up="all")  # type: ignore[arg-type]
    filled = BackfillSpec(
        workflow=flow, cadence=every_second, from_ms=T0, to_ms=T0 + (COUNT - 1) * 1_000, concurrency=2
    )
    tell(
        world,
        SchedulePut(entity_id="schedule:s", command_id="put", spec=spec),
        BackfillStart(entity_id="backfill:b", command_id="start", spec=filled, total=COUNT),
    )
    for step, *rest in steps:
        match step:
            case "take":
                await world.take(rest[0], rest[1])
            case "tick":
                await world.tick(rest[0])
            case "end" if world.executor.running:
                world.executor.end(rest[0])
            case "time":
                world.clock.ms += rest[0]
            case "repeat" if world.commands:
                again = world.commands[rest[0] % len(world.commands)]
                world._append(again.key, again.value)
            case "run":
                tell(world, ScheduleRunNow(entity_id="schedule:s", command_id=f"now{rest[0]}"))
    await world.drain(forward_ms=3_000)
    tell(world, SchedulePause(entity_id="schedule:s", command_id="pause"))
    await world.drain(forward_ms=3_000)
    _check_schedule(world, overlap)
    _check_backfill(world, failing=flow == "bad")
    assert world.rows(b"x") == []
    assert world.rows(b"t") == []


def _check_schedule(world: World, overlap: str) -> None:
    row = world.tables.get(b"sschedule:s")
    assert row is not None
    state = _schedule_row.decode(row).state
    runs = [event for event in _starts(world, "s-") if event.trigger["schedule"] == "s"]
    on_time = sorted(event.trigger["due_ms"] for event in _starts(world, "s-2"))
    assert state.running == ()
    assert state.counts.started == len(runs), "what is counted as started has a history"
    assert len(set(on_time)) == len(on_time)
    if overlap in {"queue", "allow"}:
        left = list(state.waiting)
        expected = range(on_time[0], (left or on_time)[-1] + 1, 1_000)
        assert on_time + left == list(expected), "no due time is lost"


def _check_backfill(world: World, *, failing: bool) -> None:
    row = world.tables.get(b"sbackfill:b")
    assert row is not None
    state = _backfill_row.decode(row).state
    assert sorted(event.trigger["due_ms"] for event in _starts(world, "backfill.b-")) == [
        T0 + n * 1_000 for n in range(COUNT)
    ]
    assert (state.status, state.succeeded, state.failed) == ("done", 0 if failing else COUNT, COUNT if failing else 0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["line", "bad", "one"]),
    st.sampled_from(["queue", "allow", "skip"]),
    st.lists(STEP, min_size=5, max_size=50),
)
def test_every_due_time_is_run_once_and_its_end_is_heard_wherever_the_owner_dies(
    flow: str, overlap: str, steps: list[tuple[Any, ...]]
) -> None:
    asyncio.run(play(flow, overlap, steps))
