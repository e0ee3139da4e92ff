r"""Marks of debounced starts: `d` workflow `\x1f` key says when the last was accepted, and until when it counts."""

import struct
from typing import Final

MARKS: Final = b"d"
DEBOUNCE_MAX_S: Final = 366 * 86_400  # as long as a definition may say
_MARK: Final = struct.Struct(">QQ")


def mark_key(workflow: str, key: str) -> bytes:
    """Of the row."""
    return MARKS + f"{workflow}\x1f{key}".encode()


def mark(at_ms: int, seconds: float) -> bytes:
    """The row of a start that was accepted at `at_ms`."""
    return _MARK.pack(max(0, at_ms), max(0, at_ms) + round(seconds * 1000))


def holds_back(row: bytes | None, at_ms: int) -> bool:
    """Whether a start asked for at `at_ms` is one too many, also when it comes late and was asked for before."""
    if row is None:
        return False
    accepted_ms, until_ms = _MARK.unpack(row)
    return bool(abs(at_ms - accepted_ms) < until_ms - accepted_ms)


def is_over(row: bytes, now_ms: int) -> bool:
    """A mark that can hold nothing back any more, with an hour for starts that come late."""
    return bool(_MARK.unpack(row)[1] + 3_600_000 < now_ms)
