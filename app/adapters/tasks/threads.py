"""Threads for tasks that block: one task a thread, and a thread that does not come back is left behind.

The standard library's pool cannot leave a thread behind, and waits for all of them when the interpreter ends.
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from app import metrics

_STOP: Final = None
Work = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class _Thread:
    """One daemon thread and the work it is given."""

    def __init__(self, number: int) -> None:
        self.work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.abandoned = False
        threading.Thread(target=self._run, name=f"task-{number}", daemon=True).start()

    def _run(self) -> None:
        while (given := self.work.get()) is not _STOP:
            function, outcome, loop = given
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 - SystemExit too is the task's own failure
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_settle, outcome, result, error)
            del function, outcome, loop, result, error, given


def _settle(outcome: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if outcome.done():
        return
    if error is not None:
        outcome.set_exception(Raised(error))
    else:
        outcome.set_result(result)


class Raised(Exception):
    """Carries what a function raised: a future refuses to hold `StopIteration`, and a loop ends on `SystemExit`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)  # its own words may raise anything
        self.error = error


class ThreadPool:
    """At most `size` threads at work, besides those that were left behind."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._busy = 0
        self._number = 0
        self._idle: list[_Thread] = []
        self._queue: deque[asyncio.Future[None]] = deque()
        self.abandoned = 0

    async def run(self, function: Callable[[], Any], began: Callable[[], None]) -> Any:
        """What `function` returns, called in a thread; `began` is called on the loop just before.

        Raises `Raised` with what it raised. Cancelled, the thread is left behind and counted until it comes back.
        """
        await self._turn()
        loop = asyncio.get_running_loop()
        thread = self._idle.pop() if self._idle else self._new_thread()
        outcome: asyncio.Future[Any] = loop.create_future()
        began()
        thread.work.put((function, outcome, loop))
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            thread.abandoned = True
            self.abandoned += 1
            metrics.TASKS_ABANDONED.labels("thread").inc()
            outcome.add_done_callback(lambda done: self._came_back(thread, done))
            raise
        finally:
            if not thread.abandoned:
                self._idle.append(thread)
            self._busy -= 1
            self._wake()

    def close(self) -> None:
        """Let the idle threads end; those at work end when they come back, or with the process."""
        for thread in self._idle:
            thread.work.put(_STOP)
        self._idle.clear()

    def _new_thread(self) -> _Thread:
        self._number += 1
        return _Thread(self._number)

    def _came_back(self, thread: _Thread, outcome: "asyncio.Future[Any]") -> None:
        outcome.exception()  # nobody waits for it any more
        self.abandoned -= 1
        metrics.TASKS_ABANDONED.labels("thread").dec()
        thread.work.put(_STOP)

    async def _turn(self) -> None:
        if self._busy < self._size and not self._queue:
            self._busy += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._busy -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._queue and self._busy < self._size:
            turn = self._queue.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)
