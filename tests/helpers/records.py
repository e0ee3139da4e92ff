"""Whole topics of a real broker, for tests that run no event loop."""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from app.adapters.topic_reader import TopicReader
from app.ports import InRecord, OutRecord
from config.kafka import KafkaSettings


def reader(bootstrap: str) -> TopicReader:
    return TopicReader(KafkaSettings(bootstrap_servers=bootstrap))


def records(bootstrap: str, topic: str) -> list[InRecord]:
    """Every record of a topic, partition after partition."""

    async def read() -> list[InRecord]:
        found: list[InRecord] = []
        one = reader(bootstrap)
        async for batch in one.read(topic, await one.begins(topic), await one.ends(topic)):
            found += batch
        return found

    return sorted(asyncio.run(read()), key=lambda record: (record.partition, record.offset))


def values(bootstrap: str, topic: str) -> list[bytes]:
    """The values of a topic, without tombstones."""
    return [record.value for record in records(bootstrap, topic) if record.value is not None]


def count(bootstrap: str, topic: str) -> int:
    """How many records a topic has been given."""
    return sum(asyncio.run(reader(bootstrap).ends(topic)).values())


async def send(bootstrap: str, sent: Sequence[OutRecord]) -> None:
    """Send records one after the other; without a partition to 0."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=4 << 20) as producer:
        for record in sent:
            await producer.send_and_wait(
                record.topic,
                record.value,
                key=record.key,
                partition=record.partition or 0,
                timestamp_ms=record.timestamp_ms,
                headers=list(record.headers),
            )
