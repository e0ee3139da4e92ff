"""Reads ranges of topics outside any consumer group: from where to where is the caller's to say."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.adapters.connection import security_options
from app.adapters.consumers import LOOK_AGAIN_MS, stop_consumer
from app.adapters.records import install
from app.adapters.topics_admin import describe_topics
from app.errors import BrokerUnavailable, UserError
from app.ports import InRecord
from config.kafka import KafkaSettings

Offsets = dict[int, int]
"""An offset for each partition of a topic."""

_POLL_MS = 200
_FETCH_BYTES = 4 << 20


class TopicReader:
    """Every question opens a connection of its own; all raise `BrokerUnavailable` when no broker answers."""

    def __init__(self, kafka: KafkaSettings, stall_s: float = 30.0) -> None:
        """`kafka.bootstrap_servers` names the broker; a read that gets nothing for `stall_s` gives up."""
        self._kafka = kafka
        self._stall_s = stall_s
        install()

    async def partitions(self, topic: str) -> int:
        """How many there are. Raises `UserError` when there is no such topic."""
        states = await describe_topics(self._kafka.bootstrap_servers, [topic], self._kafka)
        if not states:
            raise UserError(
                f"There is no topic {topic} at {self._kafka.bootstrap_servers}: `headrace topics declare` creates it."
            )
        return states[0].partitions

    async def begins(self, topic: str) -> Offsets:
        """The first offset of each partition that is still there."""
        return await self._ask(topic, lambda consumer, at: consumer.beginning_offsets(at))

    async def ends(self, topic: str) -> Offsets:
        """The offset after the last record of each partition."""
        return await self._ask(topic, lambda consumer, at: consumer.end_offsets(at))

    async def since(self, topic: str, at_ms: int) -> Offsets:
        """The first offset of each partition whose timestamp is `at_ms` or later; its end where there is none."""
        where = await self._where(topic)
        async with self._consumer() as consumer:
            found = await consumer.offsets_for_times(dict.fromkeys(where, max(0, at_ms)))
            ends = await consumer.end_offsets(where)
        return {tp.partition: ends[tp] if found.get(tp) is None else found[tp].offset for tp in where}

    async def read(
        self, topic: str, start: Mapping[int, int], end: Mapping[int, int]
    ) -> AsyncGenerator[Sequence[InRecord], None]:
        """Records with start <= offset < end of each partition, batch by batch, each in the order of its partition.

        What retention has deleted meanwhile is left out.
        """
        left = {TopicPartition(topic, at): last for at, last in end.items() if start.get(at, 0) < last}
        if not left:
            return
        async with self._consumer() as consumer:
            consumer.assign(list(left))
            for tp in left:
                consumer.seek(tp, start.get(tp.partition, 0))
            heard_s = time.monotonic()
            while left:
                for tp, found in (await consumer.getmany(*left, timeout_ms=_POLL_MS)).items():
                    heard_s = time.monotonic()
                    if records := [record for record in found if record.offset < left[tp]]:
                        yield records
                for tp in [tp for tp in left if await consumer.position(tp) >= left[tp]]:
                    del left[tp]
                    consumer.pause(tp)
                if time.monotonic() - heard_s > self._stall_s:
                    raise BrokerUnavailable(f"The broker gave nothing more of {topic} for {self._stall_s:g} s.")

    async def one(self, topic: str, partition: int, offset: int) -> InRecord | None:
        """The record at an offset; None when it is no longer there."""
        begin, end = (await self.begins(topic)).get(partition), (await self.ends(topic)).get(partition)
        if begin is None or end is None or not begin <= offset < end:
            return None
        async for batch in self.read(topic, {partition: offset}, {partition: offset + 1}):
            return batch[0] if batch[0].offset == offset else None
        return None

    async def follow(self, topic: str) -> AsyncGenerator[Sequence[InRecord], None]:
        """Every record from now on, for as long as it is asked for."""
        where = await self._where(topic)
        async with self._consumer() as consumer:
            consumer.assign(where)
            await consumer.seek_to_end(*where)
            while True:
                for found in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                    yield found

    async def _ask(self, topic: str, question: Any) -> Offsets:
        where = await self._where(topic)
        async with self._consumer() as consumer:
            return {tp.partition: int(offset) for tp, offset in (await question(consumer, where)).items()}

    async def _where(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in range(await self.partitions(topic))]

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[Any]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka.bootstrap_servers,
            client_id=f"{self._kafka.client_id}-cli",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            consumer_timeout_ms=LOOK_AGAIN_MS,
            max_partition_fetch_bytes=_FETCH_BYTES,
            request_timeout_ms=self._kafka.request_timeout_ms,
            **security_options(self._kafka),
        )
        try:
            await consumer.start()
            yield consumer
        except (TimeoutError, KafkaError, OSError) as error:
            raise BrokerUnavailable(f"Kafka at {self._kafka.bootstrap_servers} cannot be read: {error}.") from error
        finally:
            await stop_consumer(consumer)
