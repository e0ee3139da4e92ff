"""Reads changelog partitions with aiokafka, outside any consumer group."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.adapters.consumers import LOOK_AGAIN_MS, stop_consumer
from app.errors import BrokerUnavailable
from app.ports import InRecord


class KafkaChangelogReader:
    """One consumer a read, so that partitions restore side by side.

    To connect takes longer than to read what a warm partition lacks: a few consumers are kept for the next reads,
    `prepare` makes them beforehand, `close` lets go of them.
    """

    def __init__(self, bootstrap_servers: str, batch_records: int = 5_000, spare: int = 0, **security: Any) -> None:
        """`spare` is how many consumers are kept."""
        self._bootstrap = bootstrap_servers
        self._batch_records = batch_records
        self._security = security
        self._spare = spare
        self._idle: list[AIOKafkaConsumer] = []

    async def prepare(self) -> None:
        """Connect the consumers that are to be kept. Raises `BrokerUnavailable`."""
        while len(self._idle) < self._spare:
            self._idle.append(await self._started())

    async def close(self) -> None:
        """Let go of the consumers that are kept."""
        self._spare = 0
        while self._idle:
            await stop_consumer(self._idle.pop())

    @contextlib.asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = self._idle.pop() if self._idle else await self._started()
        try:
            yield consumer
            consumer.unsubscribe()
        except BaseException:
            await stop_consumer(consumer)
            raise
        if len(self._idle) < self._spare:
            self._idle.append(consumer)
        else:
            await stop_consumer(consumer)

    async def _started(self) -> AIOKafkaConsumer:
        consumer = self._consumer()
        try:
            await consumer.start()
        except KafkaError as error:
            await stop_consumer(consumer)
            raise BrokerUnavailable(f"The changelogs cannot be read: {error}.") from error
        except BaseException:
            await stop_consumer(consumer)
            raise
        return consumer

    def _consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            consumer_timeout_ms=LOOK_AGAIN_MS,
            max_partition_fetch_bytes=8 << 20,
            **self._security,
        )

    async def end(self, topic: str, partition: int) -> int:
        """The offset after the last record. Raises `BrokerUnavailable`."""
        where = TopicPartition(topic, partition)
        try:
            async with self._borrowed() as consumer:
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
            async with self._borrowed() as consumer:
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
