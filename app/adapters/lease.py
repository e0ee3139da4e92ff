"""Whether this process may still believe that its partitions are its own."""

import asyncio
from collections.abc import Callable

from app.ports import Clock


class Lease:
    """Lost when the process did not run for as long as the group's session time-out; renewed by an assignment.

    A stopped process (SIGSTOP, a suspended machine) sends no heartbeats either, so that the group has given
    its partitions away. The monotonic clock shows the gap at the first turn of the loop, before any write.
    """

    def __init__(self, clock: Clock, session_timeout_s: float) -> None:
        self._clock = clock
        self._limit_s = session_timeout_s
        self._beat_s = clock.monotonic_s()
        self._lost = False

    def held(self) -> bool:
        """Look at the clock; False from the first gap on."""
        now_s = self._clock.monotonic_s()
        if now_s - self._beat_s >= self._limit_s:
            self._lost = True
        self._beat_s = now_s
        return not self._lost

    def renew(self) -> None:
        """The group has assigned the partitions anew."""
        self._beat_s = self._clock.monotonic_s()
        self._lost = False

    async def keep(self, pause: Callable[[float], "asyncio.Future[None]"] | None = None) -> None:
        """Look at the clock a few times in each time-out, for as long as the process runs."""
        sleep = pause or asyncio.sleep
        while True:
            self.held()
            await sleep(self._limit_s / 10)
