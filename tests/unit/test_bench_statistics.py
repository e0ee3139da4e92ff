"""Laws of the benchmarks' arithmetic."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.result import Result, Run
from app.bench.side import Effort, Side, chosen, our_module
from app.bench.statistics import (
    Latency,
    interleaved,
    latency_of,
    median,
    median_latency,
    percentile,
    ratios,
    steady_rate,
    weighted_latency,
    weighted_mean,
)
from app.errors import UserError

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(values)
def test_half_of_the_values_are_not_above_the_median_and_half_not_below(row: list[float]) -> None:
    middle = median(row)
    assert sum(v <= middle for v in row) * 2 >= len(row)
    assert sum(v >= middle for v in row) * 2 >= len(row)


@given(values, st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_its_share_does_not_exceed(row: list[float], share: float) -> None:
    ordered = sorted(row)
    found = percentile(ordered, share)
    assert found in row
    assert sum(v <= found for v in row) >= math.ceil(share * len(row))
    assert sum(v < found for v in row) < share * len(row)


@given(values)
def test_percentiles_never_decrease_and_the_last_is_the_maximum(row: list[float]) -> None:
    latency = latency_of(row)
    assert latency.p50 <= latency.p95 <= latency.p99 <= latency.max == max(row)


@given(st.lists(st.tuples(st.integers(0, 50).map(float), st.integers(1, 20)), min_size=1, max_size=30))
def test_weighted_figures_are_those_of_the_values_written_out(pairs: list[tuple[float, int]]) -> None:
    written_out = [value for value, count in pairs for _ in range(count)]
    assert weighted_latency(pairs) == latency_of(written_out)
    assert weighted_mean(pairs) == pytest.approx(sum(written_out) / len(written_out))


def test_the_mean_of_nothing_is_zero() -> None:
    assert weighted_mean([]) == 0.0


def test_each_percentile_has_a_median_of_its_own() -> None:
    rows = [Latency(1, 9, 3, 4), Latency(2, 7, 30, 5), Latency(3, 8, 20, 6)]
    assert median_latency(rows) == Latency(2, 8, 20, 5)


@given(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1), st.integers(1, 6))
def test_every_side_runs_once_a_round_and_rounds_go_there_and_back(sides: list[str], runs: int) -> None:
    order = interleaved(sides, runs)
    assert Counter(order) == Counter((run, side) for run in range(runs) for side in sides)
    for run in range(runs):
        turn = [side for number, side in order if number == run]
        assert turn == (sides if run % 2 == 0 else sides[::-1])


def test_a_ratio_is_ours_over_the_peers_and_missing_figures_have_none() -> None:
    assert ratios(300.0, {"slow": 100.0, "dead": 0.0}) == {"slow": 3.0}
    assert ratios(None, {"slow": 100.0}) == {}


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(50, 10**6))
def test_a_steady_rate_counts_what_came_after_the_cut_over_the_time_after_it(
    after: int, before: int, span_ms: int
) -> None:
    rate = steady_rate(before + after, before, 1_000, 1_000 + span_ms)
    assert rate == pytest.approx(after * 1000 / span_ms)


def test_a_span_too_short_for_the_brokers_clock_gives_no_rate() -> None:
    assert steady_rate(1000, 200, 5, 54) is None


def test_json_has_exactly_the_documented_keys() -> None:
    run = Run(0, "headrace", 10.0, {"total": 9.0})
    result = Result("x", "records/s", 10.0, {"p": 4.0}, {"records": 1}, (run,), {"q": "no Java"}, {"p": 1.5})
    assert result.as_dict() == {
        "name": "x",
        "unit": "records/s",
        "ours": 10.0,
        "peers": {"p": 4.0},
        "ratios": {"p": 2.5},
        "settings": {"records": 1, "missing_peers": {"q": "no Java"}, "target_ratios": {"p": 1.5}},
        "runs": [{"run": 0, "side": "headrace", "value": 10.0, "total": 9.0}],
    }


def test_an_unknown_peer_is_refused_and_a_named_one_runs_beside_ours() -> None:
    sides = (Side("headrace", our_module("x"), "d"), Side("p", our_module("y"), "d"), Side("q", our_module("z"), "d"))
    assert [side.name for side in chosen(sides, ("q",))] == ["headrace", "q"]
    assert [side.name for side in chosen(sides, ())] == ["headrace"]
    assert len(chosen(sides, None)) == 3
    with pytest.raises(UserError, match="Known here: p, q"):
        chosen(sides, ("nope",))


def test_an_effort_without_peers_means_all_of_them() -> None:
    assert Effort(1, 1).peers is None
