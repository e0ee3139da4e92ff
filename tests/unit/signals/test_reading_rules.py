"""Laws of the rules over readings."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.reading import Sample
from app.domain.signal_rules import (
    Condition,
    Quality,
    RateOfChange,
    Rule,
    Selector,
    Stuck,
    Test,
    Threshold,
)
from app.domain.signal_state import SignalState
from tests.helpers.signals import DEVICE, START_MS, compiled, rule, run, sample, states

OVER_90 = Threshold(above=90.0, clear_at=80.0)
EVERY_KIND: tuple[Test, ...] = (
    OVER_90,
    Threshold(below=10.0, clear_at=20.0),
    RateOfChange(limit=50.0, window_ms=8_000, clear_at=10.0),
    Stuck(duration_ms=4_000, min_readings=3),
    Quality(),
    Condition("value > 90.0 && quality == 'GOOD'", clear_when="value < 80.0"),
)
readings = st.lists(
    st.tuples(st.integers(1, 4_000), st.none() | st.sampled_from([0.0, 15.0, 50.0, 85.0, 91.0, 100.0])), max_size=60
)


def at_seconds(values: Sequence[float | None]) -> list[tuple[int, float | None]]:
    return [(index * 1000, value) for index, value in enumerate(values)]


def test_a_threshold_is_raised_above_and_cleared_at_the_hysteresis() -> None:
    signals = run(compiled(rule(OVER_90)), [sample(at, v) for at, v in at_seconds([90, 91, 85, 95, 81, 80, 79])])
    assert states(signals) == [("raised", 1000), ("cleared", 5000)]
    assert signals[0].signal_id == signals[1].signal_id
    assert (signals[0].value, signals[0].threshold, signals[0].unit) == (91, 90.0, "CEL")
    assert signals[1].raised_at == signals[0].at


def test_a_lower_threshold_mirrors_the_upper_one() -> None:
    signals = run(
        compiled(rule(Threshold(below=10.0, clear_at=20.0))),
        [sample(at, v) for at, v in at_seconds([10, 9, 15, 5, 20])],
    )
    assert states(signals) == [("raised", 1000), ("cleared", 4000)]


def test_a_breach_shorter_than_the_hold_time_is_no_signal() -> None:
    rules = compiled(rule(OVER_90, hold_ms=3000))
    assert run(rules, [sample(at, v) for at, v in at_seconds([95, 95, 95, 70, 95, 95, 95])]) == []
    held = run(rules, [sample(at, v) for at, v in at_seconds([95, 95, 95, 95])])
    assert states(held) == [("raised", 3000)]
    assert held[0].evidence["since"] == START_MS


def test_a_return_shorter_than_the_clear_hold_time_does_not_clear() -> None:
    rules = compiled(rule(OVER_90, clear_hold_ms=2000))
    signals = run(rules, [sample(at, v) for at, v in at_seconds([95, 70, 70, 95, 70, 70, 70])])
    assert states(signals) == [("raised", 0), ("cleared", 6000)]


def test_a_reading_without_a_usable_value_changes_nothing() -> None:
    rules = compiled(rule(OVER_90))
    assert run(rules, [sample(0, 99.0, quality="BAD"), sample(1000, 99.0, quality="STALE"), sample(2000, None)]) == []


def test_a_slope_raises_and_a_level_does_not() -> None:
    rules = compiled(rule(RateOfChange(limit=60.0, per_ms=60_000, window_ms=8_000, clear_at=30.0)))
    flat = [sample(i * 1000, 500.0) for i in range(12)]
    rise = [sample(12_000 + i * 1000, 500.0 + 2.0 * i) for i in range(10)]
    rest = [sample(22_000 + i * 1000, 520.0) for i in range(12)]
    signals = run(rules, flat + rise + rest)
    assert [each.state for each in signals] == ["raised", "cleared"]
    assert 12_000 < signals[0].at - START_MS < 22_000
    assert signals[0].evidence["rate"] > 60.0


@pytest.mark.parametrize(("direction", "slope", "raised"), [("up", -5, 0), ("down", -5, 1), ("up", 5, 1)])
def test_a_slope_has_a_direction(direction: str, slope: float, raised: int) -> None:
    test = RateOfChange(limit=60.0, window_ms=8_000, direction=direction)  # type: ignore[arg-type]
    assert len(run(compiled(rule(test)), [sample(i * 1000, slope * i) for i in range(20)])) == raised


def test_a_slope_is_not_judged_over_a_pause() -> None:
    rules = compiled(rule(RateOfChange(limit=1.0, window_ms=8_000)))
    assert run(rules, [sample(0, 0.0), sample(3_600_000, 1000.0), sample(3_601_000, 1000.0)]) == []


def test_a_value_that_does_not_move_is_stuck_until_it_moves() -> None:
    rules = compiled(rule(Stuck(duration_ms=5_000, tolerance=0.1)))
    still = [sample(i * 1000, 50.0 + 0.05 * (i % 2)) for i in range(10)]
    signals = run(rules, [*still, sample(10_000, 51.0), sample(11_000, 51.0)])
    assert states(signals) == [("raised", 5000), ("cleared", 10_000)]


def test_few_readings_or_a_pause_are_not_stuck() -> None:
    rules = compiled(rule(Stuck(duration_ms=5_000, min_readings=5)))
    assert run(rules, [sample(0, 1.0), sample(4_000, 1.0), sample(8_000, 1.0)]) == []
    assert run(rules, [sample(i * 10_000, 1.0) for i in range(20)]) == []


def test_poor_quality_is_raised_once_and_cleared_once() -> None:
    signals = run(
        compiled(rule(Quality())),
        [sample(0), sample(1000, None), sample(2000, 5.0, quality="UNCERTAIN"), sample(3000), sample(4000)],
    )
    assert states(signals) == [("raised", 1000), ("cleared", 3000)]
    assert signals[0].value is None


def test_a_condition_is_raised_while_it_is_true() -> None:
    rules = compiled(rule(Condition("value > 90.0 && quality == 'GOOD'")))
    signals = run(rules, [sample(0, 91.0, quality="UNCERTAIN"), sample(1000, 91.0), sample(2000, 90.0)])
    assert states(signals) == [("raised", 1000), ("cleared", 2000)]
    assert not rules.failures


def test_a_condition_without_an_answer_is_counted_and_changes_nothing() -> None:
    rules = compiled(rule(Condition("100.0 / value > 1.0 && [1, 2][int(value)] > 0")))
    assert run(rules, [sample(0, 5.0)]) == []
    assert rules.failures == {"rule": 1}
    assert run(rules, [sample(1000, None)]) == []
    assert rules.failures == {"rule": 1}, "a null value is no failure"


def test_a_filter_hides_readings_from_any_rule() -> None:
    rules = compiled(rule(OVER_90, when="device_type == 'press' && seq != 2"))
    signals = run(rules, [sample(0, 99.0, seq=2), sample(1000, 99.0, seq=3)])
    assert states(signals) == [("raised", 1000)]


@pytest.mark.parametrize(
    ("select", "watched"),
    [
        (Selector(), True),
        (Selector(device_types=("press",)), True),
        (Selector(device_types=("pump",)), False),
        (Selector(devices=("press-*",), metrics=("temp*",)), True),
        (Selector(devices=("press-0002",)), False),
        (Selector(metrics=("pressure",)), False),
    ],
)
def test_a_selector_picks_devices_and_metrics(select: Selector, watched: bool) -> None:
    rules = compiled(rule(OVER_90, select=select))
    assert rules.needs(DEVICE, "temperature") is watched
    assert bool(run(rules, [sample(0, 99.0)])) is watched


def test_a_sample_from_the_future_is_not_judged() -> None:
    rules = compiled(rule(OVER_90))
    signals = run(rules, [sample(3_600_000, 99.0, recorded_ms=0), sample(1000, 99.0)])
    assert states(signals) == [("raised", 1000)]
    assert rules.ahead == 1


def test_metrics_of_one_instant_in_separate_samples_are_all_judged() -> None:
    rules = compiled(rule(OVER_90))
    signals = run(rules, [sample(0, 99.0, metric="a"), sample(0, 99.0, metric="b", seq=2)])
    assert {each.metric for each in signals} == {"a", "b"}
    assert len({each.signal_id for each in signals}) == 2


@pytest.mark.parametrize("test", EVERY_KIND, ids=lambda test: test.kind)
@given(steps=readings, seed=st.integers(0, 1000))
def test_late_readings_never_change_what_is_said(test: Test, steps: list[tuple[int, float | None]], seed: int) -> None:
    """Readings older than one that was judged are ignored: in-order sets said the same without them."""
    rng = random.Random(seed)
    at = 0
    ordered: list[Sample] = []
    for step, value in steps:
        at += step
        ordered.append(sample(at, value, seq=len(ordered) + 1))
    arrivals = []
    for index, each in enumerate(ordered):
        arrivals.append(each)
        if rng.random() < 0.4:
            # An older reading, with a value that every rule would have something to say about.
            old = ordered[rng.randrange(index + 1)]
            arrivals.append(old._replace(seq=1000 + index))
    rules = (rule(test), rule(OVER_90, id="other"))
    judged_nulls = isinstance(test, Quality | Condition)
    expected = run(compiled(*rules), ordered)
    found = run(compiled(*rules), arrivals)
    if judged_nulls or all(value is not None for _, value in steps):
        assert found == expected


@pytest.mark.parametrize("test", EVERY_KIND, ids=lambda test: test.kind)
@given(steps=readings, hold_ms=st.sampled_from([0, 2_000]), clear_hold_ms=st.sampled_from([0, 2_000]))
def test_a_signal_is_raised_once_then_cleared_once(
    test: Test, steps: list[tuple[int, float | None]], hold_ms: int, clear_hold_ms: int
) -> None:
    at, samples = 0, []
    for step, value in steps:
        at += step
        samples.append(sample(at, value))
    signals = run(compiled(rule(test, hold_ms=hold_ms, clear_hold_ms=clear_hold_ms)), samples)
    assert [each.state for each in signals] == ["raised", "cleared"] * (len(signals) // 2) + ["raised"] * (
        len(signals) % 2
    )
    for raised, cleared in zip(signals[::2], signals[1::2], strict=False):
        assert raised.signal_id == cleared.signal_id
        assert raised.at == cleared.raised_at < cleared.at
    assert len({each.signal_id for each in signals[::2]}) == len(signals[::2])


@given(steps=readings, cut=st.integers(0, 60))
def test_a_saved_state_goes_on_as_if_it_had_never_been_away(steps: list[tuple[int, float | None]], cut: int) -> None:
    at, samples = 0, []
    for step, value in steps:
        at += step
        samples.append(sample(at, value))
    rules = compiled(*(Rule(f"r{i}", test, hold_ms=1000) for i, test in enumerate(EVERY_KIND)))
    expected = run(rules, samples)
    state = SignalState(DEVICE)
    found = run(rules, samples[:cut], state)
    found += run(rules, samples[cut:], SignalState.restore(DEVICE, state.snapshot()))
    assert found == expected
