"""How much of what waits one turn of the loop takes: the lease must be kept, and others have their turn."""

from collections import deque
from collections.abc import Iterator
from typing import Final, TypeVar

from app.ports import Clock

T = TypeVar("T")
AT_ONCE: Final = 500
# An execution with a long history takes 100 ms to read.
READING_S: Final = 0.02


def a_few(line: deque[T], clock: Clock) -> Iterator[T]:
    """Take from the front of a line until `AT_ONCE` are taken or `READING_S` are over; at least one."""
    until_s = clock.monotonic_s() + READING_S
    for _ in range(min(len(line), AT_ONCE)):
        yield line.popleft()
        if clock.monotonic_s() >= until_s:
            return
