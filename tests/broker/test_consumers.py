"""A consumer that is stopped while its fetch rests after an error, on the real broker."""

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.consumers import stop_consumer
from tests.helpers.broker import TopicFactory

pytestmark = pytest.mark.broker


def rests(task: "asyncio.Task[Any]") -> bool:
    """Whether it is suspended in a sleep."""
    waits: Any = task.get_coro()
    while waits is not None and getattr(waits, "__name__", "") != "sleep":
        waits = getattr(waits, "cr_await", None)
    return waits is not None


async def resting(broker: str, topic: str) -> AIOKafkaConsumer:
    """Its connections broke under a fetch, and it waits a minute before it asks again."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker, group_id=None, retry_backoff_ms=60_000, fetch_max_wait_ms=30_000
    )
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.seek_to_beginning()
    async with asyncio.timeout(20):
        while not (fetches := [task for task in consumer._fetcher._pending_tasks if not task.done()]):
            await consumer.getmany(timeout_ms=10)
        for connection in list(consumer._client._conns.values()):
            connection.close()
        while not all(map(rests, fetches)):  # noqa: ASYNC110 - a condition on tasks of the client
            await asyncio.sleep(0)
    return consumer


async def test_what_a_stop_cancels_is_not_who_stops(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic()
    stock = await resting(broker, topic)
    with pytest.raises(asyncio.CancelledError):
        await stock.stop()  # the trap: nobody has cancelled this test
    await stock._client.close()
    ours = await resting(broker, topic)
    fetches = list(ours._fetcher._pending_tasks)
    await stop_consumer(ours)
    assert all(task.done() for task in fetches)
    assert not [each for each in ours._client._conns.values() if each.connected()]


async def test_a_stop_that_is_itself_cancelled_is(broker: str, new_topic: TopicFactory) -> None:
    consumer = await resting(broker, new_topic())
    stopping = asyncio.create_task(stop_consumer(consumer))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await consumer._client.close()
