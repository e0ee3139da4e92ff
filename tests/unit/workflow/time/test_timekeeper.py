"""Laws of the schedules and backfills of a partition: what they are told is remembered, and told on."""

from dataclasses import replace

import pytest

from agents.schedules import SUMMARY_INTERVAL_MS
from app.domain.workflow.backfill import BackfillCancel, BackfillSpec, BackfillStart
from app.domain.workflow.cadence import Cadence
from app.domain.workflow.definition import Concurrency
from app.domain.workflow.placement import partition_of
from app.domain.workflow.schedule import (
    ASK_AGAIN_MS,
    ScheduleDelete,
    SchedulePause,
    SchedulePut,
    ScheduleResume,
    ScheduleRunNow,
    ScheduleSpec,
)
from tests.helpers.workflow_time import World, a_workflow

T0 = 1_763_689_020_000
MINUTE = 60_000
NIGHTLY = "schedule:nightly"
PUT = SchedulePut(
    entity_id=NIGHTLY,
    command_id="c1",
    spec=ScheduleSpec(workflow="press-overheat", cadence=Cadence(cron="* * * * *"), input={"device_id": "press-1"}),
)


def a_backfill(count: int = 5, concurrency: int = 2, name: str = "b") -> BackfillStart:
    spec = BackfillSpec(
        workflow="press-overheat",
        cadence=Cadence(every_ms=MINUTE),
        from_ms=T0,
        to_ms=T0 + (count - 1) * MINUTE,
        concurrency=concurrency,
    )
    return BackfillStart(entity_id=f"backfill:{name}", command_id=f"start {name}", spec=spec, total=spec.runs())


def test_a_schedule_starts_its_workflow_at_each_due_time_with_the_time_it_is_for() -> None:
    world = World(a_workflow(), now_ms=T0 + 1)
    world.tell(PUT)
    world.pass_to(T0 + MINUTE)
    (start,) = world.starts
    assert (start.workflow, start.version, start.input) == ("press-overheat", "v1", {"device_id": "press-1"})
    assert start.trigger == {
        "kind": "schedule",
        "schedule": "nightly",
        "due_ms": T0 + MINUTE,
        "due": "2025-11-21T01:38:00.000Z",
    }
    assert start.notify == NIGHTLY
    world.ended(NIGHTLY, start.execution_id)
    world.pass_to(T0 + 2 * MINUTE)
    assert len(world.starts) == 2


def test_a_command_that_comes_twice_is_obeyed_once() -> None:
    world = World(a_workflow(), now_ms=T0)
    world.tell(PUT)
    run = ScheduleRunNow(entity_id=NIGHTLY, command_id="now1")
    world.tell(run)
    world.ended(NIGHTLY, world.starts[0].execution_id)
    rows = dict(world.rows)
    world.tell(run)
    world.tell(PUT)
    assert (len(world.starts), world.rows) == (1, rows)
    start = a_backfill()
    world.tell(start)
    world.tell(start)
    assert len(world.starts) == 3


def test_the_executions_of_a_limited_workflow_are_placed_and_their_end_is_recognised() -> None:
    concurrency = Concurrency(key="input.device_id")
    world = World(a_workflow(concurrency=concurrency), now_ms=T0 + 1)
    world.tell(PUT)
    world.pass_to(T0 + MINUTE)
    (start,) = world.starts
    assert start.key == "press-1"
    assert start.execution_id.endswith(f"Z-p{partition_of(start.execution_id, 4)}")
    world.ended(NIGHTLY, start.execution_id)
    world.pass_to(T0 + 2 * MINUTE)
    assert len(world.starts) == 2, "the first is known to have ended"


def test_a_run_that_is_not_heard_of_is_asked_for_again_under_the_same_id() -> None:
    world = World(a_workflow(), now_ms=T0 + 1)
    world.tell(PUT)
    world.pass_to(T0 + MINUTE)
    world.definitions.workflows.append(a_workflow(version="v2", concurrency=Concurrency()))
    world.pass_to(T0 + MINUTE + ASK_AGAIN_MS)
    assert [start.execution_id for start in world.starts] == [world.starts[0].execution_id] * 2


def test_a_workflow_that_is_unknown_is_told_in_the_summary_and_tried_at_the_next_time() -> None:
    world = World(now_ms=T0 + 1)
    world.tell(PUT)
    world.pass_to(T0 + MINUTE)
    summary = world.summaries[NIGHTLY]
    assert summary is not None
    assert (summary["failed"], summary["error"]) == (1, "Workflow press-overheat is not registered.")
    world.definitions.workflows.append(a_workflow())
    world.pass_to(T0 + 2 * MINUTE)
    assert len(world.starts) == 1


def test_pause_resume_and_delete() -> None:
    world = World(a_workflow(), now_ms=T0)
    world.tell(PUT)
    world.tell(SchedulePause(entity_id=NIGHTLY, command_id="c2"))
    assert world.timers == {}
    world.pass_to(T0 + 10 * MINUTE)
    world.tell(ScheduleResume(entity_id=NIGHTLY, command_id="c3"))
    world.pass_to(T0 + 11 * MINUTE)
    assert [start.trigger["due_ms"] for start in world.starts] == [T0 + 11 * MINUTE]
    world.tell(ScheduleDelete(entity_id=NIGHTLY, command_id="c4"))
    assert (world.rows, world.timers, world.summaries) == ({}, {}, {NIGHTLY: None})
    world.ended(NIGHTLY, world.starts[0].execution_id)
    assert world.rows == {}


def test_a_clock_that_jumps_neither_storms_nor_stalls() -> None:
    world = World(a_workflow(), now_ms=T0)
    world.tell(replace(PUT, spec=replace(PUT.spec, overlap="allow")))
    world.jump_to(T0 + 400 * 1440 * MINUTE)
    assert len(world.starts) == 1
    summary = world.summaries[NIGHTLY]
    assert summary is not None
    assert summary["missed"] == 999
    world.now_ms = T0 + 5 * MINUTE
    world.fire(NIGHTLY, "look", 0)
    world.pass_to(T0 + 6 * MINUTE)
    assert world.starts[-1].trigger["due_ms"] == T0 + 6 * MINUTE


def test_a_backfill_goes_through_its_range_with_bounded_concurrency_and_ends() -> None:
    world = World(a_workflow(), now_ms=T0 + 100 * MINUTE)
    world.tell(a_backfill())
    waiting = [start.execution_id for start in world.starts]
    assert len(waiting) == 2
    while waiting:
        before = len(world.starts)
        world.ended("backfill:b", waiting.pop(0))
        waiting += [start.execution_id for start in world.starts[before:]]
    assert [start.trigger["due_ms"] for start in world.starts] == [T0 + n * MINUTE for n in range(5)]
    summary = world.summaries["backfill:b"]
    assert summary is not None
    assert (summary["status"], summary["succeeded"], summary["total"]) == ("done", 5, 5)
    assert world.timers == {}
    assert world.told_of == 2, "a busy entity writes a summary a second, and one at its end"


def test_progress_is_told_within_a_second() -> None:
    world = World(a_workflow(), now_ms=T0 + 100 * MINUTE)
    world.tell(a_backfill())
    world.ended("backfill:b", world.starts[0].execution_id)
    world.pass_to(world.now_ms + SUMMARY_INTERVAL_MS)
    summary = world.summaries["backfill:b"]
    assert summary is not None
    assert (summary["succeeded"], summary["running_count"]) == (1, 2)


def test_a_cancelled_backfill_cancels_what_runs_and_starts_no_more() -> None:
    world = World(a_workflow(), now_ms=T0)
    world.tell(a_backfill())
    world.tell(BackfillCancel(entity_id="backfill:b", command_id="stop"))
    assert {each.execution_id for each in world.cancels} == {start.execution_id for start in world.starts}
    for start in tuple(world.starts):
        world.ended("backfill:b", start.execution_id, "cancelled")
    assert len(world.starts) == 2
    assert world.timers == {}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (a_backfill(name="b"), "a name is used once"),
        (a_backfill(name="no/such"), "A name has"),
        (SchedulePause(entity_id="schedule:none", command_id="c"), "There is no schedule none."),
        (SchedulePause(entity_id="backfill:b", command_id="c"), "does not obey"),
        (replace(PUT, command_id="c9", spec=replace(PUT.spec, cadence=Cadence(cron="61 * * * *"))), "minute"),
        (replace(PUT, entity_id="schedule:backfill.x"), "kept for"),
        ({"entity_id": NIGHTLY, "type": "schedule_put", "command_id": 7}, "cannot be read"),
        ({"entity_id": NIGHTLY, "type": "dance", "command_id": "c"}, "dance"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_with_a_sentence_and_changes_nothing(command: object, said: str) -> None:
    world = World(a_workflow(), now_ms=T0)
    world.tell(PUT)
    world.tell(replace(a_backfill(), command_id="first"))
    rows = dict(world.rows)
    refused = world.tell(command).refused
    assert refused is not None
    assert said in refused
    assert refused.endswith(".")
    assert world.rows == rows


def test_a_backfill_of_an_unknown_workflow_is_refused() -> None:
    world = World(now_ms=T0)
    assert world.tell(a_backfill()).refused == "Workflow press-overheat is not registered."


def test_a_row_that_cannot_be_read_refuses_every_command_but_to_put_the_schedule_anew() -> None:
    world = World(a_workflow(), now_ms=T0 + 1)
    world.tell(PUT)
    (key,) = world.rows
    world.rows[key] = b"{}"
    refused = world.tell(SchedulePause(entity_id=NIGHTLY, command_id="p")).refused
    assert refused is not None
    assert "cannot be read" in refused
    assert world.tell(replace(PUT, command_id="c2")).refused is None
    world.pass_to(T0 + MINUTE)
    assert len(world.starts) == 1
