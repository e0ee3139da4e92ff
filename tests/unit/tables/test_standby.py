"""Laws of standbys whose folders fail: the damaged begins anew at once, what cannot be opened is tried again."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from app.errors import EnvironmentError_
from app.ports import Followed
from tables.standby import COLD_RETRY_MS, Standbys
from tests.helpers.kafka import until
from tests.helpers.stages import SetClock
from tests.helpers.tables import (
    CHANGELOG,
    PLACE,
    T0_MS,
    Disk,
    Log,
    LogPublisher,
    MemoryStore,
    apply_inputs,
    open_tables,
)


class Follower:
    """Gives, of the one partition, what it is asked for."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.starts: Mapping[int, int] = {}

    def follow(self, starts: Mapping[int, int]) -> None:
        self.starts = dict(starts)

    async def poll(self) -> Sequence[Followed]:
        await asyncio.sleep(0)
        return [self.followed()] if self.starts else []

    def followed(self) -> Followed:
        found = [record for record in self.log.topics[CHANGELOG] if record.offset >= self.starts[0]]
        return Followed(0, found, self.log.end(CHANGELOG))


class FailingDisk(Disk):
    """Fails as it is told to, until it is told otherwise."""

    opening: EnvironmentError_ | None = None
    writing: EnvironmentError_ | None = None

    def open(self, path: Path) -> MemoryStore:
        if self.opening is not None:
            raise self.opening
        super().open(path)
        self.user = _Failing(self)
        return self.user


class _Failing(MemoryStore):
    def write(self, changes: object) -> None:
        assert isinstance(self._disk, FailingDisk)
        if (error := self._disk.writing) is not None:
            if error.facts.get("damaged"):
                self._disk.damaged, self._disk.writing = True, None
            raise error
        super().write(changes)  # type: ignore[arg-type]


async def a_log() -> Log:
    """Of an owner that has written something."""
    log = Log()
    tables, _ = await open_tables(log, Disk(), LogPublisher(log))
    written = tables.write(apply_inputs(tables, 3), timestamp_ms=T0_MS)
    await tables.settle(written, timestamp_ms=T0_MS)
    tables.close()
    return log


def standing_by(log: Log, disk: Disk, clock: SetClock) -> tuple[Standbys, Follower]:
    follower = Follower(log)
    return Standbys(lambda _: PLACE, disk, follower, clock.now_ms), follower


async def test_a_damaged_store_begins_anew_at_once() -> None:
    log, disk = await a_log(), FailingDisk()
    standbys, follower = standing_by(log, disk, SetClock())
    standbys.keep({0})
    disk.writing = EnvironmentError_("a block is damaged", damaged=True)
    standbys.feed(follower.followed())
    assert standbys.partitions == (0,)
    assert standbys.behind(0) is None, "of what it was before nothing is said any more"
    standbys.feed(follower.followed())
    assert standbys.behind(0) == 0
    standbys.close()


async def test_a_folder_that_cannot_be_opened_is_tried_again() -> None:
    log, disk, clock = await a_log(), FailingDisk(), SetClock()
    disk.opening = EnvironmentError_("another process has it", locked=True)
    standbys, _ = standing_by(log, disk, clock)
    standbys.keep({0})
    assert not standbys.partitions
    disk.opening = None
    standbys.keep({0})
    assert not standbys.partitions, "not before its time"
    clock.ms += COLD_RETRY_MS
    running = asyncio.create_task(standbys.run())
    await until(lambda: standbys.partitions, "it is warm")
    running.cancel()
    standbys.close()


async def test_a_disk_that_was_full_is_tried_again_and_a_partition_that_went_is_not() -> None:
    log, disk, clock = await a_log(), FailingDisk(), SetClock()
    standbys, follower = standing_by(log, disk, clock)
    standbys.keep({0})
    disk.writing = EnvironmentError_("No space left on device")
    standbys.feed(follower.followed())
    assert not standbys.partitions
    disk.writing = None
    clock.ms += COLD_RETRY_MS
    standbys.keep(())
    standbys._try_again()
    assert not standbys.partitions
    standbys.keep({0})
    assert standbys.held() != {}
    standbys.close()


async def test_tables_that_are_being_opened_hold_what_they_held() -> None:
    """A round that comes meanwhile would else take them from who has them, and the next one back again."""
    log, disk = await a_log(), Disk()
    standbys, follower = standing_by(log, disk, SetClock())
    standbys.keep({0})
    standbys.feed(follower.followed())
    held, publisher, seen = standbys.held()[0], LogPublisher(log), list[int]()
    now: list[Callable[[], int]] = []
    publisher.gate.allow(0)
    opening = asyncio.create_task(open_tables(log, disk, publisher, warm=standbys.take(0), holding=now.append))
    while not opening.done():
        await asyncio.sleep(0)
        seen += [holding() for holding in now[-1:]]
        publisher.gate.allow(1)
    tables, restored = opening.result()
    assert (restored.warm, len(seen) > 2, seen[0]) == (True, True, held)
    assert seen == sorted(seen), "never less than a moment ago"
    assert seen[-1] >= log.end(CHANGELOG) - 1, "its own records, too: a standby that follows them is no newer"
    assert now[-1]() == tables.held
    tables.close()
