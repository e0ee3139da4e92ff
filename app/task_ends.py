"""How a task has ended, where a cancellation that nobody asked for is an error like any other.

`await` hands on the CancelledError of whatever it waits for. A client that cancels a request of its own and waits for
it ends its caller so: the caller looks as if it had been stopped in order, and nobody hears that its work has ended.
"""

import asyncio
from typing import Any


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
    return StrayCancellation(f"{task.get_name()} ended as if it had been cancelled, and nobody had cancelled it")
