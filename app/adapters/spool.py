"""The spool's folder: segments written and read in order, the position, and the lock of the one process that has it.

What is promised, and by which step:
(1) `write` returns when the operating system has the batch: from then on a killed process loses none of it;
(2) every `fsync_interval_ms` what was written is forced to the disk: a machine without power loses what came since;
(3) `done` moves the position, which is on disk at most `POSITION_S` later: a process killed meanwhile repeats what it
    had sent since, and its successor skips nothing;
(4) a segment is deleted when all of it is done with, or when it falls to a limit, which is counted.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from app import metrics
from app.adapters.spool_survey import GIVEN_UP, POSITION, SUFFIX, Segment, survey
from app.domain.spool import (
    HEAD_BYTES,
    Extent,
    Found,
    Kept,
    Span,
    SpoolLimits,
    batches,
    decode_batch,
    encode_batch,
    encode_position,
    encode_spans,
    fallen_to_age,
    fallen_to_bytes,
    joined,
)
from app.errors import EnvironmentError_, HeadraceError
from app.ports import Clock

log = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 20
POSITION_S: Final = 1.0
FULL: Final = "spool_disk_full"
BROKEN: Final = "spool_disk_error"
BYTES: Final = "spool_bytes"
AGE: Final = "spool_age"
DAMAGED: Final = "spool_damaged"
_WHY: Final = {
    BYTES: "the spool is full (spool.max_bytes)",
    AGE: "they are too old (spool.max_age_s)",
    DAMAGED: "their segment is damaged or gone",
}
_FULL_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Lost = Callable[[str, int], None]
"""Called with (reason, records) for what was in the spool and will not be sent."""


class SpoolRefused(HeadraceError):
    """The disk, or the limit of bytes, does not take a batch: `reason` is the metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SpoolRules(NamedTuple):
    """The limits in force, and how often to force what was written to the disk."""

    limits: SpoolLimits
    fsync_interval_ms: int


class SpoolBatch(NamedTuple):
    """Records as they were written; `end` is the number after the last."""

    end: int
    records: list[Kept]


class Spool:
    """An open spool; one coroutine at a time may be in `write`, `read`, `done`, `clear` or `close`."""

    def __init__(self, folder: Path, rules: Callable[[], SpoolRules], clock: Clock, lost: Lost) -> None:
        self.folder = folder
        self._rules = rules
        self._clock = clock
        self._lost = lost
        self._files = ThreadPoolExecutor(1, "spool")
        self._segments: list[Segment] = []
        self._active: int | None = None  # the descriptor of the last segment while it is written
        self._unread = 0
        self._number = 0  # of the next record
        self._position = 0  # everything below is done with
        self._saved = 0, 0.0  # the position on disk, and when it came there
        self._given_up: list[Span] = []  # what fell to a limit: that it is not there is no damage
        self._synced_s = 0.0
        self._unsynced = False
        self._syncing: asyncio.Future[None] | None = None
        self._lock: int | None = None

    # ---- life ----

    async def open(self) -> int:
        """Take the folder and find what an earlier process left; how many records.

        Raises `EnvironmentError_` when the folder cannot be used or another process has it.
        """
        await self._apart(self._take)
        self._tell()
        if self.unread:
            log.warning(
                f"{self.unread:,} readings are in the spool {self.folder} and are sent first",
                extra={"action": "spool_recovered", "records": self.unread, "bytes": self.bytes},
            )
        return self.unread

    async def close(self) -> None:
        """Force what was written to the disk and give the folder back; what was not sent stays."""
        await self._apart(self._end)
        self._files.shutdown(wait=False)

    @property
    def unread(self) -> int:
        """Records on disk that `read` has not given out."""
        return self._unread

    @property
    def bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    # ---- write ----

    async def write(self, records: Sequence[Kept]) -> None:
        """(1): append the records as one batch. Raises `SpoolRefused`; nothing was appended then."""
        now_ms, limits = self._clock.now_ms(), self._rules().limits
        data = await self._apart(encode_batch, records, self._number, now_ms)
        self._make_room(len(data), limits)
        if self._active is None or self._segments[-1].size >= limits.segment_bytes:
            await self._guarded(self._roll)
        active, segment = self._active, self._segments[-1]
        assert active is not None, "just rolled"
        await self._guarded(_append, active, data, segment.size)
        if not self._rules().fsync_interval_ms:
            await self._apart(_sync_file, active)
        self._number += len(records)
        self._unread += len(records)
        segment.size += len(data)
        segment.end = self._number
        segment.newest_ms = max(segment.newest_ms, now_ms)
        self._unsynced = True
        self._tell()
        self._sync()

    def _make_room(self, more_bytes: int, limits: SpoolLimits) -> None:
        fallen = fallen_to_bytes(self._extents(), more_bytes, limits)
        if fallen is None:
            raise SpoolRefused(BYTES, f"The spool {self.folder} has reached spool.max_bytes.")
        self._drop(fallen, BYTES)

    def expire(self) -> None:
        """Drop the oldest segments as far as they are past the age limit."""
        self._drop(fallen_to_age(self._extents(), self._clock.now_ms(), self._rules().limits), AGE)
        self._sync()

    def _extents(self) -> list[Extent]:
        return [
            Extent(segment.first, segment.size, segment.newest_ms, self._is_pinned(segment))
            for segment in self._segments
        ]

    def _is_pinned(self, segment: Segment) -> bool:
        is_written = self._active is not None and segment is self._segments[-1]
        # What is gone already has no size, and cannot fall to a limit.
        return is_written or not segment.size or segment.next > max(self._position, segment.first)

    def _drop(self, fallen: Sequence[Extent], reason: str) -> None:
        if not fallen:
            return
        firsts = {extent.first for extent in fallen}
        gone = [segment for segment in self._segments if segment.first in firsts]
        for segment in gone:
            self._segments.remove(segment)
            self._unlink(segment)
        self._give_up(reason, sum(segment.unread for segment in gone))
        # Last: who is killed before that has its successor tell of them once too often, and never not at all.
        spans = [*self._given_up, *(Span(segment.first, segment.end) for segment in gone)]
        self._given_up = joined(self._position, self._number, spans)
        self._note_given_up()
        self._tell()

    def _give_up(self, reason: str, count: int) -> None:
        if not count:
            return
        self._unread -= count
        self._lost(reason, count)
        log.warning(
            f"{count:,} readings of the spool {self.folder} will not be sent: {_WHY[reason]}",
            extra={"action": "spool_dropped", "records": count, "reason": reason},
        )

    def _note_given_up(self) -> None:
        try:
            _write(self.folder, GIVEN_UP, encode_spans(self._given_up))
        except OSError as error:  # after a restart what fell to a limit is told as damage, too
            log.info("what the spool gave up is not written: %s", error, extra={"action": "spool_given_up"})

    async def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            await self._apart(work, *arguments)
        except OSError as error:
            reason = FULL if error.errno in _FULL_ERRORS else BROKEN
            raise SpoolRefused(reason, f"The spool {self.folder} cannot be written: {error.strerror}.") from error

    def _roll(self) -> None:
        """Begin a segment; on the thread of the files."""
        path = self.folder / f"{self._number:020d}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._finish_active()
        self._active = descriptor
        self._segments.append(Segment(path, self._number, self._number, 0, 0, 0, self._number))
        _sync_folder(self.folder)

    def _finish_active(self) -> None:
        active, self._active = self._active, None
        if active is not None:
            with contextlib.suppress(OSError):  # what cannot be forced to the disk is still in the page cache
                os.fdatasync(active)
            os.close(active)

    def _sync(self) -> None:
        """(2): now and then, beside everything else."""
        now_s = self._clock.monotonic_s()
        interval_s = self._rules().fsync_interval_ms / 1000
        if not self._unsynced or self._active is None or now_s - self._synced_s < interval_s:
            return
        if self._syncing is not None and not self._syncing.done():
            return
        self._synced_s, self._unsynced = now_s, False
        self._syncing = asyncio.get_running_loop().run_in_executor(self._files, _sync_file, self._active)

    # ---- read ----

    async def read(self) -> list[SpoolBatch]:
        """The next batches, about `READ_BYTES` of them; none when everything was read.

        What is damaged or too old is passed over and counted.
        """
        while (segment := next((one for one in self._segments if one.unread), None)) is not None:
            oldest_ms = self._clock.now_ms() - self._rules().limits.max_age_ms
            found, passed = await self._apart(_read, segment, oldest_ms)
            for reason, count in passed.items():
                self._give_up(reason, count)
            if found:
                self._unread -= sum(len(batch.records) for batch in found)
                return list(found)
        return []

    # ---- done ----

    async def done(self, number: int) -> None:
        """(3) and (4): everything below `number` is on the broker or was given up."""
        self._position = max(self._position, number)
        gone = [one for one in self._segments[: self._closed] if not one.unread and one.end <= self._position]
        due = self._clock.monotonic_s() - self._saved[1] >= POSITION_S
        if gone or (due and self._saved[0] != self._position):
            await self._save()
        for segment in gone:
            self._segments.remove(segment)
            self._unlink(segment)
        if gone:
            await self._save_late()
            self._tell()

    @property
    def _closed(self) -> int:
        """How many segments are not written any more."""
        return len(self._segments) - (self._active is not None)

    async def clear(self) -> None:
        """Everything was read and is done with: leave no segment behind."""
        if not self._segments:
            return
        assert not self.unread, "what was not read is not done with"
        self._position = self._number
        await self._save()
        await self._apart(self._finish_active)
        for segment in self._segments:
            self._unlink(segment)
        self._segments.clear()
        await self._save_late()
        self._unsynced = False
        self._tell()

    async def _save(self) -> None:
        position = self._position
        try:
            await self._apart(_write, self.folder, POSITION, encode_position(position))
        except OSError as error:  # it stays behind: after a crash more is repeated
            log.info("the position of the spool is not written: %s", error, extra={"action": "spool_position"})
            return
        self._saved = position, self._clock.monotonic_s()

    async def _save_late(self) -> None:
        """A full disk may have refused the position and has room now: segments that are done with are not damage."""
        if self._saved[0] != self._position:
            await self._save()

    # ---- inside ----

    async def _apart(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do what may wait for the disk on the thread of the files, and be back only when it is done."""
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *arguments)

    def _tell(self) -> None:
        metrics.SPOOL_BYTES.set(self.bytes)

    def _unlink(self, segment: Segment) -> None:
        with contextlib.suppress(OSError):  # it is surveyed again at the next start
            segment.path.unlink()

    def _take(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._find()
        except BlockingIOError as error:
            raise EnvironmentError_(
                f"The spool folder {self.folder} is in use by another process; stop it or set spool.directory.",
                locked=True,
            ) from error
        except OSError as error:
            raise EnvironmentError_(
                f"The spool folder {self.folder} cannot be used ({error.strerror}); set spool.directory to a folder of"
                " yours, or spool.enabled to false."
            ) from error

    def _find(self) -> None:
        left = survey(self.folder)
        self._number, self._position, self._given_up = left.number, left.position, left.given_up
        self._saved = self._position, self._clock.monotonic_s()
        self._segments = [segment for segment in left.segments if segment.unread]
        self._unread = sum(segment.unread for segment in left.segments)
        for segment in left.segments:
            if not segment.unread:
                self._unlink(segment)
        if not left.is_noted:  # from here on what is gone can be told from what left in order
            self._note_given_up()
            with contextlib.suppress(OSError):  # see `_save`
                _write(self.folder, POSITION, encode_position(self._position))

    def _end(self) -> None:
        if self._lock is None:
            return
        self._finish_active()
        with contextlib.suppress(OSError):  # see `_save`
            _write(self.folder, POSITION, encode_position(self._position))
        os.close(self._lock)
        self._lock = None


def _write(folder: Path, name: str, data: bytes) -> None:
    """Put a small file in the place of the one before."""
    beside = folder / f"{name}.new"
    beside.write_bytes(data)
    beside.replace(folder / name)


def _append(descriptor: int, data: bytes, at: int) -> None:
    """Write at the end of the segment; of what does not fit nothing is left."""
    view, written = memoryview(data), 0
    try:
        while written < len(data):
            written += os.pwrite(descriptor, view[written:], at + written)
    except OSError:
        with contextlib.suppress(OSError):  # then the next batch is written over it
            os.ftruncate(descriptor, at)
        raise


def _sync_file(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        log.warning("the spool is not forced to the disk: %s", error, extra={"action": "spool_sync"})


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(segment: Segment, oldest_ms: int) -> tuple[list[SpoolBatch], Counter[str]]:
    """The next batches of a segment, and how many records were passed over for what reason."""
    read: list[SpoolBatch] = []
    passed: Counter[str] = Counter()
    for found in _next_part(segment):
        head = found.head
        if head.first < segment.next or head.end > segment.end:
            continue  # of another time
        passed[DAMAGED] += head.first - segment.next
        records = _decoded(found)
        if records is None:
            passed[DAMAGED] += head.records
        elif head.at_ms < oldest_ms:
            passed[AGE] += head.records
        else:
            read.append(SpoolBatch(head.end, records))
        segment.next = head.end
    if segment.offset >= segment.size:
        passed[DAMAGED] += segment.unread
        segment.next = segment.end
    return read, passed


def _next_part(segment: Segment) -> list[Found]:
    """What comes next in a segment, whole; its offset goes behind that."""
    wanted = READ_BYTES
    while True:
        part = _part(segment, wanted)
        found = list(batches(part))
        if not part or segment.offset + len(part) >= segment.size:
            segment.offset = segment.size
            return found
        cut = next((index for index, one in enumerate(found) if one.at + one.head.size > len(part)), len(found))
        if cut:
            last = found[cut - 1]
            segment.offset += found[cut].at if cut < len(found) else last.at + last.head.size
            return found[:cut]
        if found:
            segment.offset += found[0].at
            wanted = found[0].head.size
        else:
            segment.offset += max(1, len(part) - HEAD_BYTES + 1)  # a head may begin in what is left


def _part(segment: Segment, wanted: int) -> bytes:
    """Bytes from the offset on; nothing when the disk does not give them, and then the segment ends there."""
    if segment.offset >= segment.size:
        return b""
    try:
        descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, min(wanted, segment.size - segment.offset), segment.offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("%s cannot be read: %s", segment.path.name, error, extra={"action": "spool_unreadable"})
        return b""


def _decoded(found: Found) -> list[Kept] | None:
    if found.payload is None:
        return None
    try:
        return decode_batch(found.payload, found.head.records)
    except ValueError:
        return None
