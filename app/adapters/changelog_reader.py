"""Reads changelog partitions with aiokafka, outside any consumer group."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.errors import BrokerUnavailable
from app.ports import InRecord


class KafkaChangelogReader:
    """One consumer a read, so that partitions restore side by side."""

    def __init__(self, bootstrap_servers: str, batch_records: int = 5_000, **security: Any) -> None:
        self._bootstrap = bootstrap_servers
        self._batch_records = batch_records
        self._security = security

    def _consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=8 << 20,
            **self._security,
        )

    async def end(self, topic: str, partition: int) -> int:
        """The offset after the last record. Raises `BrokerUnavailable`."""
        where = TopicPartition(topic, partition)
        try:
            async with self._consumer() as consumer:
                ends = await consumer.end_offsets([where])
        except KafkaError as error:
            raise BrokerUnavailable(f"The changelog {topic}-{partition} cannot be read: {error}.") from error
        return int(ends[where])

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[InRecord]]:
        """Records with start <= offset < end. Raises `BrokerUnavailable`."""
        if start >= end:
            return
        where = TopicPartition(topic, partition)
        try:
            async with self._consumer() as consumer:
                consumer.assign([where])
                consumer.seek(where, start)
                while True:
                    found = await consumer.getmany(where, timeout_ms=200, max_records=self._batch_records)
                    records = [record for record in found.get(where, ()) if record.offset < end]
                    if records:
                        yield records
                    if await consumer.position(where) >= end:
                        return
        except KafkaError as error:
            raise BrokerUnavailable(f"The changelog {topic}-{partition} cannot be read: {error}.") from error
