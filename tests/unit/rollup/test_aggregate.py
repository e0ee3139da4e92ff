"""Laws of the aggregate: it is the fold of its readings, whatever the order, and merging is one."""

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from app.domain.aggregate import Aggregate, add_all, merge
from app.domain.reading import Reading

VALUES = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))
ROW = st.tuples(
    st.none() | VALUES, st.sampled_from(("GOOD", "GOOD", "UNCERTAIN", "BAD")), st.integers(0, 50), st.integers(1, 9)
)
ROWS = st.lists(ROW, min_size=1, max_size=30)
EXACT = ("count", "good", "bad", "open", "open_ts", "open_seq", "close", "close_ts", "close_seq")
EXTREMES = ("high", "high_ts", "low", "low_ts")


def fold(rows) -> Aggregate:
    aggregates: dict[str, Aggregate] = {}
    for value, quality, ts, seq in rows:
        add_all(aggregates, (Reading("m", value, "CEL", quality, 0),), ts, seq)
    return aggregates["m"]


def same(left: Aggregate, right: Aggregate) -> None:
    for name in (*EXACT, *EXTREMES):
        assert getattr(left, name) == getattr(right, name), name
    for name in ("sum", "mean"):
        assert math.isclose(getattr(left, name), getattr(right, name), rel_tol=1e-9, abs_tol=1e-6), name
    assert math.isclose(left.m2, right.m2, rel_tol=1e-6, abs_tol=1e-3)


@given(ROWS)
def test_an_aggregate_is_the_fold_of_its_usable_values(rows) -> None:
    found = fold(rows)
    usable = sorted((ts, seq, value) for value, quality, ts, seq in rows if value is not None and quality != "BAD")
    values = [value for _, _, value in usable]
    assert found.good == sum(value is not None and quality == "GOOD" for value, quality, _, _ in rows)
    assert found.good + found.bad == len(rows)
    assert found.count == len(values)
    if values:
        assert (found.open_ts, found.open_seq, found.open) == usable[0]
        assert (found.close_ts, found.close_seq, found.close) == usable[-1]
        assert (found.high, found.low) == (max(values), min(values))
        assert found.high_ts == min(ts for ts, _, value in usable if value == found.high)
        assert found.low_ts == min(ts for ts, _, value in usable if value == found.low)
        assert math.isclose(found.sum, math.fsum(values), rel_tol=1e-9, abs_tol=1e-6)
        assert math.isclose(found.m2 / found.count, statistics.pvariance(values), rel_tol=1e-6, abs_tol=1e-3)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(rows, rng) -> None:
    shuffled = rows[:]
    rng.shuffle(shuffled)
    same(fold(rows), fold(shuffled))


@given(ROWS, ROWS)
def test_merging_is_the_fold_of_both_and_commutes(left, right) -> None:
    both = fold(left)
    merge(both, fold(right))
    other = fold(right)
    merge(other, fold(left))
    same(both, fold(left + right))
    same(both, other)


@given(ROWS, ROWS, ROWS)
def test_merging_is_associative(one, two, three) -> None:
    left, inner = fold(one), fold(two)
    merge(left, fold(two))
    merge(left, fold(three))
    merge(inner, fold(three))
    right = fold(one)
    merge(right, inner)
    same(left, right)


@given(VALUES, st.integers(1, 50))
def test_a_stuck_value_has_no_variance_at_all(value, count) -> None:
    found = fold([(value, "GOOD", at, at + 1) for at in range(count)])
    merge(found, fold([(value, "GOOD", 99, 99)] * 3))
    assert found.m2 == 0.0
    assert found.mean == value
