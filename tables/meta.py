"""What a disk says of the tables on it, and the keys under which it says so."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

META: Final = b"\x01meta"
PENDING: Final = b"\x02"
PENDING_END: Final = b"\x03"
UNDO: Final = b"\x03"
UNDO_END: Final = b"\x04"
ROWS: Final = b"\x10"
ROWS_END: Final = b"\x11"
_NUMBER: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Meta:
    """What the disk says of itself.

    `number` is the last transaction written, `marked` the last one whose marker was acknowledged;
    every changelog record before `changelog_next` is in the rows, and every outbox before it is delivered, as are
    all outputs up to transaction `delivered`. `written_ms` is the wall clock.
    """

    epoch: int = 0
    number: int = 0
    marked: int = 0
    changelog_next: int = 0
    written_ms: int = 0
    applied: Mapping[str, int] = field(default_factory=dict)
    delivered: int = 0

    def to_bytes(self) -> bytes:
        """As JSON."""
        numbers = [self.epoch, self.number, self.marked, self.changelog_next, self.written_ms]
        return orjson.dumps([*numbers, dict(self.applied), self.delivered])

    @classmethod
    def from_bytes(cls, value: bytes) -> "Meta":
        """From JSON; where nothing is said of deliveries, all that was marked was delivered."""
        epoch, number, marked, *rest = orjson.loads(value)
        changelog_next, written_ms, applied, *delivered = rest
        return cls(epoch, number, marked, changelog_next, written_ms, applied, *(delivered or [marked]))


def pending_key(number: int) -> bytes:
    """Where the store keeps the outbox of a transaction."""
    return PENDING + _NUMBER.pack(number)


def undo_key(number: int) -> bytes:
    """Where the store keeps what the rows of a transaction were before it."""
    return UNDO + _NUMBER.pack(number)


def number_of(key: bytes) -> int:
    """The transaction of a `pending_key` or `undo_key`."""
    number: int = _NUMBER.unpack_from(key, 1)[0]
    return number
