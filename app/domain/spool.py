"""What the spool is on disk: batches of records in segments, what damage costs, and what falls to its limits.

A segment is a file of batches, one behind the other, and nothing else:

    magic 4 │ length u32 │ count u32 │ first u64 │ at_ms i64 │ crc u32 of the payload │ crc u32 of the head │ payload

`first` is the number of the batch's first record, counted over the life of the spool. The head has a checksum of its
own: with a sound head a damaged payload is passed over exactly, and the count of what it cost is known. With a damaged
head the next sound one is looked for, and the numbers on both sides tell how many records lay between.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import isnan, nan
from typing import Final, NamedTuple

# 0xF5 is in no UTF-8 text, so that no JSON looks like the beginning of a batch.
MAGIC: Final = b"\xf5HRb"
_HEAD: Final = struct.Struct("<4sIIQqI")
_CRC: Final = struct.Struct("<I")
HEAD_BYTES: Final = _HEAD.size + _CRC.size
_NONE: Final = 0xFFFFFFFF
_POSITION: Final = struct.Struct("<4sQ")
_POSITION_MAGIC: Final = b"\xf5HRp"
_SPANS_MAGIC: Final = b"\xf5HRg"


class Kept(NamedTuple):
    """One record of the spool; `timestamp_ms` and `intended_ms` are those it would have been sent with."""

    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Sequence[tuple[str, bytes]] = ()
    intended_ms: float | None = None


class Head(NamedTuple):
    """The head of a batch: records `first` to `end` (exclusive), written at `at_ms`, `length` bytes of payload."""

    length: int
    records: int
    first: int
    at_ms: int
    crc: int

    @property
    def end(self) -> int:
        return self.first + self.records

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return HEAD_BYTES + self.length


class Found(NamedTuple):
    """A batch whose head is sound, at byte `at`; `payload` None when it is damaged or not whole."""

    at: int
    head: Head
    payload: bytes | None


# ---- write ----


def encode_batch(records: Sequence[Kept], first: int, at_ms: int) -> bytes:
    """The records as one batch."""
    payload = _packed(records)
    head = _HEAD.pack(MAGIC, len(payload), len(records), first, at_ms, zlib.crc32(payload))
    return b"".join((head, _CRC.pack(zlib.crc32(head)), payload))


def _packed(records: Sequence[Kept]) -> bytes:
    """Lengths and times as columns, which are packed in one step, then the bytes of each record."""
    count = len(records)
    packed_headers = [_packed_headers(record.headers) if record.headers else b"" for record in records]
    columns = struct.pack(
        f"<{3 * count}I{count}q{count}d",
        *(_NONE if record.key is None else len(record.key) for record in records),
        *(_NONE if record.value is None else len(record.value) for record in records),
        *map(len, packed_headers),
        *(record.timestamp_ms for record in records),
        *(nan if record.intended_ms is None else record.intended_ms for record in records),
    )
    parts = [columns]
    for record, headers in zip(records, packed_headers, strict=True):
        parts += (record.key or b"", record.value or b"", headers)
    return b"".join(parts)


def _packed_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    parts: list[bytes] = []
    for name, content in headers:
        encoded = name.encode()
        parts += (struct.pack("<II", len(encoded), len(content)), encoded, content)
    return b"".join(parts)


# ---- read ----


def head_at(data: bytes, at: int) -> Head | None:
    """The head at byte `at`; None when what is there is not a sound one."""
    if not data.startswith(MAGIC, at) or len(data) - at < HEAD_BYTES:
        return None
    end = at + _HEAD.size
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(memoryview(data)[at:end]):
        return None
    return Head(*_HEAD.unpack_from(data, at)[1:])


def next_head(data: bytes, at: int) -> int:
    """The byte of the next sound head at or after `at`; the length of `data` when there is none."""
    while (at := data.find(MAGIC, at)) >= 0:
        if head_at(data, at) is not None:
            return at
        at += 1
    return len(data)


def batches(data: bytes) -> Iterator[Found]:
    """The batches of a segment, or of a part that begins with one; what is no batch is passed over."""
    at = next_head(data, 0)
    while (head := head_at(data, at)) is not None:
        ends = at + head.size
        payload = data[at + HEAD_BYTES : ends]
        is_sound = len(payload) == head.length and zlib.crc32(payload) == head.crc
        yield Found(at, head, payload if is_sound else None)
        # A payload that is cut short may have the next batch inside: what was written there later.
        at = next_head(data, ends if is_sound or head_at(data, ends) is not None else at + HEAD_BYTES)


def decode_batch(payload: bytes, count: int) -> list[Kept]:
    """The records of a sound payload. Raises `ValueError` when it is none."""
    try:
        columns = struct.unpack_from(f"<{3 * count}I{count}q{count}d", payload)
    except struct.error as error:
        raise ValueError(str(error)) from error
    keys, values, headers = columns[:count], columns[count : 2 * count], columns[2 * count : 3 * count]
    times, intended = columns[3 * count : 4 * count], columns[4 * count :]
    at = struct.calcsize(f"<{3 * count}I{count}q{count}d")
    make = tuple.__new__
    records: list[Kept] = []
    for key_length, value_length, headers_length, at_ms, due_ms in zip(
        keys, values, headers, times, intended, strict=True
    ):
        key = value = None
        if key_length != _NONE:
            key = payload[at : at + key_length]
            at += key_length
        if value_length != _NONE:
            value = payload[at : at + value_length]
            at += value_length
        named = _headers(payload[at : at + headers_length]) if headers_length else ()
        at += headers_length
        records.append(make(Kept, (key, value, at_ms, named, None if isnan(due_ms) else due_ms)))
    if at != len(payload):
        raise ValueError(f"{len(payload)} bytes where its lengths make {at}")
    return records


def _headers(packed: bytes) -> Sequence[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    at = 0
    while at < len(packed):
        name_length, length = struct.unpack_from("<II", packed, at)
        at += 8
        found.append((packed[at : at + name_length].decode(), packed[at + name_length : at + name_length + length]))
        at += name_length + length
    return tuple(found)


# ---- the position ----


def encode_position(number: int) -> bytes:
    """The number below which every record is done with."""
    packed = _POSITION.pack(_POSITION_MAGIC, number)
    return packed + _CRC.pack(zlib.crc32(packed))


def decode_position(data: bytes) -> int | None:
    """The position that was written; None when it is damaged."""
    if len(data) != _POSITION.size + _CRC.size or not data.startswith(_POSITION_MAGIC):
        return None
    if _CRC.unpack_from(data, _POSITION.size)[0] != zlib.crc32(data[: _POSITION.size]):
        return None
    return int(_POSITION.unpack_from(data)[1])


# ---- what is not there ----


class Span(NamedTuple):
    """Records `first` to `end` (exclusive)."""

    first: int
    end: int


def missing(first: int, end: int, spans: Iterable[Span]) -> list[Span]:
    """What of the records `first` to `end` is in none of the spans, in order."""
    found: list[Span] = []
    for span in sorted(spans):
        if first < (before := min(span.first, end)):
            found.append(Span(first, before))
        first = max(first, span.end)
    if first < end:
        found.append(Span(first, end))
    return found


def joined(first: int, end: int, spans: Iterable[Span]) -> list[Span]:
    """What the spans have of the records `first` to `end`, in order, those that touch as one."""
    return missing(first, end, missing(first, end, spans))


def encode_spans(spans: Sequence[Span]) -> bytes:
    """Spans as bytes with a checksum."""
    packed = _SPANS_MAGIC + b"".join(struct.pack("<QQ", *span) for span in spans)
    return packed + _CRC.pack(zlib.crc32(packed))


def decode_spans(data: bytes) -> list[Span] | None:
    """The spans that were written; None when they are damaged."""
    packed, crc = data[: -_CRC.size], data[-_CRC.size :]
    if (
        not packed.startswith(_SPANS_MAGIC)
        or len(packed) % 16 != len(_SPANS_MAGIC)
        or crc != _CRC.pack(zlib.crc32(packed))
    ):
        return None
    return [Span(*pair) for pair in struct.iter_unpack("<QQ", packed[len(_SPANS_MAGIC) :])]


# ---- limits ----


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """What bounds the spool on disk."""

    max_bytes: int
    max_age_ms: int
    segment_bytes: int


class Extent(NamedTuple):
    """A segment as its limits see it; a `pinned` one is being written or read, or has records under way."""

    first: int
    size: int
    newest_ms: int
    pinned: bool


def is_too_old(at_ms: int, now_ms: int, limits: SpoolLimits) -> bool:
    """Whether a batch written at `at_ms` is past the age that anything is sent at."""
    return at_ms < now_ms - limits.max_age_ms


def fallen_to_age(extents: Iterable[Extent], now_ms: int, limits: SpoolLimits) -> list[Extent]:
    """The oldest segments, as far as all that is in them is too old."""
    loose = (extent for extent in extents if not extent.pinned)
    return list(takewhile(lambda extent: is_too_old(extent.newest_ms, now_ms, limits), loose))


def fallen_to_bytes(extents: Sequence[Extent], more_bytes: int, limits: SpoolLimits) -> list[Extent] | None:
    """The oldest segments that must go so that `more_bytes` fit; None when they would not fit even then."""
    excess = sum(extent.size for extent in extents) + more_bytes - limits.max_bytes
    fallen: list[Extent] = []
    for extent in extents:
        if excess <= 0:
            break
        if not extent.pinned:
            fallen.append(extent)
            excess -= extent.size
    return fallen if excess <= 0 else None
