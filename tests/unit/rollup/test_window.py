"""Laws of the ladder: windows cover time, and impossible ladders are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.domain.window import DEFAULT_LADDER, RollupSpec, Rung, feed, starts
from config.rollup import RollupSettings

rungs = (
    st.tuples(st.integers(1, 50), st.integers(1, 50)).filter(lambda pair: pair[1] <= pair[0]).map(lambda p: Rung(*p))
)


@given(rungs, st.integers(0, 10_000))
def test_an_instant_is_in_every_window_that_covers_it_and_no_other(rung, instant_ms) -> None:
    every = range(0, instant_ms + 1, rung.step_ms)
    # Windows that start before the epoch exist as well, for a hopping rung in its first window.
    before = range(-rung.step_ms, -rung.size_ms - 1, -rung.step_ms)
    want = sorted(start for start in [*before, *every] if start <= instant_ms < start + rung.size_ms)
    assert starts(rung, instant_ms) == want


def test_the_default_ladder_is_fed_rung_by_rung_and_is_the_default_of_the_settings() -> None:
    assert feed(DEFAULT_LADDER) == ([0, 1, 2, 3], [])
    assert tuple(Rung(*rung.model_dump().values()) for rung in RollupSettings().ladder) == DEFAULT_LADDER


def test_a_hopping_rung_feeds_none() -> None:
    sources, problems = feed((Rung(1_000), Rung(10_000, 5_000), Rung(20_000)))
    assert (sources, problems) == ([0, 0], [])


IMPOSSIBLE = [
    (),
    ((0, 0),),
    ((1_000, -1),),
    ((1_000, 2_000),),
    ((1_000, 500),),
    ((10_000, 0), (1_000, 0)),
    ((1_000, 0), (1_000, 0)),
    ((1_000, 0), (1_500, 0)),
    ((1_000, 0), (3_000, 1_500)),
]


@pytest.mark.parametrize("ladder", IMPOSSIBLE)
def test_an_impossible_ladder_is_refused_by_the_stage_and_by_the_settings(ladder) -> None:
    with pytest.raises(ValueError, match=r"ms|rung"):
        RollupSpec(rungs=tuple(Rung(*shape) for shape in ladder))
    with pytest.raises(ValidationError):
        RollupSettings(ladder=tuple({"size_ms": size, "advance_ms": advance} for size, advance in ladder))
