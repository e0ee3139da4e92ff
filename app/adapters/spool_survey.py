"""What an earlier process left in the spool's folder, by the heads of the batches: segments, and what is gone of them.

Numbers run through all segments. One that is neither done with, nor in a segment, nor given up to a limit was in a
file that is gone or cut short: it is a segment of its own then, without a byte, so that it is counted as damage when
its turn comes to be read, like all other damage.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from app.domain.spool import (
    HEAD_BYTES,
    Head,
    Span,
    batches,
    decode_position,
    decode_spans,
    head_at,
    joined,
    missing,
)

SUFFIX: Final = ".spool"
POSITION: Final = "position"
GIVEN_UP: Final = "given_up"


@dataclass(slots=True, eq=False)
class Segment:
    """One file: records `first` to `end`, of which `next` is the first that was not read, at byte `offset`."""

    path: Path
    first: int
    end: int
    size: int
    newest_ms: int
    offset: int = 0
    next: int = 0

    @property
    def unread(self) -> int:
        return self.end - self.next


class Left(NamedTuple):
    """What is in the folder; `number` is that of the next record, and below `position` everything is done with.

    `is_noted` when the folder says all of that itself.
    """

    segments: list[Segment]
    position: int
    number: int
    given_up: list[Span]
    is_noted: bool


def survey(folder: Path) -> Left:
    """The segments in order, with what is gone between them. Raises `OSError`."""
    noted = _position(folder)
    found = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit())
    segments = [_surveyed(path, noted or 0) for path in found]
    number = max([noted or 0, *(segment.end for segment in segments)])
    position = noted if noted is not None else min([number, *(one.first for one in segments)])
    there = [Span(segment.first, segment.end) for segment in segments]
    noted_spans = _given_up(folder)
    # Earlier versions did not write down what they gave up: what such a folder has not is taken for that.
    spans = missing(position, number, there) if noted_spans is None else noted_spans
    given_up = joined(position, number, spans)
    gone = [_gone(folder, span) for span in missing(position, number, [*there, *given_up])]
    whole = sorted([*segments, *gone], key=lambda segment: segment.first)
    return Left(whole, position, number, given_up, is_noted=noted is not None and noted_spans == given_up)


def _gone(folder: Path, span: Span) -> Segment:
    return Segment(folder / f"{span.first:020d}{SUFFIX}", span.first, span.end, 0, 0, 0, span.first)


def _surveyed(path: Path, position: int) -> Segment:
    """A segment of an earlier process by the heads in it; the payloads are not looked at before they are sent."""
    first, size = int(path.stem), path.stat().st_size
    segment = Segment(path, first, first, size, 0)
    for at, head in _heads(path, size):
        if head.end <= position:
            segment.offset = at + head.size
        segment.end = max(segment.end, head.end)
        segment.newest_ms = max(segment.newest_ms, head.at_ms)
    segment.next = min(max(first, position), segment.end)
    return segment


def _heads(path: Path, size: int) -> list[tuple[int, Head]]:
    """The heads of a segment and where they are: from one to the next, or all there are in a damaged one."""
    found: list[tuple[int, Head]] = []
    at = 0
    with path.open("rb", buffering=0) as file:
        while at < size:
            head = head_at(os.pread(file.fileno(), HEAD_BYTES, at), 0)
            if head is None or at + head.size > size:
                return [(one.at, one.head) for one in batches(path.read_bytes())]
            found.append((at, head))
            at += head.size
    return found


def _position(folder: Path) -> int | None:
    try:
        return decode_position((folder / POSITION).read_bytes())
    except FileNotFoundError:
        return None


def _given_up(folder: Path) -> list[Span] | None:
    """What fell to a limit; None when nobody wrote that down, nothing when it is damaged: rather too much is told."""
    try:
        return decode_spans((folder / GIVEN_UP).read_bytes()) or []
    except FileNotFoundError:
        return None
