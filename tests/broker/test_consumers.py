"""A consumer that is stopped while its fetch rests after an error, on the real broker."""

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.consumers import LOOK_AGAIN_MS, stop_consumer
from app.adapters.faust_app import running
from tests.helpers.broker import TopicFactory
from tests.helpers.faust import Seen, joined, our_app
from tests.helpers.kafka import until

pytestmark = pytest.mark.broker


def is_fetch(task: "asyncio.Task[Any]") -> bool:
    return not task.done() and task.get_coro().__name__ == "_proc_fetch_request"  # type: ignore[union-attr]


def rests(task: "asyncio.Task[Any]") -> bool:
    """Whether it is a fetch that is suspended in a sleep."""
    waits: Any = task.get_coro() if is_fetch(task) else None
    while waits is not None and getattr(waits, "__name__", "") != "sleep":
        waits = getattr(waits, "cr_await", None)
    return waits is not None


def fetching(task: "asyncio.Task[Any]") -> bool:
    return is_fetch(task) and not rests(task)


async def break_under_a_fetch(consumer: AIOKafkaConsumer) -> None:
    """Return when a fetch rests. One that is answered in the same moment does not: then the next is taken."""
    pending = consumer._fetcher._pending_tasks
    async with asyncio.timeout(60):
        while not any(map(rests, list(pending))):
            if any(map(fetching, list(pending))):
                for connection in list(consumer._client._conns.values()):
                    connection.close()
            await asyncio.sleep(0.001)


async def resting(broker: str, topic: str) -> AIOKafkaConsumer:
    """Its connections broke under a fetch, and it waits a minute before it asks again."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker, group_id=None, retry_backoff_ms=60_000, fetch_max_wait_ms=30_000
    )
    await consumer.start()
    part = TopicPartition(topic, 0)
    consumer.assign([part])
    consumer.seek(part, 0)
    try:
        await break_under_a_fetch(consumer)
    except BaseException:
        await stop_consumer(consumer)
        raise
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
            await break_under_a_fetch(thread._consumer)

        await thread.call_thread(break_off)
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


# ---- a look in the turn in which a request ends ----


def look_as_a_fetch_ends(consumer: AIOKafkaConsumer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every fetch ends just before the fetcher looks for another reason, as a seek is one; when each began."""
    fetcher, began = consumer._fetcher, list[float]()
    fetch = fetcher._proc_fetch_request

    async def ending(*args: Any) -> Any:
        began.append(time.monotonic())
        outcome = await fetch(*args)
        fetcher._notify(fetcher._wait_consume_future)
        await asyncio.sleep(0)  # so long it takes until the fetcher is woken
        return outcome

    monkeypatch.setattr(fetcher, "_proc_fetch_request", ending)
    return began


@pytest.mark.parametrize(("options", "oversleeps"), [({}, True), ({"consumer_timeout_ms": LOOK_AGAIN_MS}, False)])
async def test_fetcher_that_looks_as_a_fetch_ends_oversleeps_in_stock_only(
    broker: str, new_topic: TopicFactory, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], oversleeps: bool
) -> None:
    part = TopicPartition(new_topic(partitions=1), 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, group_id=None, fetch_max_wait_ms=10, **options)
    await consumer.start()
    try:
        consumer.assign([part])
        consumer.seek(part, 0)
        began = look_as_a_fetch_ends(consumer, monkeypatch)
        await until(lambda: len(began) >= 12, "some fetches")
        pauses = sorted(later - earlier for earlier, later in pairwise(began))
        assert (pauses[len(pauses) // 2] >= 0.2) is oversleeps
    finally:
        await stop_consumer(consumer)


async def test_every_app_has_a_fetcher_that_looks_again_soon(broker: str, new_topic: TopicFactory) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    app = our_app(broker)
    app.add_agent("any", topic, seen.batches)
    async with running(app):
        await joined(app, 1)
        assert app.consumer._thread._consumer._fetcher._fetcher_timeout == LOOK_AGAIN_MS / 1000
