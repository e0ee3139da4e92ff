"""Laws of the three-node Kafka: acknowledged records outlive the node that led them."""

import asyncio
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from app.adapters import topics_admin
from app.adapters.embedded import EmbeddedKafka
from config.topics import TopicSpec
from tests.helpers.broker import embedded_settings

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PATIENCE_S = 60
TOPIC = TopicSpec("kept", "key", "none", retention_ms=-1, partitions=1)


async def new_leader(kafka: EmbeddedKafka, old: int) -> int:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        leader = await kafka.leader(TOPIC.name, 0)
        if leader not in (-1, old):
            return leader
    raise AssertionError("no node took the partition over")


async def read(kafka: EmbeddedKafka, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(TOPIC.name, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_acknowledged_records_outlive_their_leader(tmp_path: Path) -> None:
    async with EmbeddedKafka(embedded_settings(tmp_path, heap_mib=256), nodes=3) as kafka:
        assert await topics_admin.ensure_topics(kafka.bootstrap, [TOPIC]) == []
        (state,) = await topics_admin.describe_topics(kafka.bootstrap)
        assert state.replication_factor == 3
        assert state.configs["min.insync.replicas"] == "2"
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
        await producer.start()
        try:
            await producer.send_and_wait(TOPIC.name, b"before")
            assert kafka.controller() in kafka.pids
            leader = await kafka.leader(TOPIC.name, 0)
            kafka.kill(leader)
            assert kafka.dead_nodes() == [leader]
            assert await new_leader(kafka, leader) != leader
            await producer.send_and_wait(TOPIC.name, b"after")
        finally:
            await producer.stop()
        await kafka.start_node(leader)
        assert kafka.dead_nodes() == []
        assert await read(kafka, 2) == [b"before", b"after"]
