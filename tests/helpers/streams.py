"""Batches as the transport gives them, and an outbox as the producer is."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from app.ports import OutRecord, SinkRow


class Record(NamedTuple):
    """A Kafka record as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def a_record(row: SinkRow | bytes | None, offset: int = 0, topic: str = "device.rollups") -> Record:
    """The record of a row, or of raw bytes."""
    value = orjson.dumps(row.row) if isinstance(row, SinkRow) else row
    return Record(topic, 0, offset, 1_763_689_000_000 + offset, b"press-0001", value)


class Batch:
    """One event; counts its acknowledgements and notes their order in `order`."""

    def __init__(self, records: Sequence[Record], order: list[Any] | None = None) -> None:
        self.records = records
        self.topic = records[0].topic if records else "device.rollups"
        self.partition = records[0].partition if records else 0
        self.acks = 0
        self.order: list[Any] = [] if order is None else order

    def ack(self) -> None:
        self.acks += 1
        self.order.append(self)


class Outbox:
    """Keeps what is published; fails first with what `failures` holds."""

    def __init__(self, *failures: Exception, order: list[Any] | None = None) -> None:
        self.records: list[OutRecord] = []
        self.failures = list(failures)
        self.order: list[Any] = [] if order is None else order

    async def publish(self, records: Sequence[OutRecord]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.records += records
        self.order.append("published")

    def last_offset(self, topic: str, partition: int) -> int | None:
        return len(self.records) - 1 if self.records else None


async def stream_of(batches: Iterable[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch
