"""How a task has ended, where a cancellation that nobody asked for is an error like any other.

`await` hands on the CancelledError of whatever it waits for. A client that cancels a request of its own and waits for
it ends its caller so: the caller looks as if it had been stopped in order, and nobody hears that its work has ended.
"""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class StrayCancellation(RuntimeError):
    """A task ended as if it had been cancelled, and nobody had."""


def error_of(task: "asyncio.Future[Any]") -> BaseException | None:
    """What a task that is done has failed with; None when it returned, or was cancelled by somebody.

    A future that is no task is cancelled by whoever holds it.
    """
    if not task.cancelled():
        return task.exception()
    if not isinstance(task, asyncio.Task) or task.cancelling():
        return None
    return StrayCancellation(_says(task))


class Parts(asyncio.TaskGroup):
    """A group of tasks that passes over none: a part that nobody cancelled and that ends as if fails the group."""

    def create_task(  # type: ignore[override]  # coroutines, no generators
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> "asyncio.Task[T]":
        task = super().create_task(_minded(coro), name=name, context=context)
        # One that is cancelled before its first step has never been awaited.
        task.add_done_callback(lambda _: coro.close())
        return task


async def _minded(part: Coroutine[Any, Any, T]) -> T:
    try:
        return await part
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StrayCancellation(_says(task)) from None


def _says(task: "asyncio.Task[Any]") -> str:
    return f"{task.get_name()} ended as if it had been cancelled, and nobody had cancelled it"
