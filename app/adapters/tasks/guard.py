"""Ends a coroutine of a task that holds up the event loop: one that blocks, or computes without end.

Such a coroutine cannot be cancelled, for the loop that would cancel it does not turn. So: (1) a thread sees that the
loop does not turn, and sends a signal to the loop's thread; (2) the signal's handler runs in the midst of whatever
holds the loop up, also in the midst of a sleep; (3) when that is a task's own code, and the same task's for
`limit_s` at a stretch, the handler raises `HeldUp` there. A process that stands still as a whole, as with a
suspended machine, is none of it: the thread counts its own turns and not the time.
"""

import asyncio
import contextvars
import signal
import threading
from types import FrameType
from typing import Final

TURNS: Final = 10  # of the thread, in `limit_s`
SIGNAL: Final = signal.SIGURG  # ignored by whoever does not listen to it


class HeldUp(BaseException):
    """The task held up the loop. Like an exit, it is nothing that a task's `except Exception` should catch."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"the task held up the event loop for {limit_s:g} s; what blocks or computes belongs in a thread or process"
        )


_attempt: contextvars.ContextVar[object | None] = contextvars.ContextVar("task_attempt", default=None)


def enter() -> None:
    """From here to `leave` the current context runs the code of one attempt, as do the asyncio tasks it starts."""
    _attempt.set(object())


def leave() -> None:
    """The task's own code has ended."""
    _attempt.set(None)


class LoopGuard:
    """Watches the loop that it is made in; one for all executors of the loop."""

    _current: "LoopGuard | None" = None

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._users = 0
        self._turned = True
        self._suspect: object | None = None
        self._seen = 0
        self._stop = threading.Event()
        self._before = signal.signal(SIGNAL, self._look)
        threading.Thread(target=self._watch, name="loop guard", daemon=True).start()

    @classmethod
    def use(cls, limit_s: float) -> "LoopGuard | None":
        """The guard of the running loop; None where no signal can reach it, or `limit_s` is 0."""
        if limit_s <= 0 or threading.current_thread() is not threading.main_thread():
            return None
        guard = cls._current
        if guard is None or guard.loop is not asyncio.get_running_loop():
            guard = cls._current = cls(limit_s)
        guard._users += 1
        return guard

    def let_go(self) -> None:
        """Called once for each `use`."""
        self._users -= 1
        if not self._users:
            self._stop.set()
            if LoopGuard._current is self:
                LoopGuard._current = None
                signal.signal(SIGNAL, self._before or signal.SIG_DFL)

    # ---- the thread ----

    def _watch(self) -> None:
        """(1)"""
        while not self._stop.wait(self._limit_s / TURNS):
            if self._turned:
                self._turned = False
                try:
                    self.loop.call_soon_threadsafe(self._turn)
                except RuntimeError:  # the loop has ended
                    return
            elif not self._stop.is_set():
                signal.pthread_kill(self._thread_id, SIGNAL)

    # ---- the loop ----

    def _turn(self) -> None:
        self._turned = True
        self._suspect = None
        self._seen = 0

    def _look(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal's handler
        """(2) (3)"""
        attempt = _attempt.get()
        if attempt is None or attempt is not self._suspect:
            self._suspect = attempt
            self._seen = 0
            return
        self._seen += 1
        if self._seen >= TURNS - 1:
            self._seen = 0
            raise HeldUp(self._limit_s)
