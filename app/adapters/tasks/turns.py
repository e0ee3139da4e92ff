"""Waiting for one's turn at what tasks share: it is no part of a call's time-out, nor of the executor's own.

The time-out that a definition gives a task is the engine's, too, and goes on.

With it 3,700 requests that waited for 32 connections were given up after 5 s each, most of them on their way, and came
again: for minutes a service that took 90 requests a second saw nothing but repetitions, and nothing ended. The
attempt that a coroutine works for is found in its context, as for `app.adapters.tasks.spans`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Final

_told: Final[ContextVar[Callable[[bool], None] | None]] = ContextVar("told", default=None)


def tell(waits: Callable[[bool], None]) -> None:
    """`waits` is called with True when the attempt of this context begins to wait, and with False at the end."""
    _told.set(waits)


@contextlib.asynccontextmanager
async def turn(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    """One of so many at once."""
    told = _told.get() if turns.locked() else None
    if told is not None:
        told(True)
    try:
        await turns.acquire()
    finally:
        if told is not None:
            told(False)
    try:
        yield
    finally:
        turns.release()
