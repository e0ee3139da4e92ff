"""Whether this process may still believe that its partitions are its own."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final, NoReturn

from app.ports import Clock

# The answer to a question that is asked within one turn of the loop; whoever has none by then is stopped by epochs.
ASK_S: Final = 0.25

_held: "list[Lease]" = []


class Lease:
    """In doubt when the process stood still; lost when it did for as long as the group's session time-out.

    A process that stands still sends no heartbeats: others see it, have it leave its groups and take its partitions.
    What it decided before is still on its way when it goes on, and would end behind the next owner's claim, which would
    take the next owner for the one that is fenced. So the group is asked before anything else runs:
    (1) a stop (SIGSTOP, Ctrl-Z) of `stopped_s` shows at SIGCONT, whose handler comes before every other line of Python;
    (2) any other gap (a frozen container, a suspended machine) of `still_s` shows at the next look at the clock;
    (3) `is_member` asks the group, and waits within this very turn; None: nobody answered in time;
    (4) not a member any more: `end` ends the process at once, with all that it was about to send.
    """

    def __init__(
        self,
        clock: Clock,
        session_timeout_s: float,
        *,
        stopped_s: float = 0.2,
        still_s: float = 0.5,
    ) -> None:
        self._clock = clock
        self._limit_s = session_timeout_s
        self._stopped_s = stopped_s
        self._still_s = still_s
        self._beat_s = clock.monotonic_s()
        self._lost = False
        self.is_member: Callable[[float], bool | None] | None = None
        self.end: Callable[[float], NoReturn] | None = None

    def held(self) -> bool:
        """Look at the clock (2); False from the first gap of a session time-out on."""
        return self._look(self._still_s)

    def resumed(self) -> None:
        """The process was told to go on (1)."""
        self._look(self._stopped_s)

    def _look(self, doubtful_s: float) -> bool:
        now_s = self._clock.monotonic_s()
        gap_s, self._beat_s = now_s - self._beat_s, now_s
        if gap_s >= self._limit_s:
            self._lost = True
        if gap_s >= doubtful_s and self.is_member is not None and self.is_member(ASK_S) is False:  # 3
            assert self.end is not None, "whoever can ask says what follows"
            self.end(gap_s)  # 4
        return not self._lost

    def renew(self) -> None:
        """The group has assigned the partitions anew."""
        self._beat_s = self._clock.monotonic_s()
        self._lost = False

    async def keep(self, pause: Callable[[float], "asyncio.Future[None]"] | None = None) -> None:
        """Look at the clock a few times in the shortest gap that counts, for as long as the process runs."""
        sleep = pause or asyncio.sleep
        with _at_sigcont(self):
            while True:
                self.held()
                await sleep(min(self._stopped_s, self._limit_s) / 4)


@contextlib.contextmanager
def _at_sigcont(lease: Lease) -> Iterator[None]:
    """Python lets only the main thread have a signal; in another, and where there is none, (2) is all there is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGCONT, _resumed) if not _held else None
    _held.append(lease)
    try:
        yield
    finally:
        _held.remove(lease)
        if not _held:
            signal.signal(signal.SIGCONT, before or signal.SIG_DFL)


def _resumed(_signal: int, _frame: FrameType | None) -> None:
    for lease in tuple(_held):
        lease.resumed()
