"""Laws of backfills: every due time of the range once, never more at once than allowed, and an end."""

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.domain.workflow import backfill
from app.domain.workflow.backfill import BackfillSpec, BackfillStart, Filled
from app.domain.workflow.cadence import Cadence

HOUR = 3_600_000
T0 = 1_763_686_800_000  # on the hour
CADENCES = st.sampled_from([Cadence(every_ms=HOUR), Cadence(cron="*/20 * * * *"), Cadence(cron="0 2 * * MON")])


def begun(hours: int = 24, concurrency: int = 3, cadence: Cadence = Cadence(every_ms=HOUR)) -> Filled:  # noqa: B008
    spec = BackfillSpec(workflow="w", cadence=cadence, from_ms=T0, to_ms=T0 + hours * HOUR, concurrency=concurrency)
    assert spec.problem() is None
    command = BackfillStart(entity_id="backfill:b", command_id="c", spec=spec, total=spec.runs())
    return backfill.begin("b", command, T0 + 1_000 * HOUR)


@given(CADENCES, st.integers(0, 60), st.integers(1, 7), st.randoms(use_true_random=False))
def test_every_due_time_of_the_range_is_run_once_and_not_too_many_at_once(
    cadence: Cadence, hours: int, concurrency: int, rng: random.Random
) -> None:
    filled = begun(hours, concurrency, cadence)
    state, seen = filled.state, [run.due_ms for run in filled.starts]
    while state.running:
        assert len(state.running) <= concurrency
        ended = rng.choice(state.running).execution_id
        filled = backfill.told(state, ended, rng.choice(["succeeded", "failed", "skipped"]), T0)
        repeated = backfill.told(filled.state, ended, "failed", T0)
        assert repeated == Filled(filled.state), "an end that is told twice counts once"
        state = filled.state
        seen += [run.due_ms for run in filled.starts]
    assert state.status == "done"
    assert seen == list(cadence.between(T0 - 1, T0 + hours * HOUR))
    assert state.total == len(seen) == state.started == state.succeeded + state.failed + state.skipped
    assert len(state.failed_due) == min(state.failed, backfill.FAILED_KEPT), "what was skipped has not failed"


def test_both_ends_of_the_range_belong_to_it() -> None:
    assert [run.due_ms for run in begun(1).starts] == [T0, T0 + HOUR]


def test_a_range_without_a_due_time_is_done_at_once() -> None:
    assert begun(0, cadence=Cadence(cron="0 2 1 1 *")).state.status == "done"


def test_after_a_cancel_nothing_starts_and_what_runs_is_cancelled_or_left() -> None:
    state = begun().state
    cancelled = backfill.cancel(state, T0, running=True)
    assert cancelled.cancels == tuple(run.execution_id for run in state.running)
    left = backfill.cancel(state, T0, running=False)
    assert left.cancels == ()
    after = backfill.told(left.state, state.running[0].execution_id, "succeeded", T0)
    assert (after.starts, after.state.succeeded, after.state.status) == ((), 1, "cancelled")
    assert backfill.cancel(after.state, T0, running=True) == Filled(after.state)


def test_a_start_that_cannot_be_asked_for_counts_as_failed() -> None:
    filled = begun()
    state = backfill.withdrawn(filled.state, filled.starts[0].execution_id, "No workflow.")
    assert (state.failed, state.failed_due, state.error) == (1, (T0,), "No workflow.")
    assert len(backfill.fill(state, T0).starts) == 1


def test_ids_never_meet_those_of_a_schedule_of_the_same_name() -> None:
    assert backfill.execution_id("nightly", T0) == "backfill.nightly-20251121T010000Z"


def test_a_senseless_range_says_why() -> None:
    spec = begun().state.spec
    for wrong in ({"to_ms": T0 - 1}, {"from_ms": -1}, {"concurrency": 0}, {"cadence": Cadence(cron="* *")}):
        said = replace(spec, **wrong).problem()
        assert said is not None
        assert said.endswith(".")


def test_a_long_range_is_counted_no_further_than_it_may_be() -> None:
    spec = replace(begun().state.spec, cadence=Cadence(cron="* * * * *"), from_ms=0)
    assert spec.runs() == backfill.RUNS_MAX + 1
