"""Opening one partition's tables: trust the disk where it may be trusted, else the changelog.

(1) claim the partition on the changelog: nothing that an older owner writes behind the claim counts;
(2) open the store and read what it says of itself; a damaged one, or one from before the changelog
    forgot its deletions, is emptied;
(3) read the changelog from where the store has not seen it, up to the claim;
(4) nothing counts that the disk has not: the disk is ahead of the changelog and stays as it is;
    something does, and all of ours counted: its rows are added;
    something does, and some of ours did not count: those are undone first, or, where the disk does not say how,
    the store is emptied and filled from the changelog;
(5) a new epoch begins, in one write: what never counted, or counts and may not have been sent, is sent again,
    what was half written is repaired.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from app.errors import EnvironmentError_, PublishFailed
from app.ports import InRecord, OutRecord
from tables.changelog import CLAIM, OWNER, WAITING_ROWS, Replay, Tag, claim_value
from tables.meta import META, PENDING, ROWS, ROWS_END, UNDO_END, Meta, pending_key, undo_key
from tables.partition import ChangelogPublisher, SingleTrip, Store, TablePartition
from tables.undo import unpack_undo

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
    """What one restore did: `records` read, `rows` written, whether the disk had to be emptied, or was kept warm.

    `owner` is who claimed the partition before, empty where that was not read, None for nobody.
    """

    records: int
    rows: int
    emptied: bool
    seconds: float
    warm: bool = False
    owner: str | None = None


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
    warm: "Opening | None" = None,
    holding: Callable[[Callable[[], int]], None] = lambda _: None,
    owner: str = "",
) -> tuple[TablePartition, Restored]:
    """Open, restore and take over one partition; numbered as in the module's docstring.

    `waiting_rows` bounds the rows kept in memory until the marker after them is read; with `single_trip`
    transactions settle in one trip to the broker where they can (`tables.partition`). `warm` is what a standby
    has done of (2) and (3) by now; it is this partition's from here on. `holding` is told how to learn, from any thread
    and while this goes on, the next changelog offset that the tables have not seen. `owner` is what the claim says.
    """
    began = time.perf_counter()
    opening = warm or Opening(place, folder, waiting_rows)
    holding(lambda: opening.next)
    try:
        end = await _claim(place, publisher, owner, now_ms())  # (1)
        emptied = await opening.fill(reader, end, now_ms())  # (2) (3) (4)
    except BaseException:
        opening.close()
        raise
    replay, disk = opening.replay, opening.disk
    number = max(disk.number, replay.marked.number)
    applied = replay.applied if replay.ahead else disk.applied
    meta = Meta(end + 1, number, marked=number, changelog_next=end, applied=applied, delivered=number)
    opened = TablePartition(opening.store, publisher, place.changelog, place.partition, meta, owned, single_trip)
    holding(lambda: opened.held)
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
    seconds = time.perf_counter() - began
    before = replay.owner if replay.claimed else None
    restored = Restored(opening.records, opening.rows, emptied, seconds, warm is not None, before)
    log.info(
        "tables of %s-%d open%s: %d changelog records, %d rows, %.3f s",
        place.changelog,
        place.partition,
        ", which were kept warm" if restored.warm else "",
        restored.records,
        restored.rows,
        restored.seconds,
        extra={"action": "table_restored"},
    )
    return opened, restored


async def _claim(place: Place, publisher: ChangelogPublisher, owner: str, timestamp_ms: int) -> int:
    """(1): the offset of our claim, which is the end of all that older owners may have written."""
    headers = ((OWNER, owner.encode()),) if owner else ()
    claim = OutRecord(place.changelog, CLAIM, claim_value(), timestamp_ms, headers, place.partition)
    publisher.unbroken(place.changelog, place.partition)
    before = publisher.last_offset(place.changelog, place.partition)
    await publisher.publish([claim])
    offset = publisher.last_offset(place.changelog, place.partition)
    if offset is None or offset == before:  # acks=0, or a repeat that the broker recognised too late to say where
        raise PublishFailed("offset_unknown", 1, f"the claim of {place.changelog}-{place.partition}")
    return offset


class Opening:
    """A store on its way from what the disk has to what the changelog says."""

    def __init__(self, place: Place, folder: StoreFolder, waiting_rows: int = WAITING_ROWS) -> None:
        self.place = place
        self.folder = folder
        self.disk = Meta()
        self.replay = Replay(waiting_rows=waiting_rows)
        self.next = 0  # the changelog offset to be read next
        self.records = self.rows = 0  # of the last `fill`
        self._trusted_ms = 0  # when the disk knew all there was
        self._store: Store | None = None
        self._last_marked: Tag | None = None

    @property
    def store(self) -> Store:
        """The open store."""
        assert self._store is not None, "open() makes it"
        return self._store

    @property
    def is_open(self) -> bool:
        return self._store is not None

    def close(self) -> None:
        """Let go of the folder."""
        if self._store is not None:
            self._store.close()
            self._store = None

    async def fill(self, reader: ChangelogReader, end: int, now_ms: int) -> bool:
        """(2) to (4), as far as they are not done; returns whether the disk had to be emptied."""
        self.records = self.rows = 0
        emptied = False
        reason = None if self.is_open else self.open()
        if reason is None and self.next > end:
            reason = "the changelog is another one than before"
        while True:
            if reason is not None:
                self.begin_anew(reason)
                emptied = True
            reason = None
            try:
                await self._read(reader, end)
                self._last_marked = self.replay.marked
                if self.replay.overruled and self.go_back():
                    continue
                reason = self.doubts(now_ms)
            except EnvironmentError_ as error:
                if not error.facts.get("damaged"):
                    raise
                reason = str(error)
            if reason is None:
                return emptied

    def open(self) -> str | None:
        """(2): open the store; a reason not to trust it, or None."""
        try:
            store = self._store = self.folder.open(self.place.path)
            meta = store.get(META)
            if meta is None:
                unfinished = next(store.range(ROWS, ROWS_END), None) is not None
                return "an earlier restore did not end" if unfinished else None
        except EnvironmentError_ as error:
            if not error.facts.get("damaged"):
                raise
            return str(error)
        self._begin_from(Meta.from_bytes(meta))
        return None

    def _begin_from(self, disk: Meta) -> None:
        self.disk = disk
        self.next = disk.changelog_next
        self._trusted_ms = disk.written_ms
        self.replay = Replay(
            disk=Tag(disk.epoch, disk.number),
            marked=Tag(disk.epoch, disk.marked),
            claimed=disk.epoch,
            disk_marked=disk.marked,
            disk_delivered=disk.delivered,
            applied=dict(disk.applied),
            waiting_rows=self.replay.waiting_rows,
        )

    def begin_anew(self, reason: str) -> None:
        """Empty the store: everything comes from the changelog."""
        log.warning(
            "tables of %s-%d are restored from the changelog: %s",
            self.place.changelog,
            self.place.partition,
            reason,
            extra={"action": "table_emptied"},
        )
        self.close()
        # What counts was found by the first reading, if it came to its end; a second needs not wait for it.
        self.disk = Meta()
        self.next = 0
        self.replay = Replay(last=self._last_marked, waiting_rows=self.replay.waiting_rows)
        self._last_marked = None
        self.folder.empty(self.place.path)
        self._store = self.folder.open(self.place.path)

    def doubts(self, now_ms: int) -> str | None:
        """(4): a reason why the disk cannot become what the changelog says, or None."""
        if self.replay.overrun:
            return "its last owner left more behind than a restore keeps in memory"
        if self.replay.overruled:
            return "the disk holds what another owner overruled"
        if self.replay.ahead and self.disk.epoch and now_ms - self._trusted_ms > TRUSTED_AGE_MS:
            return "the disk is too old to know every deletion"
        return None

    def trust(self, now_ms: int) -> None:
        """All there was at this instant has been read."""
        self._trusted_ms = now_ms

    def feed(self, records: Sequence[InRecord]) -> None:
        """(3): fold some of the changelog into the store. Its meta row stays as it is, so that a crash begins again."""
        counted = self.replay.feed(records)
        if counted:
            self.store.write([(ROWS + key, value) for key, value in counted.items()])
        self.next = records[-1].offset + 1
        self.records += len(records)
        self.rows += len(counted)

    def go_back(self) -> bool:
        """(4): undo what another owner overruled, and read on from before it; False when the disk does not say how.

        Markers of ours may have been compacted away: what is undone and counts is on the changelog, and read again.
        """
        disk, upto = self.disk, self.replay.disk_marked
        kept = list(self.store.range(undo_key(upto + 1), undo_key(disk.number + 1)))
        if len(kept) < disk.number - upto:
            return False
        changes: dict[bytes, bytes | None] = {}
        for _, packed in reversed(kept):
            changes |= {ROWS + key: value for key, value in unpack_undo(packed).items()}
        for number in range(upto + 1, disk.number + 1):
            changes |= {pending_key(number): None, undo_key(number): None}
        meta = replace(disk, number=upto, marked=upto, delivered=min(disk.delivered, upto))
        self.store.write([*changes.items(), (META, meta.to_bytes())])
        self._begin_from(meta)
        log.info(
            "tables of %s-%d go back by %d transactions, which another owner overruled",
            self.place.changelog,
            self.place.partition,
            len(kept),
            extra={"action": "table_went_back"},
        )
        return True

    def remember(self) -> bool:
        """Let a crash begin again from here; False when something that was fed would have to be read again."""
        replay = self.replay
        if not (replay.ahead and replay.settled):
            return False
        number = replay.marked.number
        meta = Meta(replay.marked.epoch, number, number, self.next, self._trusted_ms, dict(replay.applied), number)
        # What this disk once had to send was sent, or overruled, by those who owned the partition since.
        gone: list[tuple[bytes, bytes | None]] = [(key, None) for key, _ in self.store.range(PENDING, UNDO_END)]
        self.store.write([*gone, (META, meta.to_bytes())])
        return True

    async def _read(self, reader: ChangelogReader, end: int) -> None:
        place, start = self.place, self.next
        told = time.perf_counter()
        async for some in reader.read(place.changelog, place.partition, start, end):
            self.feed(some)
            if time.perf_counter() - told > PROGRESS_EVERY_S:
                told = time.perf_counter()
                log.info(
                    "restoring %s-%d: offset %d of %d (%d %%)",
                    place.changelog,
                    place.partition,
                    self.next - 1,
                    end,
                    100 * (self.next - 1 - start) // max(1, end - start),
                    extra={"action": "table_restoring"},
                )
