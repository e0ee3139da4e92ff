"""A consumer that is stopped while its fetch rests after an error, on the real broker."""

import asyncio
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.consumers import stop_consumer
from app.adapters.faust_app import running
from tests.helpers.broker import TopicFactory
from tests.helpers.faust import Seen, joined, our_app
from tests.helpers.kafka import until

pytestmark = pytest.mark.broker


def rests(task: "asyncio.Task[Any]") -> bool:
    """Whether it is suspended in a sleep."""
    waits: Any = task.get_coro()
    while waits is not None and getattr(waits, "__name__", "") != "sleep":
        waits = getattr(waits, "cr_await", None)
    return waits is not None


def fetching(task: "asyncio.Task[Any]") -> bool:
    return not task.done() and task.get_coro().__name__ == "_proc_fetch_request" and not rests(task)  # type: ignore[union-attr]


async def resting(broker: str, topic: str) -> AIOKafkaConsumer:
    """Its connections broke under a fetch, and it waits a minute before it asks again."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker, group_id=None, retry_backoff_ms=60_000, fetch_max_wait_ms=30_000
    )
    await consumer.start()
    part = TopicPartition(topic, 0)
    consumer.assign([part])
    consumer.seek(part, 0)
    async with asyncio.timeout(20):
        while not (fetches := [task for task in consumer._fetcher._pending_tasks if fetching(task)]):
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


async def test_an_app_ends_although_its_fetch_rests(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic()
    app = our_app(broker)
    app.add_agent("counting", topic, Seen().batches)
    async with running(app):
        await joined(app, 4)
        thread = app.consumer._thread

        async def break_off() -> None:
            thread._consumer._fetcher._retry_backoff = 60
            for connection in list(thread._consumer._client._conns.values()):
                connection.close()

        pending = thread._consumer._fetcher._pending_tasks
        await until(lambda: any(map(fetching, list(pending))), "it fetches")
        await thread.call_thread(break_off)
        await until(lambda: any(map(rests, list(pending))), "a fetch rests")
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 20, "mode gives a thread that does not say that it has ended a minute"


async def test_a_stop_that_is_itself_cancelled_is(broker: str, new_topic: TopicFactory) -> None:
    consumer = await resting(broker, new_topic())
    stopping = asyncio.create_task(stop_consumer(consumer))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await consumer._client.close()
