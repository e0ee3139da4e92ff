"""Duplicate and gap detection on (device, session, seq), exact for any order of arrival.

A session is remembered as its highest seq and the ranges below it that have not come: a device that
loses nothing costs two integers, whatever its age.

    seen:     1 2 3 . . 6 7 . 9        high = 9, missing = [[4, 5], [8, 8]]

A seq in a missing range is new and fills it; any other seq up to `high` is a duplicate. A missing seq is counted as a
gap once, when `high` is `horizon_seqs` past it (or the device falls silent); should it come after all it is still new.
What was forgotten to stay bounded (`floor`, `forgotten_session`) is never guessed at: the verdict is FORGOTTEN.
"""

from bisect import bisect_right
from typing import Final, NamedTuple

NEW: Final = 0
DUPLICATE: Final = 1
FORGOTTEN: Final = 2

NEVER: Final = 2**63 - 1


class DedupeSpec(NamedTuple):
    """Bounds of the memory of one device."""

    sessions: int = 4
    missing_ranges: int = 64
    horizon_seqs: int = 128


class Session:
    """What is remembered of one session; mutable, owned by its device's state."""

    __slots__ = ("counted_to", "floor", "high", "missing", "session_id", "watch")

    def __init__(self, session_id: int) -> None:
        self.session_id = session_id
        self.high = 0
        self.floor = 0  # nothing is known of seqs up to here
        self.counted_to = 0  # gaps up to here have been counted
        self.watch = NEVER  # the `high` at which a gap falls due
        self.missing: list[list[int]] = []  # ascending, disjoint, inclusive

    def uncounted(self, up_to: int) -> int:
        """Return how many missing seqs in (counted_to, up_to] there are, and count them."""
        gaps = 0
        for first, last in self.missing:
            if first > up_to:
                break
            gaps += max(0, min(last, up_to) - max(first, self.counted_to + 1) + 1)
        self.counted_to = max(self.counted_to, up_to)
        return gaps

    def first_uncounted(self) -> int | None:
        """Return the lowest missing seq that is not yet counted as a gap."""
        for first, last in self.missing:
            if last > self.counted_to:
                return max(first, self.counted_to + 1)
        return None


class Seen:
    """The dedupe memory of one device; mutable, owned by the device's state."""

    __slots__ = ("current", "forgotten_session", "gaps", "sessions")

    def __init__(self) -> None:
        self.sessions: list[Session] = []  # ascending by id
        self.current: Session | None = None  # the one that spoke last
        self.forgotten_session = -1
        self.gaps = 0  # counted and not yet taken


def observe(seen: Seen, session_id: int, seq: int, spec: DedupeSpec) -> int:
    """Remember (session, seq) and return NEW, DUPLICATE or FORGOTTEN; gaps add up in `seen.gaps`."""
    session = seen.current
    if session is None or session.session_id != session_id:
        session = _session(seen, session_id, seq, spec)
        if session is None:
            return FORGOTTEN
    if seq == session.high + 1:
        session.high = seq
        if seq >= session.watch:
            _count_due(seen, session, spec)
        return NEW
    if seq > session.high:
        session.missing.append([session.high + 1, seq - 1])
        session.high = seq
        _trim(seen, session, spec)
        _count_due(seen, session, spec)
        return NEW
    if seq <= session.floor:
        return FORGOTTEN
    return _fill(seen, session, seq, spec)


def take_gaps(seen: Seen) -> int:
    """Return the gaps counted since the last call."""
    gaps, seen.gaps = seen.gaps, 0
    return gaps


def count_all(seen: Seen) -> None:
    """Count every missing seq now: the device is silent and the horizon would never be reached."""
    for session in seen.sessions:
        seen.gaps += session.uncounted(session.high)
        session.watch = NEVER


def has_pending(seen: Seen) -> bool:
    """Tell whether some missing seq is not yet counted."""
    return any(session.first_uncounted() is not None for session in seen.sessions)


def _session(seen: Seen, session_id: int, seq: int, spec: DedupeSpec) -> Session | None:
    for session in seen.sessions:
        if session.session_id == session_id:
            seen.current = session
            return session
    if session_id <= seen.forgotten_session:
        return None
    session = Session(session_id)
    if not seen.sessions and seq - 1 > spec.horizon_seqs:
        session.counted_to = seq - 1  # we joined in mid-session: what came before us is no gap
    seen.sessions.append(session)
    seen.sessions.sort(key=lambda item: item.session_id)
    if len(seen.sessions) > spec.sessions:
        oldest = seen.sessions.pop(0)
        seen.gaps += oldest.uncounted(oldest.high)
        seen.forgotten_session = oldest.session_id
        if oldest is session:
            return None
        if seen.current is oldest:
            seen.current = None
    seen.current = session
    _watch(seen, session, spec)
    return session


def _trim(seen: Seen, session: Session, spec: DedupeSpec) -> None:
    while len(session.missing) > spec.missing_ranges:
        last = session.missing[0][1]
        seen.gaps += session.uncounted(last)
        session.floor = last
        del session.missing[0]


def _fill(seen: Seen, session: Session, seq: int, spec: DedupeSpec) -> int:
    missing = session.missing
    index = bisect_right(missing, seq, key=lambda bounds: bounds[0]) - 1
    if index < 0 or missing[index][1] < seq:
        return DUPLICATE
    first, last = missing[index]
    missing[index : index + 1] = [bounds for bounds in ([first, seq - 1], [seq + 1, last]) if bounds[0] <= bounds[1]]
    _trim(seen, session, spec)
    _watch(seen, session, spec)
    return NEW


def _count_due(seen: Seen, session: Session, spec: DedupeSpec) -> None:
    seen.gaps += session.uncounted(session.high - spec.horizon_seqs)
    if session.high >= spec.horizon_seqs:  # a session this long has superseded those before it
        for older in seen.sessions:
            if older.session_id >= session.session_id:
                break
            seen.gaps += older.uncounted(older.high)
    _watch(seen, session, spec)


def _watch(seen: Seen, session: Session, spec: DedupeSpec) -> None:
    first = session.first_uncounted()
    session.watch = NEVER if first is None else first + spec.horizon_seqs
    for older in seen.sessions:
        if older.session_id >= session.session_id:
            break
        if older.first_uncounted() is not None:
            session.watch = min(session.watch, max(spec.horizon_seqs, session.high + 1))
