"""Opening one partition's tables: trust the disk where it may be trusted, else the changelog.

(1) claim the partition on the changelog: nothing that an older owner writes behind the claim counts;
(2) open the store and read what it says of itself; a damaged one, or one from before the changelog
    forgot its deletions, is emptied;
(3) read the changelog from where the store has not seen it, up to the claim;
(4) nothing counts that the disk has not: the disk is ahead of the changelog and stays as it is;
    something does, and all of ours counted: its rows are added;
    something does, and some of ours did not count: the store is emptied and filled from the changelog;
(5) a new epoch begins, in one write: what never counted, or counts and may not have been sent, is sent again,
    what was half written is repaired.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from app.errors import EnvironmentError_, PublishFailed
from app.ports import InRecord, OutRecord
from tables.changelog import CLAIM, WAITING_ROWS, Replay, Tag, claim_value
from tables.partition import META, ROWS, ROWS_END, ChangelogPublisher, Meta, SingleTrip, Store, TablePartition

log = logging.getLogger(__name__)

PROGRESS_EVERY_S: Final = 2.0
# Kafka keeps a tombstone for delete.retention.ms, a day by default: a store that has not been written for
# half of that may hold rows whose deletion nobody tells of any more.
TRUSTED_AGE_MS: Final = 43_200_000


class ChangelogReader(Protocol):
    """Reads one changelog partition without a consumer group."""

    def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[InRecord]]:
        """Its records from `start` up to `end`, in order, in lists."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What one restore did: `records` read, `rows` written, and whether the disk had to be emptied."""

    records: int
    rows: int
    emptied: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition's tables live: a folder, a changelog topic and the partition's number."""

    path: Path
    changelog: str
    partition: int


class StoreFolder(Protocol):
    """Opens and empties store folders (`app.adapters.rocks`)."""

    def open(self, path: Path) -> Store:
        """Raises `EnvironmentError_`, with the fact `damaged` when the store's own files are at fault."""

    def empty(self, path: Path) -> None: ...


async def open_partition(
    place: Place,
    folder: StoreFolder,
    reader: ChangelogReader,
    publisher: ChangelogPublisher,
    owned: Callable[[], bool],
    now_ms: Callable[[], int],
    waiting_rows: int = WAITING_ROWS,
    single_trip: SingleTrip | None = None,
) -> tuple[TablePartition, Restored]:
    """Open, restore and take over one partition; numbered as in the module's docstring.

    `waiting_rows` bounds the rows kept in memory until the marker after them is read; with `single_trip`
    transactions settle in one trip to the broker where they can (`tables.partition`).
    """
    began = time.perf_counter()
    end = await _claim(place, publisher, now_ms())  # (1)
    opening = _Opening(place, folder, reader, end, waiting_rows)
    try:
        emptied = await opening.fill(now_ms())  # (2) (3) (4)
    except BaseException:
        opening.close()
        raise
    replay, disk = opening.replay, opening.disk
    number = max(disk.number, replay.marked.number)
    applied = replay.applied if replay.ahead else disk.applied
    meta = Meta(end + 1, number, marked=number, changelog_next=end, applied=applied, delivered=number)
    opened = TablePartition(opening.store, publisher, place.changelog, place.partition, meta, owned, single_trip)
    try:
        await opened.take_over(  # (5)
            replay.finish(),
            resend_after=None if replay.ahead else replay.disk_marked,
            delivered=replay.disk_delivered,
            undelivered=replay.undelivered() if replay.ahead else (),
            timestamp_ms=now_ms(),
        )
    except BaseException:
        opened.close()
        raise
    restored = Restored(opening.records, opening.rows, emptied, time.perf_counter() - began)
    log.info(
        "tables of %s-%d open: %d changelog records, %d rows, %.2f s",
        place.changelog,
        place.partition,
        restored.records,
        restored.rows,
        restored.seconds,
        extra={"action": "table_restored"},
    )
    return opened, restored


async def _claim(place: Place, publisher: ChangelogPublisher, timestamp_ms: int) -> int:
    """(1): the offset of our claim, which is the end of all that older owners may have written."""
    claim = OutRecord(place.changelog, CLAIM, claim_value(), timestamp_ms, (), place.partition)
    publisher.unbroken(place.changelog, place.partition)
    before = publisher.last_offset(place.changelog, place.partition)
    await publisher.publish([claim])
    offset = publisher.last_offset(place.changelog, place.partition)
    if offset is None or offset == before:  # acks=0, or a repeat that the broker recognised too late to say where
        raise PublishFailed("offset_unknown", 1, f"the claim of {place.changelog}-{place.partition}")
    return offset


class _Opening:
    """A store on its way from what the disk has to what the changelog says up to `end`."""

    def __init__(self, place: Place, folder: StoreFolder, reader: ChangelogReader, end: int, waiting_rows: int) -> None:
        self.place = place
        self.folder = folder
        self.reader = reader
        self.end = end
        self.disk = Meta()
        self.replay = Replay(waiting_rows=waiting_rows)
        self.records = self.rows = 0
        self._store: Store | None = None
        self._last_marked: Tag | None = None

    @property
    def store(self) -> Store:
        """The open store."""
        assert self._store is not None, "fill() opens it"
        return self._store

    def close(self) -> None:
        """Let go of the folder."""
        if self._store is not None:
            self._store.close()
            self._store = None

    async def fill(self, now_ms: int) -> bool:
        """(2) to (4); returns whether the disk had to be emptied."""
        try:
            reason = self._open() or await self._replay(now_ms)
        except EnvironmentError_ as error:
            if not error.facts.get("damaged"):
                raise
            reason = str(error)
        emptied = reason is not None
        while reason is not None:
            log.warning(
                "tables of %s-%d are restored from the changelog: %s",
                self.place.changelog,
                self.place.partition,
                reason,
                extra={"action": "table_emptied"},
            )
            self.close()
            self.folder.empty(self.place.path)
            self._store = self.folder.open(self.place.path)
            # What counts was found by the first reading, if it came to its end; a second needs not wait for it.
            self.disk = Meta()
            self.replay = Replay(last=self._last_marked, waiting_rows=self.replay.waiting_rows)
            reason = await self._replay(now_ms)
        return emptied

    def _open(self) -> str | None:
        """(2): open the store; a reason not to trust it, or None."""
        store = self._store = self.folder.open(self.place.path)
        meta = store.get(META)
        if meta is None:
            unfinished = next(store.range(ROWS, ROWS_END), None) is not None
            return "an earlier restore did not end" if unfinished else None
        self.disk = disk = Meta.from_bytes(meta)
        self.replay = Replay(
            disk=Tag(disk.epoch, disk.number),
            marked=Tag(disk.epoch, disk.marked),
            claimed=disk.epoch,
            disk_marked=disk.marked,
            disk_delivered=disk.delivered,
            applied=dict(disk.applied),
            waiting_rows=self.replay.waiting_rows,
        )
        return "the changelog is another one than before" if disk.changelog_next > self.end else None

    async def _replay(self, now_ms: int) -> str | None:
        """(3) (4): a reason why the disk cannot become what the changelog says, or None."""
        await self._read()
        self._last_marked = self.replay.marked
        if self.replay.overrun:
            return "its last owner left more behind than a restore keeps in memory"
        if self.replay.overruled:
            return "the disk holds what another owner overruled"
        if self.replay.ahead and self.disk.epoch and now_ms - self.disk.written_ms > TRUSTED_AGE_MS:
            return "the disk is too old to know every deletion"
        return None

    async def _read(self) -> None:
        """(3): fold the changelog into the store. Its meta row stays as it is, so that a crash begins again."""
        place, start = self.place, self.disk.changelog_next
        told = time.perf_counter()
        async for some in self.reader.read(place.changelog, place.partition, start, self.end):
            counted = self.replay.feed(some)
            if counted:
                self.store.write([(ROWS + key, value) for key, value in counted.items()])
            self.records += len(some)
            self.rows += len(counted)
            if time.perf_counter() - told > PROGRESS_EVERY_S:
                told = time.perf_counter()
                log.info(
                    "restoring %s-%d: offset %d of %d (%d %%)",
                    place.changelog,
                    place.partition,
                    some[-1].offset,
                    self.end,
                    100 * (some[-1].offset - start) // max(1, self.end - start),
                    extra={"action": "table_restoring"},
                )
