"""How the signal state of a device is kept in a table: its key, and bytes with a version."""

from typing import Any

import orjson

from app.domain.signal_state import SignalState

VERSION = 1
_PREFIX = bytes((VERSION,))


def key(device_id: str) -> bytes:
    """The table's key; state is co-partitioned with the device's samples."""
    return device_id.encode()


def to_bytes(state: SignalState) -> bytes:
    """The state's bytes; the state counts as saved from here (`dirty` is False again)."""
    return _PREFIX + orjson.dumps(state.snapshot())


def from_bytes(device_id: str, raw: bytes | None) -> SignalState:
    """The state that `to_bytes` gave; None is a device without one.

    Raises ValueError for bytes of another version.
    """
    if raw is None:
        return SignalState(device_id)
    if raw[:1] != _PREFIX:
        raise ValueError(f"signal state of version {raw[:1].hex() or 'none'} cannot be read, only {VERSION}")
    snapshot: list[Any] = orjson.loads(raw[1:])
    return SignalState.restore(device_id, snapshot)
