"""Laws of the schedule of faults: the seed decides it, every kind has its turn, nothing is planned beyond the end."""

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from app.chaos.catalog import CATALOG
from app.chaos.schedule import LEAD_S, SPREAD, Kind, planned_of, schedule

KINDS = st.lists(
    st.builds(
        Kind,
        st.text("abc", min_size=1, max_size=3),
        st.lists(st.sampled_from((0.0, 0.3, 2.0, 15.0)), min_size=1, max_size=3).map(tuple),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda kind: kind.name,
)
SEEDS = st.integers(0, 2**32)
SECONDS = st.floats(5, 300)
EVERY_S = st.floats(0.5, 20)


@settings(max_examples=40)
@given(SEEDS, SECONDS, KINDS, EVERY_S)
def test_a_seed_gives_the_same_schedule_again(seed: int, seconds: float, kinds: list[Kind], every_s: float) -> None:
    assert schedule(seed, seconds, kinds, every_s) == schedule(seed, seconds, kinds, every_s)


@settings(max_examples=40)
@given(SEEDS, SECONDS, KINDS, EVERY_S)
def test_faults_come_in_order_inside_the_run(seed: int, seconds: float, kinds: list[Kind], every_s: float) -> None:
    times = [one.at_s for one in schedule(seed, seconds, kinds, every_s)]
    assert times == sorted(times)
    assert all(LEAD_S <= at_s < seconds + 0.001 for at_s in times)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(SPREAD[0] * every_s - 0.002 <= gap <= SPREAD[1] * every_s + 0.002 for gap in gaps)


@settings(max_examples=40)
@given(SEEDS, SECONDS, KINDS, EVERY_S)
def test_every_kind_comes_before_any_comes_twice(seed: int, seconds: float, kinds: list[Kind], every_s: float) -> None:
    names = [one.kind for one in schedule(seed, seconds, kinds, every_s)][: len(kinds)]
    assert len(set(names)) == len(names)


@settings(max_examples=40)
@given(SEEDS, SECONDS, KINDS, EVERY_S)
def test_a_fault_ends_with_the_run_where_one_of_its_lengths_fits(
    seed: int, seconds: float, kinds: list[Kind], every_s: float
) -> None:
    lengths = {kind.name: kind.lengths_s for kind in kinds}
    for one in schedule(seed, seconds, kinds, every_s):
        room_s = seconds - one.at_s
        assert one.length_s in lengths[one.kind]
        if min(lengths[one.kind]) <= room_s - 0.001:
            assert one.length_s <= room_s + 0.001


@settings(max_examples=40)
@given(SEEDS, SECONDS, KINDS, EVERY_S)
def test_a_schedule_survives_its_own_report(seed: int, seconds: float, kinds: list[Kind], every_s: float) -> None:
    planned = schedule(seed, seconds, kinds, every_s)
    assert tuple(planned_of(json.loads(json.dumps(one.as_dict()))) for one in planned) == planned


def test_every_fault_of_the_catalog_stands_under_its_name() -> None:
    assert all(entry.kind.name == name for name, entry in CATALOG.items())
    assert len(CATALOG) >= 40
