"""What a restart must send again, as bytes and as records of the changelog: keys of changed rows, and outputs."""

from collections.abc import Iterable, Sequence

import orjson

from app.ports import OutRecord
from tables.changelog import PIECES, TAG_BYTES, Tag, outbox_key, pack_tag


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


class OutboxLog:
    """The outboxes of one owner on the changelog: in records of at most `piece_bytes`, for `slots` at once."""

    def __init__(self, changelog: str, partition: int, slots: int, piece_bytes: int, pieces: int) -> None:
        self._place = (changelog, partition)
        self._slots = slots
        self._size = piece_bytes - TAG_BYTES
        self._most = pieces
        self._left: dict[int, int] = {}  # pieces of those that have more than one, by transaction

    def fits(self, outbox: bytes) -> bool:
        """Whether it may go in so few records."""
        return len(outbox) <= self._most * self._size

    def records(self, outbox: bytes, tag: Tag, told: int, timestamp_ms: int) -> list[OutRecord]:
        """The outbox, behind the deletion of the further pieces of those that a marker has `told` to be delivered.

        Without that marker a piece that is missing would be one that the next owner has to send.
        """
        found = [
            self._record(number, piece, None, (("t", pack_tag(tag)),), timestamp_ms)
            for number in [number for number in self._left if number <= told]
            for piece in range(1, self._left.pop(number))
        ]
        pieces = [outbox[start : start + self._size] for start in range(0, len(outbox), self._size)]
        # What an earlier one has left in the same slot is deleted with this one.
        if (left := max(len(pieces), self._left.pop(tag.number - self._slots, 0))) > 1:
            self._left[tag.number] = left
        headers = ((PIECES, len(pieces).to_bytes(2, "big")),) if len(pieces) > 1 else ()
        packed = pack_tag(tag)
        for number, piece in enumerate(pieces):
            found.append(self._record(tag.number, number, packed + piece, () if number else headers, timestamp_ms))
        return found

    def _record(
        self, number: int, piece: int, value: bytes | None, headers: Sequence[tuple[str, bytes]], timestamp_ms: int
    ) -> OutRecord:
        changelog, partition = self._place
        return OutRecord(changelog, outbox_key(number, self._slots, piece), value, timestamp_ms, headers, partition)


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
