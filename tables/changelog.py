"""How a table's changes look on its changelog topic, and which of them count on restore.

    key    table prefix + key of the row
    value  tag + row; a deleted row is a tombstone whose tag is in the header "t"
    tag    1 byte version, 8 bytes epoch, 8 bytes number of the transaction (big-endian)
    marker the record with key MARKER: the transactions up to its tag are complete; its row is JSON
           {"applied": {topic: last offset applied}, "delivered": transaction up to which outputs are acknowledged}
    outbox records with key OUTBOX, the number's slot, and from the second one on the number of the piece: the outputs
           of a transaction, to be sent again by the next owner when the last marker does not say that they are
           delivered (tables.outbox); of more than one piece the header "n" of the first says how many
    claim  the record with key CLAIM: a new owner; its epoch is the claim's own offset plus one

A transaction counts once a marker of its epoch, at or after its number, follows it. Kafka orders the
claims: what an older epoch writes behind a newer one's claim is a zombie's and never counts, whatever
the zombie believes. The new owner reads the log up to its own claim, so that it knows all that counts.
Keys that were written without counting are disputed: the next owner writes their counted values again in
its first transaction, before compaction (which leaves records younger than ten minutes alone) can have
removed those.

Outboxes have few keys, used in turn, so that compaction keeps few of them: an owner has no more transactions
undelivered than there are slots, and deletes the further pieces of what is delivered. Those of older epochs than the
last marker's are done with: a new owner sends again what it found undelivered, and has it in the outbox of its first
transaction. A zombie's do not count, and need no repair: were a slot's right outbox compacted away behind a zombie's,
ten minutes would have passed in which no owner took over.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from app.errors import UserError
from app.ports import InRecord

MARKER: Final = b"\x00applied"
CLAIM: Final = b"\x00claim"
# The header of a claim that says whose it is, for people to read.
OWNER: Final = "owner"
OUTBOX: Final = b"\x00outbox"
PIECES: Final = "n"
_TAG: Final = struct.Struct(">BQQ")
_VERSION: Final = 2
TAG_BYTES: Final = _TAG.size
# Of about 300 bytes each; an owner has far fewer rows under way when it dies.
WAITING_ROWS: Final = 100_000


class UnreadableChangelog(UserError, ValueError):
    """The tables are of another version: delete their changelog topic and tables.directory, they are built anew."""


class Tag(NamedTuple):
    """Who wrote a record (`epoch`), in which of its transactions (`number`)."""

    epoch: int
    number: int


NOTHING: Final = Tag(0, 0)


def pack_tag(tag: Tag) -> bytes:
    """The tag as bytes."""
    return _TAG.pack(_VERSION, tag.epoch, tag.number)


def unpack_tag(value: bytes) -> Tag:
    """The tag at the front of `value`. Raises ValueError on another version or too few bytes."""
    if len(value) < TAG_BYTES or value[0] != _VERSION:
        raise UnreadableChangelog
    _, epoch, number = _TAG.unpack_from(value)
    return Tag(epoch, number)


def marker_value(tag: Tag, applied: Mapping[str, int], delivered: int | None = None) -> bytes:
    """The value of a marker; `delivered` None: everything up to its tag, and older records say nothing of it."""
    row: dict[str, Any] = {"applied": dict(applied)}
    if delivered is not None:
        row["delivered"] = delivered
    return pack_tag(tag) + orjson.dumps(row)


def outbox_key(number: int, slots: int, piece: int = 0) -> bytes:
    """The key of a piece of a transaction's outbox; so many of the latest outboxes outlive compaction."""
    slot = OUTBOX + (number % slots).to_bytes(2, "big")
    return slot + piece.to_bytes(2, "big") if piece else slot


def claim_value() -> bytes:
    """The value of a claim; what it says is its offset."""
    return pack_tag(NOTHING)


class Written(NamedTuple):
    """One row on the log whose marker has not come."""

    tag: Tag
    offset: int
    key: bytes
    row: bytes | None


@dataclass(slots=True)
class _Outbox:
    """What has come of one; the first piece says how many there are."""

    pieces: dict[int, bytes] = field(default_factory=dict)
    count: int = 1

    def take(self, record: InRecord, value: bytes) -> None:
        number = record.key[len(OUTBOX) + 2 :] if record.key is not None else b""
        if not number:
            self.count = next((int.from_bytes(told, "big") for name, told in record.headers if name == PIECES), 1)
        self.pieces[int.from_bytes(number, "big")] = value

    def whole(self) -> bytes:
        """Raises `UnreadableChangelog`: nothing that counts and may not have been sent is overwritten."""
        if not self.pieces.keys() >= set(range(self.count)):
            raise UnreadableChangelog
        return b"".join(self.pieces[number] for number in range(self.count))


@dataclass(slots=True)
class Replay:
    """Folds changelog records, in log order, into the rows that count.

    `disk` is the last transaction whose rows a store already holds; they are not returned again.
    `marked` is the last transaction that counts and `applied` what its marker says; `disk_marked` the
    last number of the store's own epoch that counts, `disk_delivered` the last one of it whose outputs are known
    to be acknowledged. `claimed` is the epoch of the last claim, `owner` whose it is where that was read.
    `last` is the transaction of the log's last marker where that is known beforehand: no row need wait.

    A compacted log has few markers left, so that rows may wait for one in great number. Beyond
    `waiting_rows` they are returned all the same; should the last of them (`spilled`) never be marked,
    the store must be filled again, with `last` as `marked` is then.
    """

    disk: Tag = NOTHING
    marked: Tag = NOTHING
    claimed: int = 0
    owner: str = ""
    disk_marked: int = 0
    disk_delivered: int = 0
    applied: dict[str, int] = field(default_factory=dict)
    last: Tag | None = None
    waiting_rows: int = WAITING_ROWS
    spilled: Tag = NOTHING
    _waiting: list[Written] = field(default_factory=list)
    _disputed: dict[bytes, int] = field(default_factory=dict)
    _outboxes: dict[Tag, _Outbox] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether everything that was fed counts and is delivered: nothing of it need be read again."""
        unsettled = self._waiting or self._disputed or self._outboxes or self.spilled > self.marked
        return not unsettled and self.claimed <= self.marked.epoch

    @property
    def ahead(self) -> bool:
        """Whether transactions count that the store has not seen."""
        return self.marked > self.disk

    @property
    def overruled(self) -> bool:
        """Whether the store holds transactions that do not count, while others after them do."""
        return self.ahead and self.disk_marked < self.disk.number

    @property
    def overrun(self) -> bool:
        """Whether rows were returned that do not count."""
        return self.spilled > self.marked

    def feed(self, records: Iterable[InRecord]) -> dict[bytes, bytes | None]:
        """Take records and return the rows that count from now on (None: deleted).

        Raises ValueError when a record is not one of ours.
        """
        rows: dict[bytes, bytes | None] = {}
        for record in records:
            key, value = record.key, record.value
            if key is None:
                msg = f"changelog record {record.topic}-{record.partition}@{record.offset} has no key"
                raise ValueError(msg)
            tag = unpack_tag(value) if value is not None else _header_tag(record)
            if key == CLAIM:
                self.claimed = record.offset + 1
                self.owner = next((told.decode(errors="replace") for name, told in record.headers if name == OWNER), "")
            elif key == MARKER and value is not None:
                if tag.epoch >= self.claimed and tag >= self.marked:  # the same one may say more of deliveries
                    self._mark(tag, orjson.loads(value[TAG_BYTES:]), rows)
            elif key.startswith(OUTBOX):
                if value is not None and tag.epoch >= self.claimed:  # else a zombie's, which nobody is to see
                    self._outboxes.setdefault(tag, _Outbox()).take(record, value[TAG_BYTES:])
            elif tag.epoch < self.claimed or tag <= self.marked:
                # A zombie's, or a repeat of one of ours by a client that was replaced: it is the last of its key.
                self._disputed[key] = record.offset
            else:
                written = Written(tag, record.offset, key, value[TAG_BYTES:] if value is not None else None)
                if self.last is None:
                    self._waiting.append(written)
                elif tag <= self.last:
                    self._count(written, rows)
                else:
                    self._disputed[key] = record.offset
        if len(self._waiting) > self.waiting_rows:
            self._spill(rows)
        return rows

    def finish(self) -> set[bytes]:
        """The keys to repair once the whole log was fed."""
        self._disputed.update((written.key, written.offset) for written in self._waiting)
        self._waiting = []
        return set(self._disputed)

    def undelivered(self) -> list[bytes]:
        """The outboxes that count and may not have been sent, in order, once the whole log was fed."""
        return [self._outboxes[tag].whole() for tag in sorted(self._outboxes) if tag <= self.marked]

    def _mark(self, tag: Tag, row: dict[str, Any], rows: dict[bytes, bytes | None]) -> None:
        self.marked = tag
        self.applied = row["applied"]
        delivered = row.get("delivered", tag.number)
        if tag.epoch == self.disk.epoch:
            self.disk_marked = tag.number
            self.disk_delivered = max(self.disk_delivered, delivered)
        if self._outboxes:
            self._outboxes = {
                of: outbox for of, outbox in self._outboxes.items() if of.epoch == tag.epoch and of.number > delivered
            }
        still: list[Written] = []
        for written in self._waiting:
            if written.tag > tag:
                still.append(written)
            else:
                self._count(written, rows)
        self._waiting = still

    def _count(self, written: Written, rows: dict[bytes, bytes | None]) -> None:
        if written.tag > self.disk:
            rows[written.key] = written.row
        if self._disputed.get(written.key, written.offset) < written.offset:
            del self._disputed[written.key]

    def _spill(self, rows: dict[bytes, bytes | None]) -> None:
        for written in self._waiting:
            self.spilled = max(self.spilled, written.tag)
            self._count(written, rows)
        self._waiting = []


def _header_tag(record: InRecord) -> Tag:
    for name, value in record.headers:
        if name == "t":
            return unpack_tag(value)
    msg = f"tombstone {record.topic}-{record.partition}@{record.offset} has no tag"
    raise ValueError(msg)
