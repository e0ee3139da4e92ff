"""Apps under test: ours on the batch-native transport, stock Faust beside it, and agents that note what they see."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.faust_app import App, new_app
from app.adapters.transport import TransportLimits
from tests.helpers.kafka import until

Body = Callable[[Any], Awaitable[None]]


def a_group() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


def our_app(bootstrap: str, group: str | None = None, *, limits: TransportLimits | None = None, **settings: Any) -> App:
    settings = {"session_timeout_ms": 3_000, "heartbeat_interval_ms": 100, "commit_interval_ms": 20, **settings}
    return new_app(group or a_group(), bootstrap, limits=limits, **settings)


def stock_app(bootstrap: str, group: str | None = None, **settings: Any) -> faust.App:
    """Faust as it comes, but for what only concerns its web server and folders."""
    options = {
        "value_serializer": "raw",
        "web_enabled": False,
        "topic_disable_leader": True,
        "store": "memory://",
        "autodiscover": False,
        "broker_heartbeat_interval": 0.1,
        "broker_session_timeout": 3.0,
        "consumer_auto_offset_reset": "earliest",
        "stream_wait_empty": False,  # or it waits without end for what is never acknowledged
        **settings,
    }
    app = faust.App(group or a_group(), broker=f"kafka://{bootstrap}", **options)
    app._create_directories = lambda: None
    return app


class Seen:
    """An agent's notes: every event it was given, and the offsets of the records in them, by partition."""

    def __init__(self, *, ack: bool = True) -> None:
        self.events: list[Any] = []
        self.offsets: list[tuple[int, int]] = []
        self.values: list[bytes | None] = []
        self.acking = asyncio.Event()
        if ack:
            self.acking.set()

    def note(self, event: Any) -> None:
        self.events.append(event)
        found = getattr(event.value, "records", None)
        for record in found if found is not None else [event.message]:
            self.offsets.append((record.partition, record.offset))
            self.values.append(record.value)

    async def batches(self, stream: Any) -> None:
        """The body of an agent that acknowledges what it saw, as soon as it may."""
        async for event in stream.noack().events():
            self.note(event)
            await self.acking.wait()
            event.ack()

    async def never(self, stream: Any) -> None:
        """The body of an agent that acknowledges nothing."""
        async for event in stream.noack().events():
            self.note(event)

    async def count(self, records: int) -> None:
        await until(lambda: len(self.offsets) >= records, f"{records} records, not {len(self.offsets)}")


@contextlib.asynccontextmanager
async def running_stock(app: faust.App) -> AsyncIterator[faust.App]:
    app.finalize()
    await app.start()
    # When a stop meets a rebalance, stock Faust closes the client from the wrong loop, marks it closed, and so leaves
    # its connections open for whichever test runs when they are collected. Our transport designs that out, too.
    app.consumer._thread.close = lambda: None
    try:
        yield app
    finally:
        await app.stop()


async def joined(app: App, partitions: int) -> None:
    await until(lambda: app.has_joined and len(app.consumer.assignment()) == partitions, f"{partitions} partitions")


async def committed(bootstrap: str, group: str, topic: str, partitions: Sequence[int] = (0,)) -> list[int | None]:
    """The group's offsets on the broker."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False) as consumer:
        return [await consumer.committed(TopicPartition(topic, number)) for number in partitions]


async def until_committed(bootstrap: str, group: str, topic: str, offset: int, partition: int = 0) -> None:
    """Wait until the broker has exactly this offset."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False) as consumer:
        async with asyncio.timeout(20):
            while (now := await consumer.committed(TopicPartition(topic, partition))) != offset:
                assert now is None or now < offset, f"committed {now}, past {offset}"
