"""Laws of the rules over rollups."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.signal_rules import Condition, Crossover, ZScore
from app.domain.signal_windows import z_score
from tests.helpers.signals import compiled, rollup, rule, run

MINUTE = 60_000
ZSCORE = ZScore(MINUTE, baseline=20, warm_up=10, raise_at=4.0, clear_at=2.0)
finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def calm(count: int) -> list[float]:
    return [50.0 + (1.0 if i % 2 else -1.0) for i in range(count)]


def test_a_window_far_from_the_baseline_is_raised_and_one_near_it_clears() -> None:
    means = [*calm(15), 70.0, 70.0, 50.0]
    signals = run(compiled(rule(ZSCORE)), [rollup(i, mean) for i, mean in enumerate(means)])
    assert [each.state for each in signals] == ["raised", "cleared"]
    assert signals[0].at == rollup(15, 0.0).window_end
    assert signals[0].evidence["z"] > 4.0


def test_nothing_is_said_before_the_warm_up() -> None:
    assert run(compiled(rule(ZSCORE)), [rollup(i, mean) for i, mean in enumerate([*calm(9), 500.0])]) == []


def test_the_baseline_stands_still_while_raised() -> None:
    means = [*calm(15), *[70.0] * 100]
    assert len(run(compiled(rule(ZSCORE)), [rollup(i, mean) for i, mean in enumerate(means)])) == 1


def test_a_limited_freeze_takes_a_lasting_level_for_the_new_norm() -> None:
    means = [*calm(15), *[70.0] * 100]
    test = ZScore(MINUTE, baseline=20, warm_up=10, freeze_windows=10)
    signals = run(compiled(rule(test)), [rollup(i, mean) for i, mean in enumerate(means)])
    assert [each.state for each in signals] == ["raised", "cleared"]


def test_a_constant_baseline_raises_on_no_trifle() -> None:
    means = [100.0] * 15
    assert run(compiled(rule(ZSCORE)), [rollup(i, mean) for i, mean in enumerate([*means, 100.01])]) == []
    assert len(run(compiled(rule(ZSCORE)), [rollup(i, mean) for i, mean in enumerate([*means, 110.0])])) == 1


@given(value=finite, points=st.lists(finite, min_size=1, max_size=50))
def test_a_z_score_is_always_a_number(value: float, points: list[float]) -> None:
    assert all(math.isfinite(number) for number in z_score(value, points, ZSCORE))


def test_only_final_windows_of_the_rule_s_size_count_each_once() -> None:
    base = [rollup(i, mean) for i, mean in enumerate(calm(15))]
    rules = compiled(rule(ZSCORE))
    assert run(rules, [*base, rollup(15, 70.0, is_final=False)]) == []
    assert run(rules, [*base, rollup(15, 70.0, window_ms=10_000)]) == []
    assert run(rules, [*base, rollup(15, None, count=0)]) == []
    twice = run(rules, [*base, rollup(15, 70.0), rollup(15, 50.0, revision=1)])
    assert [each.state for each in twice] == ["raised"]
    assert rules.windows_ms() == {MINUTE}


@pytest.mark.parametrize(("direction", "step", "raised"), [("up", 10, 1), ("up", -10, 0), ("down", -10, 1)])
def test_a_fast_average_that_leaves_the_slow_one_is_raised(direction: str, step: float, raised: int) -> None:
    test = Crossover(MINUTE, fast=2, slow=10, band=4.0, direction=direction)  # type: ignore[arg-type]
    means = [50.0] * 12 + [50.0 + step] * 4
    signals = run(compiled(rule(test)), [rollup(i, mean) for i, mean in enumerate(means)])
    assert [each.state for each in signals] == ["raised"] * raised


def test_averages_that_meet_again_clear() -> None:
    test = Crossover(MINUTE, fast=2, slow=10, band=4.0, clear_band=0.5)
    means = [50.0] * 12 + [60.0] * 30
    signals = run(compiled(rule(test)), [rollup(i, mean) for i, mean in enumerate(means)])
    assert [each.state for each in signals] == ["raised", "cleared"]


def test_a_condition_over_windows_reads_their_fields() -> None:
    rules = compiled(rule(Condition("high - low > 5.0 && count >= 3", window_ms=MINUTE)))
    signals = run(rules, [rollup(0, 1.0, high=9.0, low=1.0, count=3), rollup(1, 1.0)])
    assert [each.state for each in signals] == ["raised", "cleared"]
