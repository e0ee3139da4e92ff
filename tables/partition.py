"""One partition of a stage's tables: state, applied offsets and pending outputs, made durable together.

The order, which is the guarantee that a crash neither loses nor applies twice:
(1) `write`: one WriteBatch holds the new rows, the applied input offset and the outputs still to send;
(2) `settle`: rows go to the changelog and outputs to their topics, and all are acknowledged;
(3) a marker on the changelog makes the transaction count; markers are sent in order, one for many;
(4) only then the caller acknowledges its input range, whose group offset is committed later;
(5) the pending outputs are forgotten with a later WriteBatch.
On open: what is on disk and never got its marker is sent again if nothing of another owner counts since,
and undone if something does, by what (1) also writes: the values before (`tables.undo`). While open, a record of
anybody else on the changelog partition shows as a hole between our own offsets: the partition is `Fenced`, and
opened again.

(2) and (3) are two trips to the broker, one after the other. With `SingleTrip` they are one:
(2a) rows, then the outputs once more as records of the changelog (the outbox), then the marker go to the
     changelog in this order; with their acknowledgement the transaction counts, and `settle` returns;
(2b) the publisher sends nothing behind a record of the changelog that could not be sent (`unbroken`): a marker
     on the log says that the rows and outboxes before it are there too;
(2c) only then `deliver` sends the outputs, in the order of the transactions: what others see of a decision is never
     taken back by the next owner, who decides from the changelog alone;
(2d) each marker says up to which transaction all outputs are acknowledged (`delivered`): the outboxes of later
     ones are what the next owner sends again, from the disk or from the changelog, before its first marker.
A transaction goes in two trips all the same when its outbox would take too many records, when the outboxes not yet
delivered would need more slots than there are, and while an earlier one in two trips waits for its marker: a later
marker would make that one count before its outputs are anywhere.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from app.errors import Fenced
from app.ports import OutRecord, Publisher
from tables.changelog import MARKER, Tag, marker_value, pack_tag
from tables.meta import META, PENDING, PENDING_END, ROWS, UNDO, UNDO_END, Meta, number_of, pending_key, undo_key
from tables.outbox import OutboxLog, pack_outbox, unpack_outbox
from tables.undo import pack_undo, unpack_undo

# A marker that says nothing but that all is delivered may wait this long for one that is sent anyway.
TRAILING_S: Final = 0.1


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

    def unbroken(self, topic: str, partition: int) -> None:
        """From this call on, nothing goes to the partition behind a record of ours that could not be sent.

        Whoever publishes to it after that gets `PublishFailed`, until this is called again.
        """


@dataclass(frozen=True, slots=True)
class SingleTrip:
    """Outboxes go in records of at most `bytes`, `pieces` at most, `slots` undelivered ones at once.

    Needs a publisher that is idempotent. Compaction leaves the outboxes of the last `slots` transactions.
    """

    bytes: int = 32_768
    slots: int = 64
    pieces: int = 1_024


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
    """A written change on its way: `number` orders it, `rows` and `outputs` are the records to send.

    `outbox` is the outputs as one value, when they may go in one trip with the marker (b"": there are none).
    """

    number: int
    rows: Sequence[OutRecord]
    outputs: Sequence[OutRecord]
    applied: Mapping[str, int]
    outbox: bytes | None = None


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
        single_trip: SingleTrip | None = None,
    ) -> None:
        """`meta.epoch` is the epoch of this owner, whose claim is the last record of the publisher's.

        Without `single_trip` every transaction takes two trips to the broker.
        """
        self.partition = partition
        self.changelog = changelog
        self.applied: dict[str, int] = dict(meta.applied)
        self.closed = self._let_go = False
        self._store = store
        self._publisher = publisher
        self._owned = owned
        self._slots = 0 if single_trip is None else single_trip.slots
        self._outboxes: OutboxLog | None = None
        if single_trip is not None:
            trip = single_trip
            self._outboxes = OutboxLog(changelog, partition, trip.slots, trip.bytes, trip.pieces)
        self._epoch = meta.epoch
        self._number = meta.number
        self._marked = self._forgotten = meta.marked
        self._changelog_next = meta.changelog_next
        self._foreign = publisher.foreign_records(changelog, partition)
        self._begun = self._delivered = self._told = meta.marked  # told: delivered as far as a marker says
        self._two_trips = meta.marked  # the last transaction that went in two
        self._done: set[int] = set()  # published whole, while an earlier one is not
        self._under_way: dict[int, Mapping[str, int]] = {}  # what those after `_delivered` apply
        self._floors: dict[int, int] = {}  # where the changelog ended when those began
        self._applied_told: Mapping[str, int] = self.applied  # of transaction `_delivered`
        self._marking: asyncio.Task[None] | None = None
        self._trailing: asyncio.TimerHandle | None = None
        self._trails = True
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._turns = asyncio.Lock()  # of two changes of a key the later one must be the later record
        self._counted: dict[int, Transaction] = {}  # settled in one trip, their outputs not yet sent
        self._next_out = meta.number + 1  # whose outputs are the next to be sent
        self._last_one_trip = meta.number
        self._progress = asyncio.Event()
        self._broken: BaseException | None = None

    @property
    def epoch(self) -> int:
        """Of this owner; a later owner's is higher."""
        return self._epoch

    @property
    def held(self) -> int:
        """The next offset of the changelog: what an owner has not seen is not there."""
        last = self._publisher.last_offset(self.changelog, self.partition)
        return self._changelog_next if last is None else last + 1

    @property
    def is_owned(self) -> bool:
        """Whether this process still has the partition, as far as it can know."""
        return not self.closed and self._owned()

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
        if not self.is_owned:
            raise Fenced(f"partition {self.partition} of {self.changelog} is no longer owned by this process")
        applied = {**self.applied, topic: offset} if topic is not None else dict(self.applied)
        upto = min(self._marked, self._delivered)
        forgotten = [key(done) for done in range(self._forgotten + 1, upto + 1) for key in (pending_key, undo_key)]
        written = self._write(changes, applied, forgotten, timestamp_ms)
        self._forgotten = max(self._forgotten, upto)
        return written

    def _write(
        self,
        changes: Changes,
        applied: dict[str, int],
        forgotten: Iterable[bytes],
        timestamp_ms: int,
        known_before: Mapping[bytes, bytes | None] | None = MappingProxyType({}),
    ) -> Transaction:
        number = self._number + 1
        rows = list(self._changelog_records(changes.rows, Tag(self._epoch, number), timestamp_ms))
        pending = pack_outbox(changes.rows, changes.outputs)
        batch: list[tuple[bytes, bytes | None]] = [(ROWS + key, value) for key, value in changes.rows.items()]
        batch.extend((key, None) for key in forgotten)
        batch.append((pending_key(number), pending))
        if known_before is not None:  # else it cannot be undone
            before = {key: known_before[key] if key in known_before else self.get(key) for key in changes.rows}
            batch.append((undo_key(number), pack_undo(before)))
        meta = Meta(self._epoch, number, self._marked, self._changelog_next, timestamp_ms, applied, self._delivered)
        batch.append((META, meta.to_bytes()))
        self._store.write(batch)
        self._number = number
        self.applied = applied
        outbox = pending if changes.outputs else b""
        fits = self._outboxes is not None and self._outboxes.fits(outbox)
        return Transaction(number, rows, changes.outputs, applied, outbox if fits else None)

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
        number = written.number
        async with self._turns:
            if self._broken is not None:
                self._check_alone()
            one_trip = self._in_one_trip(written)
            if not one_trip:
                await self._until_delivered(timestamp_ms)
            records = self._begin(written, timestamp_ms, one_trip=one_trip)
            sending = asyncio.create_task(self._publish(records))
        await sending
        if one_trip:
            self._marked = max(self._marked, number)
            self._counted[number] = written
            self._progress.set()
            if not written.outputs:
                self._delivered_all(self._deliverable(empty=True), timestamp_ms)
            return
        done = self._waiting[number] = asyncio.get_running_loop().create_future()
        # Of two in two trips the later one may be acknowledged first.
        self._next_out = max(self._next_out, number + 1)
        self._finish(number)
        self._mark_what_waits(timestamp_ms)
        await done

    async def deliver(self, *, timestamp_ms: int) -> None:
        """(2c): send the outputs of what has settled, and return when they are acknowledged.

        Whoever settled something calls it next; what has to wait for an earlier transaction goes out with that one,
        and is not waited for here. Raises as `settle`; what never went out is sent by the next owner.
        """
        ready = self._deliverable()
        outputs = [output for written in ready for output in written.outputs]
        if outputs:
            await self._publish(outputs)
        self._delivered_all(ready, timestamp_ms)

    def _deliverable(self, *, empty: bool = False) -> list[Transaction]:
        """The transactions that count and whose turn it is; with `empty` only those that have nothing to send."""
        ready: list[Transaction] = []
        while (written := self._counted.get(self._next_out)) is not None and not (empty and written.outputs):
            ready.append(self._counted.pop(self._next_out))
            self._next_out += 1
        return ready

    def _delivered_all(self, written: Sequence[Transaction], timestamp_ms: int) -> None:
        for one in written:
            self._finish(one.number)
        if written:
            self._progress.set()
            self._mark_what_waits(timestamp_ms)

    async def _until_delivered(self, timestamp_ms: int) -> None:
        """The outputs of a transaction in two trips go out with its rows: behind those of all before it."""
        while self._delivered < self._last_one_trip:
            self._progress.clear()
            if self._broken is not None:
                self._check_alone()
            if self._next_out in self._counted:
                await self.deliver(timestamp_ms=timestamp_ms)
            else:
                await self._progress.wait()

    async def _publish(self, records: Sequence[OutRecord]) -> None:
        try:
            if self._broken is not None:
                self._check_alone()
            await self._publisher.publish(records)
            self._check_alone()
        except BaseException as error:
            self._break(error)
            raise

    def _in_one_trip(self, written: Transaction) -> bool:
        return (
            written.outbox is not None
            and self._two_trips <= self._marked
            and written.number - self._delivered <= self._slots
        )

    def _begin(self, written: Transaction, timestamp_ms: int, *, one_trip: bool) -> list[OutRecord]:
        """Note that the transaction is under way, and return its records in the order of (2) or (2a)."""
        number = written.number
        assert number == self._begun + 1, "settled in the order of their writing"
        self._begun = number
        self._under_way[number] = written.applied
        last = self._publisher.last_offset(self.changelog, self.partition)
        self._floors[number] = 0 if last is None else last + 1
        if self._trailing is not None:
            self._trailing.cancel()
            self._trailing = None
        if not one_trip:
            self._two_trips = number
            return [*written.outputs, *written.rows]
        self._last_one_trip = number
        assert self._outboxes is not None, "in one trip"
        tag = Tag(self._epoch, number)
        outbox = self._outboxes.records(written.outbox or b"", tag, self._told, timestamp_ms)
        records = [*written.rows, *outbox]
        marker = marker_value(tag, written.applied, self._delivered)
        self._told = self._delivered
        records.append(OutRecord(self.changelog, MARKER, marker, timestamp_ms, (), self.partition))
        return records

    def _finish(self, number: int) -> None:
        """All records of a transaction are acknowledged: move the delivered prefix, and what the disk need not read."""
        self._done.add(number)
        while (following := self._delivered + 1) in self._done:
            self._done.discard(following)
            self._delivered = following
            self._applied_told = self._under_way.pop(following)
            del self._floors[following]
        last = self._publisher.last_offset(self.changelog, self.partition)
        if self._marked >= self._delivered and last is not None:
            self._changelog_next = self._floors.get(self._delivered + 1, last + 1)

    def _mark_what_waits(self, timestamp_ms: int) -> None:
        """Send a marker if a transaction waits for one; else one that says what is delivered, a little later."""
        if self._marking is not None or self._broken is not None or self.closed:
            return
        if self._marked < self._delivered:
            name = f"marker {self.changelog}-{self.partition}"
            self._marking = asyncio.create_task(self._mark(timestamp_ms), name=name)
        elif self._trails and self._told < self._delivered == self._begun and self._trailing is None:
            loop = asyncio.get_running_loop()
            self._trailing = loop.call_later(TRAILING_S, self._trail, timestamp_ms)

    async def hush(self, timeout_s: float, *, timestamp_ms: int) -> None:
        """The partition may be given up soon: say what is delivered now, and until `go_on` never by itself.

        A marker that comes behind the next owner's claim would end that one as `Fenced`.
        """
        self._trails = False
        if self._trailing is not None:
            self._trailing.cancel()
            self._trail(timestamp_ms)
        if self._marking is not None:
            await asyncio.wait([self._marking], timeout=timeout_s)

    def go_on(self) -> None:
        """The partition stays here."""
        self._trails = True

    def _trail(self, timestamp_ms: int) -> None:
        """Nothing more was written: tell that all is delivered, so that the next owner sends nothing again."""
        self._trailing = None
        quiet = self._marking is None and self._begun == self._delivered
        if quiet and self._broken is None and self.is_owned:
            name = f"marker {self.changelog}-{self.partition}"
            self._marking = asyncio.create_task(self._mark(timestamp_ms), name=name)

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
        self._progress.set()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(self._broken if isinstance(self._broken, Exception) else Fenced())

    async def _mark(self, timestamp_ms: int) -> None:
        """Send one marker for all that is delivered, until none waits."""
        try:
            while self._marked < self._delivered or self._told < self._delivered == self._begun:
                upto = self._delivered
                await self._publish_marker(upto, self._applied_told, timestamp_ms)
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
        value = marker_value(Tag(self._epoch, number), applied, number)
        marker = OutRecord(self.changelog, MARKER, value, timestamp_ms, (), self.partition)
        self._told = max(self._told, number)
        await self._publisher.publish([marker])
        self._check_alone()
        self._marked = max(self._marked, number)
        last = self._publisher.last_offset(self.changelog, self.partition)
        if last is not None and self._marked >= self._delivered:
            self._changelog_next = self._floors.get(self._delivered + 1, last + 1)

    # ---- open, close ----

    async def take_over(
        self,
        disputed: Iterable[bytes],
        *,
        resend_after: int | None,
        delivered: int = 0,
        undelivered: Iterable[bytes] = (),
        timestamp_ms: int,
    ) -> None:
        """Begin the epoch: repair disputed keys, send again what never counted, and mark, all in one transaction.

        `resend_after` is the last transaction of the disk that counts, `delivered` the last one whose outputs are
        known to be acknowledged; None when the disk's pending ones were overruled and are thrown away.
        `undelivered` are the outboxes on the changelog that count and may not have been sent.
        """
        repaired = Changes(rows={key: self.get(key) for key in disputed})
        forgotten = [key for key, _ in self._store.range(UNDO, UNDO_END)]
        # What they were when the last transaction counted; None where a store of before decision 0017 does not say it.
        before: dict[bytes, bytes | None] | None = {}
        for packed in undelivered:
            repaired.outputs += unpack_outbox(packed)[1]
        for key, packed in self._store.range(PENDING, PENDING_END):
            forgotten.append(key)
            number = number_of(key)
            if resend_after is None or number <= min(resend_after, delivered):
                continue
            keys, outputs = unpack_outbox(packed)
            repaired.outputs += outputs
            if number > resend_after:
                repaired.rows.update((row, self.get(row)) for row in keys)
                undo = self._store.get(undo_key(number))
                before = None if undo is None or before is None else unpack_undo(undo) | before
        written = self._write(repaired, dict(self.applied), forgotten, timestamp_ms, before)
        await self.settle(written, timestamp_ms=timestamp_ms)
        await self.deliver(timestamp_ms=timestamp_ms)

    def give_up(self) -> None:
        """Every later `write` is `Fenced`, and nothing more goes to the changelog; the store stays open."""
        self.closed = True
        for later in (self._marking, self._trailing):
            if later is not None:
                later.cancel()

    def close(self) -> None:
        """Give the partition up, and let go of the store."""
        self.give_up()
        if not self._let_go:
            self._let_go = True
            self._store.close()
