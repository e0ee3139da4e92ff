"""One partition of a stage's tables: state, applied offsets and pending outputs, made durable together.

The order, which is the guarantee that a crash neither loses nor applies twice:
(1) `write`: one WriteBatch holds the new rows, the applied input offset and the outputs still to send;
(2) `settle`: rows go to the changelog and outputs to their topics, and all are acknowledged;
(3) a marker on the changelog makes the transaction count; markers are sent in order, one for many;
(4) only then the caller acknowledges its input range, whose group offset is committed later;
(5) the pending outputs are forgotten with the next WriteBatch.
On open: what is on disk and never got its marker is sent again if nothing of another owner counts since,
and thrown away for the changelog's state if something does. While open, a record of anybody else on the
changelog partition shows as a hole between our own offsets: the partition is `Fenced`, and opened again.
"""

import asyncio
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import orjson

from app.errors import Fenced
from app.ports import OutRecord, Publisher
from tables.changelog import MARKER, Tag, marker_value, pack_tag

META: Final = b"\x01meta"
PENDING: Final = b"\x02"
ROWS: Final = b"\x10"
ROWS_END: Final = b"\x11"
_NUMBER: Final = struct.Struct(">Q")


class Store(Protocol):
    """What a partition needs of its database (`app.adapters.rocks.RocksStore` fits)."""

    def get(self, key: bytes) -> bytes | None: ...
    def write(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None: ...
    def range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]: ...
    def close(self) -> None: ...


class ChangelogPublisher(Publisher, Protocol):
    """A publisher that sees whether it is alone on a partition (`app.adapters.producer` fits)."""

    def foreign_records(self, topic: str, partition: int) -> int:
        """Records that others appended between ours, since our first one."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What the disk says of itself.

    `number` is the last transaction written, `marked` the last one whose marker was acknowledged;
    every changelog record before `changelog_next` is in the rows. `written_ms` is the wall clock.
    """

    epoch: int = 0
    number: int = 0
    marked: int = 0
    changelog_next: int = 0
    written_ms: int = 0
    applied: Mapping[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As JSON."""
        numbers = [self.epoch, self.number, self.marked, self.changelog_next, self.written_ms]
        return orjson.dumps([*numbers, dict(self.applied)])

    @classmethod
    def from_bytes(cls, value: bytes) -> "Meta":
        """From JSON."""
        return cls(*orjson.loads(value))


@dataclass(slots=True)
class Changes:
    """What one decision changes: rows by (table, key), and records to send."""

    rows: dict[bytes, bytes | None] = field(default_factory=dict)
    outputs: list[OutRecord] = field(default_factory=list)

    def put(self, key: bytes, value: bytes) -> None:
        """Set a row; `key` starts with the table's prefix."""
        self.rows[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a row."""
        self.rows[key] = None


@dataclass(frozen=True, slots=True)
class Transaction:
    """A written change on its way: `number` orders it, `records` are to be acknowledged before its marker."""

    number: int
    records: Sequence[OutRecord]
    applied: Mapping[str, int]


class TablePartition:
    """The open tables of one partition, owned by one process at a time."""

    def __init__(
        self,
        store: Store,
        publisher: ChangelogPublisher,
        changelog: str,
        partition: int,
        meta: Meta,
        owned: Callable[[], bool] = lambda: True,
    ) -> None:
        """`meta.epoch` is the epoch of this owner, whose claim is the last record of the publisher's."""
        self.partition = partition
        self.changelog = changelog
        self.applied: dict[str, int] = dict(meta.applied)
        self.closed = False
        self._store = store
        self._publisher = publisher
        self._owned = owned
        self._epoch = meta.epoch
        self._number = meta.number
        self._marked = meta.marked
        self._forgotten = meta.marked
        self._changelog_next = meta.changelog_next
        self._foreign = publisher.foreign_records(changelog, partition)
        self._settled: dict[int, Mapping[str, int]] = {}
        self._prefix = self._sent = meta.marked
        self._marking: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._broken: BaseException | None = None

    @property
    def epoch(self) -> int:
        """Of this owner; a later owner's is higher."""
        return self._epoch

    # ---- read ----

    def get(self, key: bytes) -> bytes | None:
        """The row of `key`, or None."""
        return self._store.get(ROWS + key)

    def range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in the order of keys."""
        for key, value in self._store.range(ROWS + start, ROWS + end):
            yield key[len(ROWS) :], value

    # ---- write ----

    def write(self, changes: Changes, topic: str | None = None, offset: int = -1, *, timestamp_ms: int) -> Transaction:
        """(1) Make rows, applied offset and outputs durable here. `topic` None: nothing was read for it.

        Raises `Fenced` when the partition was given up or may have been lost.
        """
        if self.closed or not self._owned():
            raise Fenced(f"partition {self.partition} of {self.changelog} is no longer owned by this process")
        applied = {**self.applied, topic: offset} if topic is not None else dict(self.applied)
        forgotten = [_pending_key(done) for done in range(self._forgotten + 1, self._marked + 1)]
        written = self._write(changes, applied, forgotten, timestamp_ms)
        self._forgotten = self._marked
        return written

    def _write(
        self, changes: Changes, applied: dict[str, int], forgotten: Iterable[bytes], timestamp_ms: int
    ) -> Transaction:
        number = self._number + 1
        records = [*changes.outputs, *self._changelog_records(changes.rows, Tag(self._epoch, number), timestamp_ms)]
        batch: list[tuple[bytes, bytes | None]] = [(ROWS + key, value) for key, value in changes.rows.items()]
        batch.extend((key, None) for key in forgotten)
        batch.append((_pending_key(number), pack_outbox(changes.rows, changes.outputs)))
        meta = Meta(self._epoch, number, self._marked, self._changelog_next, timestamp_ms, applied)
        batch.append((META, meta.to_bytes()))
        self._store.write(batch)
        self._number = number
        self.applied = applied
        return Transaction(number, records, applied)

    def _changelog_records(
        self, rows: Mapping[bytes, bytes | None], tag: Tag, timestamp_ms: int
    ) -> Iterator[OutRecord]:
        packed = pack_tag(tag)
        topic, partition = self.changelog, self.partition
        for key, value in rows.items():
            if value is None:
                yield OutRecord(topic, key, None, timestamp_ms, (("t", packed),), partition)
            else:
                yield OutRecord(topic, key, packed + value, timestamp_ms, (), partition)

    async def settle(self, written: Transaction, *, timestamp_ms: int) -> None:
        """(2) and (3): return when the transaction counts. Call in the order of `write`; the log keeps it.

        Raises what the publisher raises, and `Fenced` when another process writes the changelog too. From
        then on nothing settles any more: open the partition again.
        """
        assert written.number == self._sent + 1, "of two changes of a key the later one must be the later record"
        self._sent = written.number
        try:
            await self._publisher.publish(written.records)
            self._check_alone()
        except BaseException as error:
            self._break(error)
            raise
        done = self._waiting[written.number] = asyncio.get_running_loop().create_future()
        self._settled[written.number] = written.applied
        if self._marking is None:
            name = f"marker {self.changelog}-{self.partition}"
            self._marking = asyncio.create_task(self._mark(timestamp_ms), name=name)
        await done

    def _check_alone(self) -> None:
        if self._broken is not None:
            raise Fenced(f"partition {self.partition} of {self.changelog} broke before") from self._broken
        if self.closed:
            raise Fenced(f"partition {self.partition} of {self.changelog} was given up")
        strange = self._publisher.foreign_records(self.changelog, self.partition) - self._foreign
        if strange:
            raise Fenced(f"another process wrote {strange} records to {self.changelog}-{self.partition}")

    def _break(self, error: BaseException) -> None:
        """Nothing after a hole may count: whoever waits for a marker, now or later, learns of it."""
        if self._broken is None:
            self._broken = error
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(self._broken if isinstance(self._broken, Exception) else Fenced())

    async def _mark(self, timestamp_ms: int) -> None:
        """Send one marker for every run of settled transactions, until none waits."""
        try:
            while self._prefix + 1 in self._settled:
                applied: Mapping[str, int] = {}
                while (following := self._settled.pop(self._prefix + 1, None)) is not None:
                    self._prefix += 1
                    applied = following
                upto = self._prefix
                await self._publish_marker(upto, applied, timestamp_ms)
                for number in [n for n in self._waiting if n <= upto]:
                    waiter = self._waiting.pop(number)
                    if not waiter.done():
                        waiter.set_result(None)
        except asyncio.CancelledError as error:
            self._break(error)
            raise
        except Exception as error:  # noqa: BLE001 - every settle that waits raises it
            self._break(error)
        finally:
            self._marking = None

    async def _publish_marker(self, number: int, applied: Mapping[str, int], timestamp_ms: int) -> None:
        self._check_alone()
        value = marker_value(Tag(self._epoch, number), applied)
        marker = OutRecord(self.changelog, MARKER, value, timestamp_ms, (), self.partition)
        await self._publisher.publish([marker])
        self._check_alone()
        self._marked = number
        last = self._publisher.last_offset(self.changelog, self.partition)
        if last is not None:
            self._changelog_next = last + 1

    # ---- open, close ----

    async def take_over(self, disputed: Iterable[bytes], *, resend_after: int | None, timestamp_ms: int) -> None:
        """Begin the epoch: repair disputed keys, send again what never counted, and mark, all in one transaction.

        `resend_after` is the last transaction of the disk that counts; None when the disk's pending
        ones were overruled and are thrown away.
        """
        repaired = Changes(rows={key: self.get(key) for key in disputed})
        forgotten = []
        for key, packed in self._store.range(PENDING, PENDING + b"\xff" * 9):
            forgotten.append(key)
            if resend_after is not None and _NUMBER.unpack(key[len(PENDING) :])[0] > resend_after:
                keys, outputs = unpack_outbox(packed)
                repaired.rows.update((row, self.get(row)) for row in keys)
                repaired.outputs += outputs
        written = self._write(repaired, dict(self.applied), forgotten, timestamp_ms)
        await self.settle(written, timestamp_ms=timestamp_ms)

    def close(self) -> None:
        """Give the partition up: every later `write` is `Fenced`."""
        if not self.closed:
            self.closed = True
            if self._marking is not None:
                self._marking.cancel()
            self._store.close()


def _pending_key(number: int) -> bytes:
    return PENDING + _NUMBER.pack(number)


def pack_outbox(keys: Iterable[bytes], outputs: Sequence[OutRecord]) -> bytes:
    """What a restart must send again: the keys of changed rows (their values are in the store) and the outputs."""
    heads = [
        [
            record.topic,
            -1 if record.key is None else len(record.key),
            -1 if record.value is None else len(record.value),
            record.timestamp_ms,
            [[name, content.hex()] for name, content in record.headers],
            record.partition,
        ]
        for record in outputs
    ]
    changed = list(keys)
    head = orjson.dumps([[len(key) for key in changed], heads])
    parts = [len(head).to_bytes(4, "big"), head, *changed]
    for record in outputs:
        parts += (record.key or b"", record.value or b"")
    return b"".join(parts)


def unpack_outbox(packed: bytes) -> tuple[list[bytes], list[OutRecord]]:
    """The keys and outputs of an outbox entry."""
    size = int.from_bytes(packed[:4], "big")
    at = 4 + size
    sizes, heads = orjson.loads(packed[4:at])

    def take(length: int) -> bytes | None:
        nonlocal at
        if length < 0:
            return None
        at += length
        return packed[at - length : at]

    keys = [packed[at : (at := at + length)] for length in sizes]
    outputs = []
    for topic, key_bytes, value_bytes, timestamp_ms, headers, partition in heads:
        key, value = take(key_bytes), take(value_bytes)
        pairs = tuple((name, bytes.fromhex(content)) for name, content in headers)
        outputs.append(OutRecord(topic, key, value, timestamp_ms, pairs, partition))
    return keys, outputs
