"""A sink as the watchdog sees it: whether its loop goes on, whatever its target does."""

from collections.abc import Awaitable, Callable, Sequence

from agents.sink import SinkState
from app.domain.watchdog import Progress
from app.errors import SinkUnavailable
from app.ports import Clock, Sink, SinkRow


class SinkWatch:
    """Passes on what the loop asks of `target`, and counts its steps; implements `app.ports.Sink`.

    An attempt under way is no stall, however slow: each request of it has a time-out of its own, and another process
    would meet the same target. Nor is a wait for the next attempt, or for a batch to fill, before its time is over.
    """

    def __init__(self, target: Sink, clock: Clock, *, retry_s: float, flush_s: float) -> None:
        """`retry_s` is the longest wait between two attempts, `flush_s` the longest for a batch to fill."""
        self.name = target.name
        self.state = SinkState(target.name, "opening")
        self._target = target
        self._clock = clock
        self._retry_s = retry_s
        self._flush_s = flush_s
        self._steps = 0
        self._is_trying = False
        self._waits_until_s = float("-inf")

    async def open(self) -> None:
        """See `app.ports.Sink`."""
        await self._try(self._target.open)

    async def write(self, rows: Sequence[SinkRow]) -> None:
        """See `app.ports.Sink`."""
        await self._try(lambda: self._target.write(rows))

    async def close(self) -> None:
        """See `app.ports.Sink`."""
        await self._target.close()

    def took(self) -> None:
        """A batch was read, which may wait for more."""
        self._steps += 1
        self._wait(self._flush_s)

    def on_state(self, state: SinkState) -> None:
        """The loop says how it is; it does so around every group, also of records that have no rows."""
        self.state = state
        self._steps += 1

    def progress(self, lag: int) -> Progress:
        """For the watchdog, when `lag` records are not yet acknowledged."""
        waits = self._is_trying or self._clock.monotonic_s() < self._waits_until_s
        return Progress(0 if waits else lag, self._steps)

    async def _try(self, attempt: Callable[[], Awaitable[None]]) -> None:
        self._is_trying = True
        try:
            await attempt()
            self._waits_until_s = float("-inf")
        except SinkUnavailable:
            self._wait(self._retry_s)
            raise
        finally:
            self._is_trying = False
            self._steps += 1

    def _wait(self, wait_s: float) -> None:
        """No less than for what is waited for already: a batch may come while the one before it is tried again."""
        self._waits_until_s = max(self._waits_until_s, self._clock.monotonic_s() + wait_s)
