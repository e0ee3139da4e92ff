"""Fetched Kafka records as plain tuples: aiokafka's own record class costs 1.0 µs each, this 0.3 µs.

A record is made for every message read, which was a tenth of all the time of map-and-forward
(profile in docs/decisions/0006). `install` replaces the class for every consumer of the process.

A header's name may be any bytes on the wire, and aiokafka fails on one that is not UTF-8: the partition could never
be read past it. Such a fetch is unpacked again, slower, with what cannot be read replaced.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Self

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy
from aiokafka.structs import TopicPartition

log = logging.getLogger(__name__)

_FIRST_FORMAT_WITH_HEADERS: Final = 2


class FetchedRecord(NamedTuple):
    """One record as it was read (`app.ports.InRecord`); timestamps in ms UTC."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


_make: Final = tuple.__new__


class KeptRecords(MemoryRecords):
    """The batches of a fetch, with the bytes to read them again from."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.raw = raw


class _Text(bytearray):
    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


class _Buffer(bytearray):
    """Bytes whose slices decode whatever they hold."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Text(found) if isinstance(at, slice) else found


class LenientBatch(_DefaultRecordBatchPy):
    """A batch of format 2 whose header names need not be UTF-8."""

    _buffer: bytearray

    def __iter__(self) -> Self:
        self._maybe_uncompress()
        self._buffer = _Buffer(self._buffer)
        return self


class LenientRecords(_MemoryRecordsPy):
    """The batches of a fetch, each lenient; batches of older formats have no headers."""

    def next_batch(self, *args: Any) -> Any:
        """The next batch, or None at the end."""
        raw = self._next_slice
        found = super().next_batch(*args)
        if raw is None or raw[self.MAGIC_OFFSET] < _FIRST_FORMAT_WITH_HEADERS:
            return found
        return LenientBatch(raw)


class LightPartitionRecords(fetcher.PartitionRecords):
    """aiokafka's unpacking with our record; it knows no deserialisers, which none of our consumers has."""

    _records: Any
    next_fetch_offset: int

    def __iter__(self) -> Iterator[FetchedRecord]:
        """The generator itself: one Python call less a record than through `__next__`."""
        iterator: Iterator[FetchedRecord] = self._records_iterator
        return iterator

    def _unpack_records(self) -> Iterator[FetchedRecord]:
        try:
            plain = self._isolation_level != fetcher.READ_COMMITTED
            yield from self._unpacked() if plain else super()._unpack_records()
        except UnicodeDecodeError:
            log.info(
                "a record of %s-%d after offset %d has a header whose name is not UTF-8; it is read with marks in it",
                *self._tp,
                self.next_fetch_offset - 1,
                extra={"action": "header_unreadable"},
            )
            unread = self.next_fetch_offset
            self._records = LenientRecords(self._records.raw)
            yield from (record for record in super()._unpack_records() if record.offset >= unread)

    def _unpacked(self) -> Iterator[FetchedRecord]:
        """The loop of aiokafka for consumers that read uncommitted, with the record made in place."""
        topic, partition = self._tp
        records, check = self._records, self._check_crcs
        while records.has_next():
            batch = records.next_batch()
            if check and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if not batch.is_control_batch:
                for record in batch:
                    offset = record.offset
                    if offset < self.next_fetch_offset:
                        continue  # before the position in a compressed batch
                    self.next_fetch_offset = offset + 1
                    yield _make(
                        FetchedRecord,
                        (
                            topic,
                            partition,
                            offset,
                            record.timestamp,
                            record.timestamp_type,
                            record.key,
                            record.value,
                            record.headers,
                        ),
                    )
            # Past what compaction took from the end of the batch, which else would be fetched again and again.
            self.next_fetch_offset = batch.next_offset

    def _consumer_record(self, tp: TopicPartition, record: Any) -> FetchedRecord:
        return _make(
            FetchedRecord,
            (
                tp.topic,
                tp.partition,
                record.offset,
                record.timestamp,
                record.timestamp_type,
                record.key,
                record.value,
                record.headers,
            ),
        )


def install() -> None:
    """Make every consumer of this process use it."""
    fetcher.MemoryRecords = KeptRecords
    fetcher.PartitionRecords = LightPartitionRecords
