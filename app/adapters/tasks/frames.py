"""Frames between a process and its task processes: one byte that says what it is, four of length, the content."""

import struct
from typing import Final

HEAD: Final = struct.Struct(">cI")
# What a task process may say of an error, whatever its results may be.
ERROR_BYTES: Final = 65_536

# To the task process.
JOB: Final = b"J"
CANCEL: Final = b"C"
# From it.
READY: Final = b"R"
HEARTBEAT: Final = b"H"
LAST: Final = b"L"  # the answer that follows is its last one
RESULT: Final = b"D"
ERROR: Final = b"E"


class Broken(ValueError):
    """What came is no frame."""


def frame(kind: bytes, content: bytes = b"") -> bytes:
    """One frame."""
    return HEAD.pack(kind, len(content)) + content


class Reader:
    """Cuts a stream of bytes into frames of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, some: bytes) -> list[tuple[bytes, bytes]]:
        """The frames that are whole with `some`. Raises `Broken`."""
        buffer = self._buffer
        buffer += some
        found: list[tuple[bytes, bytes]] = []
        at = 0
        while len(buffer) - at >= HEAD.size:
            kind, size = HEAD.unpack_from(buffer, at)
            if size > self._limit:
                raise Broken(f"a frame of {size} bytes, more than {self._limit}")
            end = at + HEAD.size + size
            if len(buffer) < end:
                break
            found.append((kind, bytes(buffer[at + HEAD.size : end])))
            at = end
        del buffer[:at]
        return found
