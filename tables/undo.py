"""What the rows of a transaction were before it, as bytes: a disk goes back behind what another owner overruled.

each row: 4 bytes length of the key, 4 bytes length of the value before (-1: there was none), key, value
"""

import struct
from collections.abc import Mapping
from typing import Final

_SIZES: Final = struct.Struct(">ii")


def pack_undo(before: Mapping[bytes, bytes | None]) -> bytes:
    """The values before, by key."""
    parts: list[bytes] = []
    for key, value in before.items():
        parts += (_SIZES.pack(len(key), -1 if value is None else len(value)), key, value or b"")
    return b"".join(parts)


def unpack_undo(packed: bytes) -> dict[bytes, bytes | None]:
    """The values before, by key."""
    found: dict[bytes, bytes | None] = {}
    at = 0
    while at < len(packed):
        key_bytes, value_bytes = _SIZES.unpack_from(packed, at)
        start = at + _SIZES.size
        at = start + key_bytes + max(0, value_bytes)
        found[packed[start : start + key_bytes]] = packed[start + key_bytes : at] if value_bytes >= 0 else None
    return found
