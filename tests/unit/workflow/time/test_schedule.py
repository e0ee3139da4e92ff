"""Laws of schedules: every due time is started, skipped or missed, once, whatever the clock does."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.murmur2 import partition_for
from app.domain.workflow import schedule
from app.domain.workflow.cadence import COUNT_MAX, Cadence, iso, piled_up, stamp
from app.domain.workflow.placement import partition_of
from app.domain.workflow.schedule import Decided, SchedulePut, ScheduleSpec, ScheduleState

MINUTE = 60_000
DAY = 86_400_000
T0 = 1_763_689_020_000
EVERY_MINUTE = Cadence(cron="* * * * *")
CADENCES = st.sampled_from(
    [
        EVERY_MINUTE,
        Cadence(every_ms=1_000),
        Cadence(every_ms=90_000),
        Cadence(cron="0 3 * * *"),
        Cadence(cron="*/7 2-4 * * MON"),
    ]
)


def a_state(**spec: object) -> ScheduleState:
    given_spec = ScheduleSpec(**{"workflow": "press-overheat", "cadence": EVERY_MINUTE, **spec})  # type: ignore[arg-type]
    return ScheduleState(name="nightly", spec=given_spec, seen_ms=T0)


def due_of(decided: Decided) -> list[int]:
    return [run.due_ms for run in decided.starts]


@given(CADENCES, st.integers(T0, T0 + DAY), st.integers(0, 400 * DAY), st.integers(1, 50))
def test_what_has_piled_up_is_the_newest_of_all_that_was_due(
    cadence: Cadence, after_ms: int, length_ms: int, keep: int
) -> None:
    until_ms = after_ms + length_ms
    found = piled_up(cadence, after_ms, until_ms, keep)
    assert len(found.newest) == min(keep, found.in_all)
    assert found.in_all <= COUNT_MAX
    if found.newest:
        assert cadence.next_after(found.newest[-1]) > until_ms
        assert all(cadence.next_after(due - 1) == due for due in found.newest)
        assert list(found.newest) == list(cadence.between(found.newest[0] - 1, until_ms))


@given(
    CADENCES,
    st.sampled_from(["skip", "queue", "cancel_running", "allow"]),
    st.sampled_from(["none", "last", "all"]),
    st.lists(
        st.one_of(
            st.tuples(st.just("clock"), st.integers(-3 * DAY, 3 * DAY)),
            st.tuples(st.just("clock"), st.integers(0, 5 * MINUTE)),
            st.tuples(st.sampled_from(["told", "pause", "resume", "put"]), st.just(0)),
        ),
        max_size=30,
    ),
)
def test_no_clock_and_no_order_makes_a_storm_or_a_stall(
    cadence: Cadence, overlap: str, catch_up: str, steps: list[tuple[str, int]]
) -> None:
    state = a_state(cadence=cadence, overlap=overlap, catch_up=catch_up, catch_up_limit=20)
    now = latest = T0
    for what, by in steps:
        if what == "clock":
            now = max(0, now + by)
            decided = schedule.advance(state, now)
        elif what == "told":
            done = state.running[0].execution_id if state.running else "none"
            decided = schedule.told(state, done, "succeeded", now)
        elif what == "put":
            decided = schedule.put(state, "nightly", SchedulePut(entity_id="", command_id="", spec=state.spec), now)
        else:
            decided = schedule.pause(state) if what == "pause" else schedule.resume(state, now)
        assert len(decided.starts) <= 20, "no storm"
        assert len({run.execution_id for run in decided.starts}) == len(decided.starts)
        latest = max(latest, now)
        # What waited in line was due by the clock as it was before it went back.
        assert all(run.due_ms <= latest + schedule.CLOCK_BACK_MS for run in decided.starts)
        state = decided.state
        assert overlap == "allow" or len(state.running) <= 1
        assert len(state.waiting) <= schedule.WAITING_MAX
        assert schedule.advance(schedule.advance(state, now).state, now).starts == (), "looking twice starts nothing"
    state = schedule.advance(schedule.resume(replace(state, running=(), waiting=()), now).state, now).state
    state = replace(state, running=(), waiting=())
    coming = state.next_ms()
    assert coming is not None
    assert coming <= cadence.next_after(now + schedule.CLOCK_BACK_MS), "no stall"
    assert len(schedule.advance(state, coming).starts) == 1


@pytest.mark.parametrize(
    ("catch_up", "away_ms", "starts", "missed"),
    [
        ("none", 10 * MINUTE, 1, 9),
        ("last", 10 * MINUTE, 1, 9),
        ("all", 10 * MINUTE, 10, 0),
        ("all", 3 * DAY, 1_000, 0),
    ],
)
def test_what_was_missed_is_caught_up_as_the_policy_says(catch_up: str, away_ms: int, starts: int, missed: int) -> None:
    decided = schedule.advance(a_state(catch_up=catch_up, overlap="allow"), T0 + away_ms)
    assert len(decided.starts) == starts
    assert decided.state.counts.missed == missed
    assert due_of(decided)[-1] == T0 + away_ms


def test_catch_up_none_starts_nothing_that_is_late() -> None:
    state = a_state(catch_up="none", cadence=Cadence(cron="0 3 * * *"))
    decided = schedule.advance(state, state.next_ms() or 0)
    assert len(decided.starts) == 1
    late = schedule.advance(state, (state.next_ms() or 0) + schedule.ON_TIME_MS + 1)
    assert (late.starts, late.state.counts.missed) == ((), 1)


def test_skip_leaves_out_what_comes_while_a_run_goes_on() -> None:
    first = schedule.advance(a_state(), T0 + MINUTE)
    second = schedule.advance(first.state, T0 + 2 * MINUTE)
    assert (second.starts, second.state.counts.skipped) == ((), 1)
    ended = schedule.told(second.state, first.starts[0].execution_id, "failed", T0 + 2 * MINUTE)
    assert ended.state.last_status == "failed"
    assert due_of(schedule.advance(ended.state, T0 + 3 * MINUTE)) == [T0 + 3 * MINUTE]


def test_queue_starts_one_after_the_other_in_order() -> None:
    decided = schedule.advance(a_state(overlap="queue", catch_up="all"), T0 + 3 * MINUTE)
    order = due_of(decided)
    while decided.starts:
        decided = schedule.told(decided.state, decided.starts[0].execution_id, "succeeded", T0 + 3 * MINUTE)
        order += due_of(decided)
    assert order == [T0 + MINUTE, T0 + 2 * MINUTE, T0 + 3 * MINUTE]


def test_cancel_running_cancels_the_run_before() -> None:
    first = schedule.advance(a_state(overlap="cancel_running"), T0 + MINUTE)
    second = schedule.advance(first.state, T0 + 2 * MINUTE)
    assert second.cancels == (first.starts[0].execution_id,)
    late = schedule.told(second.state, first.starts[0].execution_id, "cancelled", T0 + 2 * MINUTE)
    assert late.state == second.state


def test_a_pause_starts_nothing_and_what_was_due_in_it_is_passed_over() -> None:
    paused = schedule.pause(a_state(catch_up="all", overlap="allow")).state
    assert schedule.advance(paused, T0 + DAY).starts == ()
    assert paused.next_ms() is None
    resumed = schedule.resume(paused, T0 + DAY).state
    assert due_of(schedule.advance(resumed, T0 + DAY + MINUTE)) == [T0 + DAY + MINUTE]


def test_a_clock_put_back_repeats_only_ids_that_were_used() -> None:
    ahead = schedule.advance(a_state(overlap="allow", catch_up="all"), T0 + 10 * MINUTE)
    back = schedule.advance(ahead.state, T0 + 5 * MINUTE)
    assert back.starts == ()
    again = schedule.advance(back.state, T0 + 10 * MINUTE)
    ids = {run.execution_id for run in ahead.starts}
    assert again.starts
    assert {run.execution_id for run in again.starts} <= ids


def test_run_now_starts_beside_a_run_and_while_paused() -> None:
    state = schedule.pause(schedule.advance(a_state(), T0 + MINUTE).state).state
    decided = schedule.run_now(state, "c1", T0 + MINUTE)
    assert [run.execution_id for run in decided.starts] == ["nightly-now-c1"]
    assert len(decided.state.running) == 2


def test_a_change_of_the_time_table_counts_from_then_on_and_keeps_a_pause() -> None:
    paused = schedule.pause(a_state()).state
    command = SchedulePut(entity_id="", command_id="", spec=replace(paused.spec, cadence=Cadence(every_ms=5_000)))
    changed = schedule.put(paused, "nightly", command, T0 + DAY).state
    assert (changed.paused, changed.seen_ms) == (True, T0 + DAY)
    same = schedule.put(changed, "nightly", replace(command, paused=False), T0 + 2 * DAY).state
    assert (same.paused, same.seen_ms) == (False, T0 + 2 * DAY)


def test_a_start_that_cannot_be_asked_for_is_counted_and_holds_up_nothing() -> None:
    decided = schedule.advance(a_state(), T0 + MINUTE)
    state = schedule.withdrawn(decided.state, decided.starts[0].execution_id, "No workflow.")
    assert (state.running, state.counts.failed, state.counts.started, state.error) == ((), 1, 0, "No workflow.")
    assert len(schedule.advance(state, T0 + 2 * MINUTE).starts) == 1


def test_a_run_that_is_not_heard_of_is_asked_for_again_under_its_id() -> None:
    decided = schedule.advance(a_state(), T0 + MINUTE)
    assert schedule.ask_again(decided.state, T0 + 2 * MINUTE).starts == ()
    again = schedule.ask_again(decided.state, T0 + MINUTE + schedule.ASK_AGAIN_MS)
    assert [run.execution_id for run in again.starts] == [run.execution_id for run in decided.starts]


@given(st.integers(0, 4_000_000_000_000), st.integers(1, 64))
def test_an_id_names_its_time_and_is_not_taken_for_that_of_a_record(due_ms: int, partitions: int) -> None:
    """A schedule named `plant-3` does not have all of its executions on partition 3."""
    assert stamp(due_ms).endswith("Z")
    assert iso(due_ms).endswith("Z")
    other = schedule.execution_id("plant-3", due_ms)
    assert other.startswith("plant-3-")
    assert partition_of(other, partitions) == partition_for(other.encode(), partitions)


@pytest.mark.parametrize(
    "cadence",
    [
        Cadence(),
        Cadence(cron="* * * * *", every_ms=1_000),
        Cadence(every_ms=999),
        Cadence(every_ms=10**12),
        Cadence(cron="x"),
    ],
)
def test_a_time_table_without_meaning_says_why(cadence: Cadence) -> None:
    said = cadence.problem()
    assert said is not None
    assert said.endswith(".")
    assert ScheduleSpec(workflow="w", cadence=cadence).problem() == said
