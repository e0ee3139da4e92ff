"""Laws of duplicate and gap detection."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.dedupe import DUPLICATE, FORGOTTEN, NEW, DedupeSpec, Seen, count_all, has_pending, observe, take_gaps

WIDE = DedupeSpec(sessions=8, missing_ranges=1_000, horizon_seqs=10)
arrivals = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 60)), max_size=150)


def feed(seqs: list[int], spec: DedupeSpec = WIDE) -> tuple[Seen, list[int]]:
    seen = Seen()
    return seen, [observe(seen, 1, seq, spec) for seq in seqs]


@given(arrivals)
def test_a_seq_is_new_exactly_once_in_any_order(pairs) -> None:
    seen = Seen()
    known: set[tuple[int, int]] = set()
    for session_id, seq in pairs:
        verdict = observe(seen, session_id, seq, WIDE)
        assert verdict == (DUPLICATE if (session_id, seq) in known else NEW)
        known.add((session_id, seq))


@given(arrivals)
def test_in_the_end_the_gaps_are_the_seqs_that_never_came(pairs) -> None:
    seen = Seen()
    observe(seen, 1, 1, WIDE)  # a device that was known before, so that no session is joined midway
    for session_id, seq in pairs:
        observe(seen, session_id, seq, DedupeSpec(8, 1_000, 1_000_000))
    count_all(seen)
    came = {(1, 1), *pairs}
    missing = sum(
        seq not in {other for session, other in came if session == session_id}
        for session_id in {session for session, _ in came}
        for seq in range(1, max(other for session, other in came if session == session_id))
    )
    assert take_gaps(seen) == missing
    assert not has_pending(seen)
    count_all(seen)
    assert take_gaps(seen) == 0


@given(arrivals, st.integers(1, 5), st.integers(1, 3), st.integers(1, 20))
def test_a_bounded_memory_forgets_openly_and_never_takes_a_seq_twice(pairs, ranges, sessions, horizon) -> None:
    spec = DedupeSpec(sessions, ranges, horizon)
    seen = Seen()
    known: set[tuple[int, int]] = set()
    for session_id, seq in pairs:
        verdict = observe(seen, session_id, seq, spec)
        if verdict == NEW:
            assert (session_id, seq) not in known
            known.add((session_id, seq))
        elif verdict == DUPLICATE:
            assert (session_id, seq) in known
        assert len(seen.sessions) <= sessions
        assert all(len(session.missing) <= ranges for session in seen.sessions)


@given(arrivals, st.integers(1, 20))
def test_no_gap_is_counted_twice(pairs, horizon) -> None:
    seen = Seen()
    for session_id, seq in pairs:
        observe(seen, session_id, seq, DedupeSpec(8, 1_000, horizon))
    count_all(seen)
    longest = sum(max((seq for session, seq in pairs if session == one), default=0) for one in (1, 2, 3))
    assert 0 <= take_gaps(seen) <= longest


def test_a_gap_is_counted_when_it_leaves_the_horizon_and_not_before() -> None:
    seen, _ = feed([1, 2, 4, *range(5, 13)])
    assert take_gaps(seen) == 0
    observe(seen, 1, 13, WIDE)
    assert take_gaps(seen) == 1


def test_a_gap_filled_within_the_horizon_is_no_gap() -> None:
    seen, verdicts = feed([1, 2, 4, 5, 3, *range(6, 100)])
    assert set(verdicts) == {NEW}
    assert take_gaps(seen) == 0


def test_a_seq_counted_as_a_gap_is_still_taken_when_it_comes() -> None:
    seen, _ = feed([1, 3, *range(4, 50)])
    assert take_gaps(seen) == 1
    assert observe(seen, 1, 2, WIDE) == NEW
    assert observe(seen, 1, 2, WIDE) == DUPLICATE
    assert take_gaps(seen) == 0


def test_the_first_seqs_of_a_session_that_never_came_are_a_gap() -> None:
    seen, _ = feed([4, *range(5, 60)])
    assert take_gaps(seen) == 3


def test_a_session_joined_midway_has_no_gap_before_it() -> None:
    seen, verdicts = feed([5_000, *range(5_001, 5_100), 4_000])
    assert set(verdicts) == {NEW}
    count_all(seen)
    assert take_gaps(seen) == 0


def test_the_gaps_of_a_superseded_session_are_counted() -> None:
    seen = Seen()
    for seq in (1, 3):
        observe(seen, 1, seq, WIDE)
    for seq in range(1, 10):
        observe(seen, 2, seq, WIDE)
    assert take_gaps(seen) == 0
    observe(seen, 2, 10, WIDE)
    assert take_gaps(seen) == 1


def test_a_session_older_than_all_remembered_is_forgotten() -> None:
    seen = Seen()
    spec = DedupeSpec(sessions=2)
    for session_id in (5, 6, 7):
        assert observe(seen, session_id, 1, spec) == NEW
    assert observe(seen, 5, 2, spec) == FORGOTTEN
    assert observe(seen, 4, 1, spec) == FORGOTTEN
    assert observe(seen, 6, 2, spec) == NEW
