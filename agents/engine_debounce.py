r"""Marks of debounced starts: `d` workflow `\x1f` key holds, for each source of records, the last that was decided.

A source is a partition of a topic, whose records come in the order of their offsets, some of them again: what was
decided once is not decided a second time, whatever the clock says by then and whatever was accepted since. The
window is counted in the records' own time, so that records which come late, or all at once after an absence,
start what they would have started in time.
"""

from typing import Final, NamedTuple

import msgspec

from app.domain.workflow.commands import Start

MARKS: Final = b"d"
DEBOUNCE_MAX_S: Final = 366 * 86_400  # as long as a definition may say
# A key whose records come from more partitions than this forgets the source that was silent longest.
SOURCES_MAX: Final = 256
# A mark is kept at least so long behind its window, for starts that come late.
LATE_MS: Final = 3_600_000


class Source(msgspec.Struct, array_like=True, frozen=True):
    """What was decided of one source: its last offset, and which instants its last accepted start holds back.

    Every instant that was decided so far lies before `latest_ms`. A start that no record asked for has the source ""
    and the offset -1.
    """

    name: str
    offset: int
    accepted_ms: int
    until_ms: int
    latest_ms: int


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """A row: `seen_ms` is the wall clock of the last decision; the source that was decided last is the last."""

    seen_ms: int
    sources: tuple[Source, ...]


class Verdict(NamedTuple):
    """`row` is the row as it is to be from now on, None when it stays as it is."""

    held_back: bool
    row: bytes | None


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Mark)


def mark_key(workflow: str, key: str) -> bytes:
    """Of the row."""
    return MARKS + f"{workflow}\x1f{key}".encode()


def judge(row: bytes | None, start: Start) -> Verdict:
    """Whether a debounced start is one too many."""
    debounce = start.debounce
    assert debounce is not None, "only debounced starts are judged"
    mark = None if row is None else _read(row)
    sources = () if mark is None else mark.sources
    own = next((each for each in sources if each.name == debounce.source), None)
    is_dated = debounce.at_ms > 0
    at_ms = debounce.at_ms if is_dated else start.at_ms
    if own is not None and 0 <= debounce.offset <= own.offset and (at_ms < own.latest_ms or not is_dated):
        return Verdict(held_back=True, row=None)  # a low offset of a later time is of a topic that was made anew
    if own is not None and _holds(own, at_ms) and is_dated:
        return Verdict(held_back=True, row=None)  # as often as it comes, until a later one of its source is accepted
    others = tuple(each for each in sources if each.name != debounce.source)[-(SOURCES_MAX - 1) :]
    latest_ms = max(at_ms + 1, 0 if own is None else own.latest_ms)
    if any(_holds(each, at_ms) for each in sources):
        # To be noted: what held it back may be over, or another start's window, when it comes again.
        before = (0, 0) if own is None else (own.accepted_ms, own.until_ms)
        decided = Source(debounce.source, debounce.offset, *before, latest_ms)
        row = _encode(Mark(start.at_ms, (*others, decided))) if debounce.offset >= 0 else None
        return Verdict(held_back=True, row=row)
    until_ms = at_ms + round(debounce.seconds * 1000)
    accepted = Source(debounce.source, debounce.offset, at_ms, until_ms, max(latest_ms, until_ms))
    return Verdict(held_back=False, row=_encode(Mark(start.at_ms, (*others, accepted))))


def is_over(row: bytes, retention_ms: int, now_ms: int) -> bool:
    """A mark whose key has been silent for its window and for as long as ended executions are known."""
    mark = _read(row)
    if mark is None:
        return True
    window_ms = max(each.until_ms - each.accepted_ms for each in mark.sources)
    return mark.seen_ms + window_ms + max(retention_ms, LATE_MS) < now_ms


def _holds(source: Source, at_ms: int) -> bool:
    """Whether an instant is within the window of the last accepted start, also when it lies before that."""
    return abs(at_ms - source.accepted_ms) < source.until_ms - source.accepted_ms


def _read(row: bytes) -> Mark | None:
    """None for the form of another build: a mark is worth less than a partition that goes on."""
    try:
        mark = _decoder.decode(row)
    except msgspec.MsgspecError:
        return None
    return mark if mark.sources else None
