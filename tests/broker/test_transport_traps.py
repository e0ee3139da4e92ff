"""Traps of stock Faust that the transport designs out: each is shown on `kafka://` first, then gone on `headrace://`."""

import asyncio
import time
from typing import Any

import faust.streams
import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError
from faust.streams import Stream as PlainStream
from mode.utils.queues import FlowControlEvent, FlowControlQueue

from app.adapters.faust_app import GentleFlowControl, running
from app.adapters.faust_stream import RangeStream
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.records import LightPartitionRecords
from app.adapters.transport import TransportLimits
from app.errors import HeadraceError
from tests.helpers.broker import TopicFactory
from tests.helpers.faust import (
    Seen,
    a_group,
    committed,
    joined,
    our_app,
    running_stock,
    stock_app,
    until_committed,
)
from tests.helpers.kafka import records, until, values_of

pytestmark = pytest.mark.broker


@pytest.fixture
def stock_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock Faust reads fields that our lighter record has not."""
    monkeypatch.setattr(fetcher, "PartitionRecords", LightPartitionRecords.__base__)


async def fill(bootstrap: str, topic: str, count: int, first: int = 0, partition: int = 0) -> None:
    async with BatchProducer(ProducerLimits(bootstrap)) as producer:
        values = [b"%d" % number for number in range(first, first + count)]
        await producer.publish(records(topic, values, partition))


# ---- the commit passes unacknowledged messages ----


def all_but_the_first(seen: Seen) -> Any:
    async def body(stream: Any) -> None:
        async for event in stream.noack().events():
            seen.note(event)
            if event.message.offset != 0:
                event.ack()

    return body


async def test_stock_commits_past_a_message_that_is_not_acknowledged(
    broker: str, new_topic: TopicFactory, stock_records: None
) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    await fill(broker, topic, 3)
    app = stock_app(broker)
    app.agent(app.topic(topic, value_type=bytes), concurrency=1)(all_but_the_first(seen))
    async with running_stock(app):
        await seen.count(3)
        await app.consumer.commit()
        assert await committed(broker, app.conf.id, topic) == [3]  # message 0 is lost when the process dies now


async def test_commit_never_passes_a_message_that_is_not_acknowledged(broker: str, new_topic: TopicFactory) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    await fill(broker, topic, 3)
    app = our_app(broker)
    app.add_agent("skipping", topic, all_but_the_first(seen), batched=False)
    async with running(app):
        await seen.count(3)
        await app.consumer.commit()
        assert await committed(broker, app.conf.id, topic) == [None]
        seen.events[0].ack()
        await until_committed(broker, app.conf.id, topic, 3)


# ---- a failed commit moves the books ----


async def refused(offsets: Any) -> bool:
    """What Faust's own thread answers when the group has moved on."""
    return False


async def test_stock_notes_an_offset_that_the_broker_refused(
    broker: str, new_topic: TopicFactory, stock_records: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    await fill(broker, topic, 3)
    app = stock_app(broker, broker_commit_interval=60)
    app.agent(app.topic(topic, value_type=bytes), concurrency=1)(seen.batches)
    async with running_stock(app):
        await seen.count(3)
        with monkeypatch.context() as patch:
            patch.setattr(app.consumer, "_commit", refused)
            await app.consumer.commit()
        await app.consumer.commit()
        assert await committed(broker, app.conf.id, topic) == [None]  # believed to be committed: never tried again


@pytest.mark.parametrize("error", [None, KafkaError("the coordinator is away")])
async def test_commit_that_fails_is_tried_again(
    broker: str, new_topic: TopicFactory, monkeypatch: pytest.MonkeyPatch, error: KafkaError | None
) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    await fill(broker, topic, 3)
    app = our_app(broker, commit_interval_ms=60_000)
    app.add_agent("counting", topic, seen.batches)

    async def failing(offsets: Any) -> bool:
        if error is not None:
            raise error
        return False

    async with running(app):
        await seen.count(3)
        with monkeypatch.context() as patch:
            patch.setattr(app.consumer, "_commit", failing)
            assert not await app.consumer.commit()
        assert await app.consumer.commit()
        assert await committed(broker, app.conf.id, topic) == [3]


# ---- revoked partitions are forgotten before they are committed ----


async def test_stock_gives_partitions_up_before_it_commits_them(
    broker: str, new_topic: TopicFactory, stock_records: None
) -> None:
    topic, group = new_topic(partitions=2), a_group()
    await asyncio.gather(*(fill(broker, topic, 5, partition=number) for number in (0, 1)))
    first, second = Seen(), Seen()
    app = stock_app(broker, group, broker_commit_interval=60, stream_wait_empty=True)
    app.agent(app.topic(topic, value_type=bytes), concurrency=1)(first.batches)
    other = stock_app(broker, group, broker_commit_interval=60, stream_wait_empty=True)
    other.agent(other.topic(topic, value_type=bytes), concurrency=1)(second.batches)
    async with running_stock(app):
        await first.count(10)
        async with running_stock(other):
            await until(lambda: len(first.offsets) + len(second.offsets) >= 20, "all of it once more")


async def test_partitions_are_committed_before_they_are_given_up(broker: str, new_topic: TopicFactory) -> None:
    topic, group = new_topic(partitions=2), a_group()
    await asyncio.gather(*(fill(broker, topic, 5, partition=number) for number in (0, 1)))
    first, second = Seen(), Seen()
    app, other = (our_app(broker, group, commit_interval_ms=60_000) for _ in range(2))
    app.add_agent("first", topic, first.batches)
    other.add_agent("second", topic, second.batches)
    async with running(app):
        await first.count(10)
        async with running(other):
            await joined(app, 1)
            await joined(other, 1)
            await asyncio.gather(*(fill(broker, topic, 1, 5, partition=number) for number in (0, 1)))
            await until(lambda: len(first.offsets) + len(second.offsets) >= 12, "the new records")
            assert sorted(first.offsets + second.offsets) == [(p, o) for p in (0, 1) for o in range(6)]


# ---- an exception acknowledges ----


class Broken(Exception):
    """A bug in an agent."""


def failing_at(offset: int, seen: Seen) -> Any:
    async def body(stream: Any) -> None:
        async for event in stream.events():
            seen.note(event)
            if event.message.offset == offset:
                raise Broken
            event.ack()

    return body


async def test_stock_acknowledges_what_an_agent_failed_on(
    broker: str, new_topic: TopicFactory, stock_records: None
) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    await fill(broker, topic, 3)
    app = stock_app(broker)
    app.agent(app.topic(topic, value_type=bytes), concurrency=1)(failing_at(1, seen))
    async with running_stock(app):
        await seen.count(3)
        await until(lambda: not app.consumer.unacked, "everything is acknowledged")
        await app.consumer.commit()
        assert await committed(broker, app.conf.id, topic) == [3]  # message 1 was never processed


@pytest.mark.parametrize("batched", [True, False])
async def test_agent_that_fails_crashes_the_app_and_gets_its_records_again(
    broker: str, new_topic: TopicFactory, batched: bool
) -> None:
    topic, group, seen = new_topic(partitions=1), a_group(), Seen()
    await fill(broker, topic, 3)
    app = our_app(broker, group)
    app.add_agent("failing", topic, failing_at(2 if batched else 1, seen), batched=batched)
    with pytest.raises(Broken):
        async with running(app):
            await until(lambda: app.crash_reason is not None, "the crash")
    again = Seen()
    app = our_app(broker, group)
    app.add_agent("failing", topic, again.batches, batched=batched)
    async with running(app):
        await until(lambda: (0, 2) in again.offsets, "the rest")
    # What was acknowledged before the crash may or may not have been committed.
    assert again.offsets in ([(0, 0), (0, 1), (0, 2)], [] if batched else [(0, 1), (0, 2)])


# ---- a paused partition waits for another one's fetch ----


async def time_to_read_after_a_pause(bootstrap: str, topic: str, fetch_max_wait_ms: int) -> float:
    """Seconds from an acknowledgement to the next record, while a fetch for an idle partition is under way."""
    seen = Seen(ack=False)
    limits = TransportLimits(fetch_max_wait_ms=fetch_max_wait_ms, outstanding_batches=1)
    app = our_app(bootstrap, limits=limits)
    app.add_agent("holding", topic, seen.batches)
    async with running(app), BatchProducer(ProducerLimits(bootstrap)) as producer:
        await joined(app, 2)
        await producer.publish(records(topic, [b"held"]))
        await seen.count(1)
        await producer.publish(records(topic, [b"fetched, not asked for"]))
        kafka_fetcher = app.consumer._thread._consumer._fetcher
        await until(lambda: kafka_fetcher._records, "it is fetched")
        # Until aiokafka has given up waiting for it and begins a fetch for the other partition alone.
        kafka_fetcher._noted_requests = []
        await until(lambda: _asked_alone(kafka_fetcher), "a fetch for the idle partition")
        await producer.publish(records(topic, [b"waits"]))
        began = time.perf_counter()
        seen.acking.set()
        await seen.count(3)
        return time.perf_counter() - began


def _asked_alone(kafka_fetcher: Any) -> bool:
    return any(len(partitions) == 1 for _, request in _requests(kafka_fetcher) for _, partitions in request.topics)


def _requests(kafka_fetcher: Any) -> list[Any]:
    return getattr(kafka_fetcher, "_noted_requests", [])


@pytest.fixture
def noted_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fetcher notes the last requests it made."""
    made = fetcher.Fetcher._get_actions_per_node

    def noting(self: Any, assignment: Any) -> Any:
        answer = made(self, assignment)
        self._noted_requests = list(answer[0])
        return answer

    monkeypatch.setattr(fetcher.Fetcher, "_get_actions_per_node", noting)


async def test_paused_partition_goes_on_at_once_and_not_after_the_wait_of_stock(
    broker: str, new_topic: TopicFactory, noted_requests: None
) -> None:
    stock_s = await time_to_read_after_a_pause(broker, new_topic(partitions=2), 1_500)
    ours_s = await time_to_read_after_a_pause(broker, new_topic(partitions=2), TransportLimits().fetch_max_wait_ms)
    assert stock_s > ours_s + 0.5


# ---- seconds of sleep around a rebalance ----


async def test_first_record_comes_without_the_sleeps_of_stock(
    broker: str, new_topic: TopicFactory, stock_records: None
) -> None:
    topic, stock_seen, seen = new_topic(partitions=1), Seen(), Seen()
    await fill(broker, topic, 1)
    stock = stock_app(broker)
    stock.agent(stock.topic(topic, value_type=bytes), concurrency=1)(stock_seen.batches)
    began = time.perf_counter()
    async with running_stock(stock):
        await stock_seen.count(1)
        stock_s = time.perf_counter() - began
    app = our_app(broker)
    app.add_agent("counting", topic, seen.batches, batched=False)
    began = time.perf_counter()
    async with running(app):
        await seen.count(1)
        ours_s = time.perf_counter() - began
    assert stock_s > ours_s + 0.4


# ---- resume empties queues ----


@pytest.mark.parametrize(("flow_control", "left"), [(FlowControlEvent, 0), (GentleFlowControl, 1)])
async def test_resume_empties_queues_that_were_never_stopped_in_stock_only(flow_control: Any, left: int) -> None:
    flow = flow_control()
    flow.resume()
    queue = FlowControlQueue(flow_control=flow, clear_on_resume=True)
    await queue.put("a record")
    flow.resume()
    assert queue.qsize() == left


async def test_queues_are_emptied_after_the_flow_was_stopped() -> None:
    flow = GentleFlowControl()
    flow.resume()
    queue = FlowControlQueue(flow_control=flow, clear_on_resume=True)
    await queue.put("a record of before the rebalance")
    flow.suspend()
    flow.resume()
    assert queue.qsize() == 0


async def test_records_in_the_queue_of_an_agent_outlive_a_resume(broker: str, new_topic: TopicFactory) -> None:
    topic, seen = new_topic(partitions=1), Seen(ack=False)
    await fill(broker, topic, 50)
    app = our_app(broker)
    app.add_agent("slow", topic, seen.batches, batched=False)
    async with running(app):
        await seen.count(1)
        await until(lambda: sum(app.lags().values()) == 50 and len(seen.events) == 1, "the others wait in the queue")
        app.flow_control.resume()
        seen.acking.set()
        await seen.count(50)


# ---- what is skipped because the flow was stopped is acknowledged ----


@pytest.mark.parametrize(("stream", "acknowledged_to"), [(PlainStream, 10), (RangeStream, 1)])
async def test_event_that_a_stop_overtakes_is_acknowledged_in_stock_only(
    broker: str, new_topic: TopicFactory, monkeypatch: pytest.MonkeyPatch, stream: Any, acknowledged_to: int
) -> None:
    monkeypatch.setattr(faust.streams, "_CStreamIterator", None)  # the compiled one passes our books by altogether
    topic, going_on, values = new_topic(partitions=1), asyncio.Event(), []
    await fill(broker, topic, 10)
    app = our_app(broker, Stream=stream)

    async def body(stream: Any) -> None:
        async for value in stream:
            values.append(value)
            await going_on.wait()

    app.add_agent("slow", topic, body, batched=False)
    async with running(app):
        queues = app.flow_control._queues
        await until(lambda: values and sum(queue.qsize() for queue in queues) == 9, "one is begun, nine wait")
        app.flow_control.suspend()
        going_on.set()
        (book,) = app.consumer._books.values()
        await until(lambda: book.committable == acknowledged_to, "what is acknowledged")
        assert values == [b"0"]
        app.flow_control.resume()


# ---- flush gives up, failures are only logged ----


async def send_soon(app: Any, topic: str, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, Any]:
    """One record queued by `send_soon`, taken off the queue and held on its way to the client."""
    going_on, begun = asyncio.Event(), asyncio.Event()
    send = app.producer.send

    async def held(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        await going_on.wait()
        return await send(*args, **kwargs)

    monkeypatch.setattr(app.producer, "send", held)
    app.topic(topic, value_type=bytes).send_soon(value=b"changelog")
    await asyncio.wait_for(begun.wait(), 10)
    return going_on, asyncio.create_task(app.producer.flush())


async def test_stock_flush_returns_before_everything_is_sent(
    broker: str, new_topic: TopicFactory, stock_records: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, output, seen = new_topic(partitions=1), new_topic(partitions=1), Seen()
    app = stock_app(broker)
    app.agent(app.topic(topic, value_type=bytes), concurrency=1)(seen.batches)
    async with running_stock(app):
        going_on, flushing = await send_soon(app, output, monkeypatch)
        await asyncio.wait_for(flushing, 10)
        assert await values_of(broker, output) == []
        going_on.set()


async def test_flush_returns_when_everything_is_sent(
    broker: str, new_topic: TopicFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, output, seen = new_topic(partitions=1), new_topic(partitions=1), Seen()
    app = our_app(broker)
    app.add_agent("idle", topic, seen.batches)
    async with running(app):
        await joined(app, 1)
        going_on, flushing = await send_soon(app, output, monkeypatch)
        done, _ = await asyncio.wait([flushing], timeout=0.5)
        assert not done
        going_on.set()
        await asyncio.wait_for(flushing, 10)
        assert await values_of(broker, output) == [b"changelog"]


def forwarding_too_much(app: Any, output: str, seen: Seen) -> Any:
    target = app.topic(output, value_type=bytes)

    async def body(stream: Any) -> None:
        async for event in stream.events():
            await target.send(value=b"x" * 20_000)
            seen.note(event)

    return body


async def test_stock_commits_what_it_could_not_send(broker: str, new_topic: TopicFactory, stock_records: None) -> None:
    topic, output, seen = new_topic(partitions=1), new_topic(partitions=1, max_message_bytes="5000"), Seen()
    await fill(broker, topic, 1)
    app = stock_app(broker)
    app.agent(app.topic(topic, value_type=bytes), concurrency=1)(forwarding_too_much(app, output, seen))
    async with running_stock(app):
        await seen.count(1)
        await until(lambda: not app.consumer.unacked, "it is acknowledged")
        await app.consumer.commit()
        assert app.crash_reason is None
        assert await committed(broker, app.conf.id, topic) == [1]
    assert await values_of(broker, output) == []


async def test_record_that_cannot_be_sent_crashes_the_app_and_nothing_is_committed(
    broker: str, new_topic: TopicFactory
) -> None:
    topic, output, seen = new_topic(partitions=1), new_topic(partitions=1, max_message_bytes="5000"), Seen()
    await fill(broker, topic, 1)
    app = our_app(broker, commit_interval_ms=60_000)
    app.add_agent("forwarding", topic, forwarding_too_much(app, output, seen), batched=False)
    with pytest.raises((KafkaError, HeadraceError)):
        async with running(app):
            await until(lambda: app.crash_reason is not None, "the crash")
    assert await committed(broker, app.conf.id, topic) == [None]


# ---- idle members are expelled, the shell overrules settings ----


async def test_idle_member_may_stay_for_a_day(broker: str, new_topic: TopicFactory) -> None:
    topic, group = new_topic(partitions=1), a_group()
    apps = [our_app(broker, group) for _ in range(2)]
    for app in apps:
        app.add_agent("idle", topic, Seen().batches)
    async with running(apps[0]), running(apps[1]):
        await until(lambda: sorted(len(app.consumer.assignment()) for app in apps) == [0, 1], "one has nothing to do")
        for app in apps:
            coordinator = app.consumer._thread._consumer._coordinator
            assert coordinator._max_poll_interval == 86_400.0


async def test_environment_does_not_overrule_settings(
    broker: str, new_topic: TopicFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", "kafka://elsewhere:1")
    monkeypatch.setenv("BROKER_SESSION_TIMEOUT", "77")
    assert str(stock_app(broker).conf.broker[0]) == "kafka://elsewhere:1"
    ours = our_app(broker).conf
    assert (str(ours.broker[0]), ours.broker_session_timeout) == (f"headrace://{broker}", 3.0)
