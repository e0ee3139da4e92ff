"""Laws of debounced starts: a record is decided once, however often and however late it comes."""

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.engine_debounce import is_over, judge
from app.domain.workflow.commands import Debounce, Start

NOW = 1_763_689_000_000
WINDOW_S = 30.0
WINDOW_MS = 30_000
HOUR_MS = 3_600_000


class Asked(NamedTuple):
    """A record: `at_ms` is its own time in ms after `NOW`, None when it has none."""

    source: int
    offset: int
    at_ms: int | None


def start(asked: Asked, wall_ms: int = NOW, seconds: float = WINDOW_S) -> Start:
    at_ms = 0 if asked.at_ms is None else NOW + asked.at_ms
    debounce = Debounce(key="k", seconds=seconds, at_ms=at_ms, source=f"t-{asked.source}", offset=asked.offset)
    return Start(execution_id="e", workflow="w", version="1", at_ms=wall_ms, debounce=debounce)


class Key:
    """The row of one key, as an engine keeps it."""

    def __init__(self) -> None:
        self.row: bytes | None = None

    def takes(self, asked: Asked, wall_ms: int = NOW) -> bool:
        verdict = judge(self.row, start(asked, wall_ms))
        self.row = verdict.row or self.row
        return not verdict.held_back


times = st.lists(st.one_of(st.none(), st.integers(1, 200_000)), min_size=1, max_size=8)
# Which source is read on, and how far it is put back before.
deliveries = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.lists(times, min_size=3, max_size=3), deliveries, st.integers(0, 60_000))
def test_what_was_held_back_is_never_started_when_it_comes_again(
    sources: list[list[int | None]], reads: list[tuple[int, int]], pause_ms: int
) -> None:
    key = Key()
    position, wall_ms = [0, 0, 0], NOW
    decided: dict[tuple[int, int], bool] = {}
    for source, back in reads:
        position[source] = max(0, position[source] - back)
        while position[source] < len(sources[source]):
            offset = position[source]
            asked = Asked(source, offset, sources[source][offset])
            started = key.takes(asked, wall_ms)
            first = decided.setdefault((source, offset), started)
            assert not started or first, "it was one too many when it came first"
            position[source] += 1
            wall_ms += pause_ms
            if offset % 3 == 2:
                break


@given(times, st.data())
def test_a_record_that_was_accepted_is_not_accepted_again(given_ms: list[int | None], data: st.DataObject) -> None:
    key = Key()
    taken = [Asked(0, offset, at) for offset, at in enumerate(given_ms) if key.takes(Asked(0, offset, at))]
    late_ms = NOW + data.draw(st.integers(0, 10 * HOUR_MS))
    assert not any(key.takes(each, late_ms) for each in taken)


@given(st.sets(st.integers(1, 500_000), min_size=1, max_size=30), st.integers(0, 1_000))
def test_a_key_starts_once_in_a_window_of_the_records_own_time_however_late_they_are_read(
    given_ms: set[int], pause_ms: int
) -> None:
    key = Key()
    accepted_ms: int | None = None
    for offset, at_ms in enumerate(sorted(given_ms)):
        is_due = accepted_ms is None or at_ms - accepted_ms >= WINDOW_MS
        accepted_ms = at_ms if is_due else accepted_ms
        assert key.takes(Asked(0, offset, at_ms), NOW + pause_ms * offset) == is_due


@given(times)
def test_the_first_record_of_a_key_starts(given_ms: list[int | None]) -> None:
    assert Key().takes(Asked(0, 0, given_ms[0]))


def test_a_partition_that_lags_behind_does_not_lift_the_window_of_the_others() -> None:
    key = Key()
    assert key.takes(Asked(0, 0, 3_600_000))
    assert key.takes(Asked(1, 0, 0)), "an hour before"
    assert not key.takes(Asked(0, 1, 3_600_001))
    assert not key.takes(Asked(1, 1, 1_000))
    assert not key.takes(Asked(2, 0, 2_000)), "another partition, the same window"
    assert key.takes(Asked(1, 2, 30_000))


def test_records_without_a_time_count_when_they_are_read() -> None:
    key = Key()
    assert key.takes(Asked(0, 0, None), NOW)
    assert not key.takes(Asked(0, 1, None), NOW + 29_999)
    assert not key.takes(Asked(0, 1, None), NOW + 40_000), "again"
    assert key.takes(Asked(0, 2, None), NOW + 30_000)


def test_the_offsets_of_a_topic_that_was_made_anew_count_again() -> None:
    key = Key()
    assert key.takes(Asked(0, 1_000, 0))
    assert key.takes(Asked(0, 0, WINDOW_MS))


def test_a_mark_stays_as_long_as_ended_executions_are_known() -> None:
    row = judge(None, start(Asked(0, 0, -10 * HOUR_MS), NOW)).row
    assert row is not None
    assert not is_over(row, 24 * HOUR_MS, NOW + 24 * HOUR_MS)
    assert is_over(row, 24 * HOUR_MS, NOW + 24 * HOUR_MS + WINDOW_MS + 1)
    assert not is_over(row, 1, NOW + HOUR_MS), "an hour in any case"


@given(st.binary(max_size=40))
def test_a_row_of_another_build_is_no_mark(row: bytes) -> None:
    assert not judge(row, start(Asked(0, 0, 0))).held_back
    assert is_over(row, 0, NOW)


def test_a_key_remembers_the_sources_that_spoke_last() -> None:
    key = Key()
    for source in range(400):
        key.takes(Asked(source, 0, source * WINDOW_MS))
    assert key.row is not None
    assert not key.takes(Asked(399, 0, 399 * WINDOW_MS))
    assert len(key.row) < 256 * 100
