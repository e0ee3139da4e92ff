"""Laws of the restart policy."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.restart import RestartPolicy, after_death

POLICY = RestartPolicy(initial_s=0.5, max_s=30, healthy_after_s=30)


def test_each_death_in_a_row_doubles_the_pause_up_to_the_longest():
    pauses, deaths = [], 0
    for _ in range(9):
        decision = after_death(POLICY, deaths, healthy_for_s=0)
        deaths = decision.deaths
        pauses.append(decision.pause_s)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@given(st.integers(0, 10**6))
def test_a_healthy_life_forgives_all_deaths(deaths):
    assert after_death(POLICY, deaths, healthy_for_s=30).pause_s == POLICY.initial_s


@given(st.integers(0, 10**6), st.floats(0, 29.9))
def test_the_pause_never_leaves_its_bounds(deaths, healthy_s):
    assert POLICY.initial_s <= after_death(POLICY, deaths, healthy_s).pause_s <= POLICY.max_s
