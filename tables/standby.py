"""Tables of partitions that another node owns, kept warm: a takeover reads only what came a moment ago.

(1) a standby does steps (2) and (3) of `tables.restore` without end, behind the owner by one fetch;
(2) whoever takes the partition over gets the open store, and does the rest;
(3) what lies on the disk from before is followed on, unless it is damaged or cannot become what the changelog says:
    then it is emptied here, where nobody waits for it;
(4) a folder that cannot be opened or written (another process has it, the disk is full) is tried again after a while.
A standby writes nothing to the changelog and sends nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol

from app.errors import EnvironmentError_
from app.ports import Followed, InRecord
from tables.restore import Opening, Place, StoreFolder

log = logging.getLogger(__name__)

REMEMBER_EVERY_MS: Final = 5_000
COLD_RETRY_MS: Final = 5_000


class Follower(Protocol):
    """Reads the ends of changelog partitions for as long as it is asked to (`app.adapters.changelog_follower`)."""

    def follow(self, starts: Mapping[int, int]) -> None:
        """From the next `poll` on these partitions and no others, each from an offset."""

    async def poll(self) -> Sequence[Followed]:
        """What has come; waits a moment when that is nothing."""


class Standbys:
    """The warm tables of one changelog on this node. `run` beside everything else; the rest is called in its loop."""

    def __init__(
        self, place: Callable[[int], Place], folder: StoreFolder, follower: Follower, now_ms: Callable[[], int]
    ) -> None:
        self._place = place
        self._folder = folder
        self._follower = follower
        self._now_ms = now_ms
        self._kept: dict[int, Opening] = {}
        self._cold: dict[int, int] = {}  # wanted, and when to try again
        self._ends: dict[int, int] = {}
        self._remembered: dict[int, int] = {}
        self._changed = asyncio.Event()

    @property
    def partitions(self) -> tuple[int, ...]:
        """What is kept warm now."""
        return tuple(sorted(self._kept))

    def held(self) -> dict[int, int]:
        """The next changelog offset that the tables of each partition have not seen; may be asked from a thread."""
        return {partition: opening.next for partition, opening in list(self._kept.items())}

    def behind(self, partition: int) -> int | None:
        """Changelog records that a partition's tables have not seen; None before that is known."""
        opening, end = self._kept.get(partition), self._ends.get(partition)
        return None if opening is None or end is None else max(0, end - opening.next)

    def keep(self, partitions: Collection[int]) -> None:
        """Keep exactly these warm from now on.

        One whose folder cannot be opened, be it that its owner is on this machine and has not let go of it, stays cold
        for a while (4), and that is said.
        """
        self._cold = {partition: due_ms for partition, due_ms in self._cold.items() if partition in partitions}
        for partition in [p for p in self._kept if p not in partitions]:
            self._kept.pop(partition).close()
            self._forget(partition)
        for partition in sorted(partitions):
            if partition not in self._kept and partition not in self._cold:
                self._open(partition)
        self._follow()

    def take(self, partition: int) -> Opening | None:
        """Hand a partition's tables over to who owns it from now on; None when they are not warm."""
        self._cold.pop(partition, None)
        opening = self._kept.pop(partition, None)
        if opening is not None:
            self._forget(partition)
            self._follow()
        return opening

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            self._changed.clear()
            self._try_again()
            if not self._kept:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(COLD_RETRY_MS / 1000 if self._cold else None):
                        await self._changed.wait()
                continue
            for followed in await self._follower.poll():
                self.feed(followed)
                if self._changed.is_set():
                    break  # the rest of this poll is fetched again, from where each partition is

    def close(self) -> None:
        """Let go of every folder."""
        self.keep(())

    def _open(self, partition: int) -> None:
        opening = Opening(self._place(partition), self._folder)
        try:
            reason = opening.open()
            if reason is not None:
                opening.begin_anew(reason)
        except EnvironmentError_ as error:
            opening.close()
            self._leave_cold(partition, error)
            return
        self._kept[partition] = opening

    def _try_again(self) -> None:
        """(4)."""
        now_ms = self._now_ms()
        due = [partition for partition, due_ms in self._cold.items() if now_ms >= due_ms]
        for partition in due:
            del self._cold[partition]
            self._open(partition)
        if due:
            self._follow()

    def _leave_cold(self, partition: int, error: EnvironmentError_) -> None:
        self._cold[partition] = self._now_ms() + COLD_RETRY_MS
        log.warning(
            "%s Its partition is not kept warm; tried again in %d s.",
            error,
            COLD_RETRY_MS // 1000,
            extra={"action": "standby_cold"},
        )

    def feed(self, followed: Followed) -> None:
        """Take what one poll brought of a partition; of one that is not kept any more, nothing."""
        opening = self._kept.get(followed.partition)
        if opening is None:
            return
        self._ends[followed.partition] = followed.end
        try:
            if followed.records and (reason := self._take(opening, followed.records)) is not None:
                opening.begin_anew(reason)
                self._follow()
                return
            now_ms = self._now_ms()
            if opening.next >= followed.end:
                opening.trust(now_ms)
            if now_ms - self._remembered.get(followed.partition, 0) >= REMEMBER_EVERY_MS and opening.remember():
                self._remembered[followed.partition] = now_ms
        except EnvironmentError_ as error:
            # Its store is as it was before what it was fed, or damaged: then it says so, and is emptied when opened.
            self._kept.pop(followed.partition).close()
            self._forget(followed.partition)
            if error.facts.get("damaged"):
                self._open(followed.partition)
            else:
                self._leave_cold(followed.partition, error)
            self._follow()
        except BaseException:
            self._kept.pop(followed.partition).close()  # half of what it was fed may be in it: nobody is to have it
            raise

    def _take(self, opening: Opening, records: Sequence[InRecord]) -> str | None:
        if records[0].offset < opening.next:
            return "the changelog is another one than before"
        opening.feed(records)
        if opening.replay.overrun:
            return None  # rows without their marker are not held against it: that may still come
        if opening.replay.overruled and opening.go_back():
            self._follow()
            return None
        return opening.doubts(self._now_ms())

    def _forget(self, partition: int) -> None:
        self._ends.pop(partition, None)
        self._remembered.pop(partition, None)

    def _follow(self) -> None:
        self._follower.follow(self.held())
        self._changed.set()
