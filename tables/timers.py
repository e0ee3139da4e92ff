"""Durable timers: rows in the order they are due, and in memory only those that are due soon.

A row's key is `t`, the due time (8 bytes, big endian, ms UTC), the owner's id, a zero byte and the timer's name;
its value is empty. Of a name an owner has at most one timer, which whoever sets it knows the due time of.
"""

import struct
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Final, NamedTuple

TIMERS: Final = b"t"
_DUE: Final = struct.Struct(">Q")
_HEAD: Final = len(TIMERS) + _DUE.size
_FOREVER_MS: Final = (1 << 64) - 1

Range = Callable[[bytes, bytes], Iterator[tuple[bytes, bytes]]]


class Timer(NamedTuple):
    """One that is due."""

    due_ms: int
    owner: str
    name: str
    key: bytes


def timer_key(due_ms: int, owner: str, name: str) -> bytes:
    """The key of a timer's row."""
    return b"".join((TIMERS, _DUE.pack(max(0, due_ms)), owner.encode(), b"\x00", name.encode()))


def timer_of(key: bytes) -> Timer:
    """What the key of a row says."""
    owner, _, name = key[_HEAD:].partition(b"\x00")
    return Timer(_DUE.unpack_from(key, len(TIMERS))[0], owner.decode(), name.decode(), key)


class Timers:
    """Which timers are due. Every timer due before `horizon` is in the heap; the others are only rows.

    `set` and `clear` are told of rows as they are decided; `refill` reads rows, so it must be called between
    decisions, when every row told of is written.
    """

    def __init__(self, rows: Range, lookahead_ms: int, most: int) -> None:
        self._rows = rows
        self._lookahead_ms = lookahead_ms
        self._most = most
        self._horizon_ms = 0
        self._heap: list[bytes] = []
        self._set: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._set)

    def set(self, key: bytes) -> None:
        """A timer's row is about to be written."""
        if _DUE.unpack_from(key, len(TIMERS))[0] < self._horizon_ms and key not in self._set:
            self._set.add(key)
            heappush(self._heap, key)

    def clear(self, key: bytes) -> None:
        """A timer's row is about to be deleted; its entry in the heap goes when it comes up."""
        self._set.discard(key)

    def next_ms(self) -> int:
        """When `due` may have something to say, or more rows have to be read."""
        heap = self._heap
        while heap and heap[0] not in self._set:
            heappop(heap)
        if heap:
            return min(int(_DUE.unpack_from(heap[0], len(TIMERS))[0]), self._horizon_ms)
        return self._horizon_ms

    def refill(self, now_ms: int) -> None:
        """Read the rows that are due soon, when those in memory may not be all of them."""
        early = self._horizon_ms <= now_ms + self._lookahead_ms // 2 and 2 * len(self._set) < self._most
        if not early and self._horizon_ms > now_ms:
            return
        until_ms = now_ms + self._lookahead_ms
        last_ms = begin_ms = self._horizon_ms
        rows = self._rows(TIMERS + _DUE.pack(begin_ms), TIMERS + _DUE.pack(min(until_ms, _FOREVER_MS)))
        for read, (key, _) in enumerate(rows):
            due_ms = _DUE.unpack_from(key, len(TIMERS))[0]
            if read >= self._most and due_ms > last_ms:
                until_ms = due_ms  # of one instant all are read, so that the horizon is exact
                break
            last_ms = due_ms
            if key not in self._set:
                self._set.add(key)
                heappush(self._heap, key)
        self._horizon_ms = until_ms

    def due(self, now_ms: int, most: int) -> list[Timer]:
        """At most `most` timers that are due, earliest first; their rows are still to be deleted."""
        found: list[Timer] = []
        heap = self._heap
        while heap and len(found) < most:
            key = heap[0]
            if key not in self._set:
                heappop(heap)
                continue
            timer = timer_of(key)
            if timer.due_ms > now_ms:
                break
            heappop(heap)
            self._set.discard(key)
            found.append(timer)
        return found
