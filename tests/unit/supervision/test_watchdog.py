"""Laws of the stall policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.watchdog import Progress, StallPolicy, begin, observe, verdict

POLICY = StallPolicy(stall_after_s=10, exit_after_s=30)
looks = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40)


def _follow(steps):
    now_s, watch = 0.0, begin(0.0, Progress(0, 0))
    for step_s, lag, processed in steps:
        now_s += step_s
        watch = observe(watch, now_s, Progress(lag, processed))
        yield now_s, lag, processed, watch


@given(looks)
def test_nothing_to_do_is_never_a_stall(steps):
    for _, _, _, watch in _follow([(s, 0, p) for s, _, p in steps]):
        assert verdict(watch, POLICY) == "ok"


@given(looks)
def test_a_changed_count_is_progress_in_whichever_direction(steps):
    before = 0
    for _, _, processed, watch in _follow(steps):
        if processed != before:
            assert watch.idle_s == 0
        before = processed


@given(looks)
def test_idle_time_is_the_time_since_the_last_progress(steps):
    seen_s, before = 0.0, 0
    for now_s, lag, processed, watch in _follow(steps):
        if lag == 0 or processed != before:
            seen_s = now_s
        before = processed
        assert watch.idle_s == pytest.approx(now_s - seen_s)


@pytest.mark.parametrize(("idle_s", "expected"), [(9.9, "ok"), (10, "stalled"), (29.9, "stalled"), (30, "dead")])
def test_a_stall_turns_readiness_off_before_it_ends_the_process(idle_s, expected):
    watch = observe(begin(0.0, Progress(5, 7)), idle_s, Progress(5, 7))
    assert verdict(watch, POLICY) == expected


def test_an_exit_set_before_the_stall_waits_for_the_stall():
    watch = observe(begin(0.0, Progress(5, 7)), 6, Progress(5, 7))
    assert verdict(watch, StallPolicy(stall_after_s=10, exit_after_s=5)) == "ok"


def test_a_clock_that_goes_back_makes_no_idle_time():
    assert observe(begin(10.0, Progress(5, 7)), 3.0, Progress(5, 7)).idle_s == 0
