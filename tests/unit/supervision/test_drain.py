"""Laws of the drain at a stop."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.drain import LOOK_S, Look, outlook


def test_nothing_that_waits_is_done() -> None:
    assert outlook(Look(0, 50), Look(0.1, 0), 10) == "done"


def test_a_lag_that_shrinks_fast_enough_is_waited_for() -> None:
    assert outlook(Look(0, 1000), Look(LOOK_S, 500), 10) == "wait"


def test_a_lag_that_cannot_be_gone_in_time_is_left_to_the_next_start() -> None:
    assert outlook(Look(0, 50_000), Look(LOOK_S, 45_000), 10) == "hopeless"
    assert outlook(Look(0, 1000), Look(LOOK_S, 1200), 10) == "hopeless"


@given(lag=st.floats(1, 1e9), later=st.floats(0.001, LOOK_S * 0.99))
def test_a_first_look_is_no_verdict(lag: float, later: float) -> None:
    assert outlook(Look(0, lag), Look(later, lag), 10) == "wait"
