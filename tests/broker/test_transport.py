"""Laws of the batch-native transport on a real broker: what is delivered, bounded, committed and followed."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from app.adapters import topics_admin
from app.adapters.embedded import EmbeddedKafka
from app.adapters.faust_app import running
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.transport import TransportLimits
from app.ports import OutRecord
from tests.helpers.broker import TopicFactory
from tests.helpers.faust import Seen, a_group, committed, joined, our_app, until_committed
from tests.helpers.kafka import T0_MS, own_kafka, read_topic, records, until

pytestmark = pytest.mark.broker


async def fill(bootstrap: str, topic: str, count: int, first: int = 0, partition: int = 0) -> None:
    async with BatchProducer(ProducerLimits(bootstrap)) as producer:
        values = [b"%d" % number for number in range(first, first + count)]
        await producer.publish(records(topic, values, partition))


# ---- what is delivered ----


async def test_event_is_a_batch_of_one_partition_in_the_order_of_its_offsets(
    broker: str, new_topic: TopicFactory
) -> None:
    topic, seen = new_topic(partitions=3), Seen()
    for partition in range(3):
        await fill(broker, topic, 2_000, partition=partition)
    app = our_app(broker, limits=TransportLimits(batch_records=500))
    app.add_agent("counting", topic, seen.batches)
    async with running(app):
        await seen.count(6_000)
    for partition in range(3):
        assert [offset for where, offset in seen.offsets if where == partition] == list(range(2_000))
    for event in seen.events:
        batch = event.value
        assert (batch.topic, {record.partition for record in batch.records}) == (topic, {batch.partition})
        assert (batch.first_offset, batch.last_offset) == (batch.records[0].offset, batch.records[-1].offset)
        assert len(batch) == len(batch.records) <= 500
        assert batch.highwater == 2_000
        assert event.message.offset == batch.last_offset
    assert len(seen.events) < 100


async def test_topics_of_single_messages_work_beside_batched_ones(broker: str, new_topic: TopicFactory) -> None:
    batched, single = new_topic(partitions=2), new_topic(partitions=2)
    batches, messages = Seen(), Seen()
    for topic in (batched, single):
        for partition in range(2):
            await fill(broker, topic, 300, partition=partition)
    app = our_app(broker)
    app.add_agent("batches", batched, batches.batches)
    app.add_agent("messages", single, messages.batches, batched=False)
    async with running(app):
        await batches.count(600)
        await messages.count(600)
        for topic in (batched, single):
            await until_committed(broker, app.conf.id, topic, 300, 0)
            await until_committed(broker, app.conf.id, topic, 300, 1)
    assert len(messages.events) == 600
    assert all(isinstance(event.value, bytes) for event in messages.events)


async def test_agent_that_leaves_acknowledging_to_faust_commits_too(broker: str, new_topic: TopicFactory) -> None:
    batched, single = new_topic(partitions=1), new_topic(partitions=1)
    values: list[Any] = []

    async def body(stream: Any) -> None:
        async for value in stream:
            values.extend([value] if isinstance(value, bytes) else value.records)

    for topic in (batched, single):
        await fill(broker, topic, 10)
    app = our_app(broker)
    app.add_agent("batches", batched, body)
    app.add_agent("messages", single, body, batched=False)
    async with running(app):
        await until_committed(broker, app.conf.id, batched, 10)
        await until_committed(broker, app.conf.id, single, 10)
    assert len(values) == 20


async def test_range_of_two_agents_counts_when_both_are_done(broker: str, new_topic: TopicFactory) -> None:
    topic, quick, slow = new_topic(partitions=1), Seen(), Seen(ack=False)
    await fill(broker, topic, 10)
    app = our_app(broker)
    app.add_agent("quick", topic, quick.batches)
    app.add_agent("slow", topic, slow.batches)
    async with running(app):
        await quick.count(10)
        await slow.count(10)
        await app.consumer.commit()
        assert await committed(broker, app.conf.id, topic) == [None]
        slow.acking.set()
        await until_committed(broker, app.conf.id, topic, 10)


@pytest.mark.parametrize("batched", [True, False])
async def test_tombstones_headers_keys_and_times_arrive(broker: str, new_topic: TopicFactory, batched: bool) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    sent = [
        OutRecord(topic, b"k", b"v", T0_MS, (("a", b"1"), ("a", b"\x00")), 0),
        OutRecord(topic, b"k", None, T0_MS + 1, (), 0),
        OutRecord(topic, None, b"", T0_MS + 2, (("b", b""),), 0),
    ]
    async with BatchProducer(ProducerLimits(broker)) as producer:
        await producer.publish(sent)
    app = our_app(broker)
    app.add_agent("counting", topic, seen.batches, batched=batched)
    async with running(app):
        await seen.count(3)
        await until_committed(broker, app.conf.id, topic, 3)
    if batched:
        found = [record for event in seen.events for record in event.value.records]
        assert [(r.key, r.value, r.timestamp, tuple(r.headers)) for r in found] == [
            (r.key, r.value, r.timestamp_ms, r.headers) for r in sent
        ]
    else:
        found = [event.message for event in seen.events]
        assert [(m.key, m.value, m.timestamp) for m in found] == [(r.key, r.value, r.timestamp_ms / 1000) for r in sent]


async def test_compacted_topic_with_gaps_is_read_to_its_end(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1, cleanup_policy="compact", segment_bytes="1048576", min_cleanable_dirty_ratio="0.01")
    filler = b"x" * 10_000
    async with BatchProducer(ProducerLimits(broker)) as producer:
        run = [OutRecord(topic, b"%d" % (number % 7), filler, T0_MS, (), 0) for number in range(500)]
        await producer.publish(run)
    await _compacted(broker, topic, 500)
    seen = Seen()
    app = our_app(broker)
    app.add_agent("counting", topic, seen.batches)
    async with running(app):
        await until_committed(broker, app.conf.id, topic, 500)
        assert sum(app.lags().values()) == 0
    offsets = [offset for _, offset in seen.offsets]
    assert offsets == sorted(offsets)
    assert len(offsets) < 500


async def _compacted(bootstrap: str, topic: str, written: int) -> None:
    """Wait until the broker's cleaner has been at work; it looks every 15 s."""
    async with asyncio.timeout(60):
        while len((await read_topic(bootstrap, topic))[0]) == written:
            continue


async def test_transaction_markers_are_holes_that_belong_to_the_range_before_the_next(
    broker: str, new_topic: TopicFactory
) -> None:
    topic, group = new_topic(partitions=1), a_group()
    producer = AIOKafkaProducer(bootstrap_servers=broker, transactional_id=group)
    async with producer:
        for number in range(3):
            async with producer.transaction():
                await producer.send(topic, b"%d" % number, partition=0)
    # Offsets: 0, marker, 2, marker, 4, marker.
    seen = Seen()
    app = our_app(broker, group)
    app.add_agent("counting", topic, seen.batches)
    async with running(app):
        await seen.count(3)
        await until_committed(broker, group, topic, 5)
        assert [offset for _, offset in seen.offsets] == [0, 2, 4]
        await fill(broker, topic, 1, first=3)
        await seen.count(4)
        await until_committed(broker, group, topic, 7)
    again = Seen()
    app = our_app(broker, group)
    app.add_agent("counting", topic, again.batches)
    async with running(app):
        await fill(broker, topic, 1, first=4)
        await again.count(1)
    assert again.values == [b"4"]


async def test_empty_topic_waits_and_goes_on_with_its_first_record(broker: str, new_topic: TopicFactory) -> None:
    topic, seen = new_topic(partitions=2), Seen()
    app = our_app(broker)
    app.add_agent("counting", topic, seen.batches)
    async with running(app):
        await joined(app, 2)
        assert await committed(broker, app.conf.id, topic, (0, 1)) == [None, None]
        began = time.perf_counter()
        await fill(broker, topic, 1, partition=1)
        await seen.count(1)
        assert time.perf_counter() - began < 1
        assert seen.offsets == [(1, 0)]


# ---- what is bounded ----


@pytest.mark.parametrize("batched", [True, False])
async def test_slow_agent_is_never_given_more_than_the_limits_and_misses_nothing(
    broker: str, new_topic: TopicFactory, batched: bool
) -> None:
    topic, seen = new_topic(partitions=2), Seen(ack=False)
    for partition in range(2):
        await fill(broker, topic, 3_000, partition=partition)
    limits = TransportLimits(batch_records=100, outstanding_records=500, outstanding_batches=4 if batched else 10_000)
    app = our_app(broker, limits=limits)
    app.add_agent("slow", topic, seen.batches, batched=batched)
    highest = {0: 0, 1: 0}

    def note() -> bool:
        for tp, book in app.consumer._books.items():
            highest[tp.partition] = max(highest[tp.partition], book.outstanding_records)
        return len(seen.offsets) == 6_000

    async with running(app):
        bound = 4 * 100 if batched else 500 + 100
        await until(lambda: note() or min(highest.values()) >= bound - 100, "the limit is reached")
        seen.acking.set()
        await until(note, "everything is seen")
        await until_committed(broker, app.conf.id, topic, 3_000)
    assert max(highest.values()) <= bound
    for partition in range(2):
        assert [offset for where, offset in seen.offsets if where == partition] == list(range(3_000))


async def test_partition_that_is_held_does_not_hold_another(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=2)
    seen = Seen()
    held: list[Any] = []

    async def body(stream: Any) -> None:
        async for event in stream.noack().events():
            seen.note(event)
            if event.value.partition == 0:
                held.append(event)
            else:
                event.ack()

    app = our_app(broker, limits=TransportLimits(outstanding_batches=2))
    app.add_agent("holding", topic, body)
    async with running(app):
        for number in range(10):
            await fill(broker, topic, 1, number, 0)
            await fill(broker, topic, 1, number, 1)
        await until_committed(broker, app.conf.id, topic, 10, 1)
        assert len(held) == 2
        for event in held:
            event.ack()


async def test_lag_is_what_is_not_acknowledged(broker: str, new_topic: TopicFactory) -> None:
    topic, seen = new_topic(partitions=2), Seen(ack=False)
    await fill(broker, topic, 70)
    app = our_app(broker)
    app.add_agent("slow", topic, seen.batches)
    assert app.lags() == {}
    async with running(app):
        await seen.count(70)
        assert {tp.partition: lag for tp, lag in app.lags().items()} in ({0: 70}, {0: 70, 1: 0})
        seen.acking.set()
        await until(lambda: sum(app.lags().values()) == 0, "no lag")
        seen.acking.clear()
        await fill(broker, topic, 5, 70)
        await until(lambda: sum(app.lags().values()) == 5, "the lag of five")
        seen.acking.set()


async def test_member_id_is_known_once_the_member_has_joined(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    app = our_app(broker)
    app.add_agent("idle", topic, Seen().batches)
    assert not app.has_joined
    async with running(app):
        await joined(app, 1)
        assert app.consumer.member_id.startswith(app.conf.id)


@pytest.mark.parametrize("ack", [True, False])
async def test_stop_takes_less_than_a_second_and_commits_what_is_done(
    broker: str, new_topic: TopicFactory, ack: bool
) -> None:
    topic, seen = new_topic(partitions=1), Seen()
    await fill(broker, topic, 100)
    app = our_app(broker, limits=TransportLimits(drain_s=0.5), commit_interval_ms=60_000)
    app.add_agent("stopping", topic, seen.batches if ack else seen.never)
    async with running(app):
        await seen.count(100)
        began = time.perf_counter()
    assert time.perf_counter() - began < 1.5  # half of it is the time-out of the agent that never acknowledges
    assert await committed(broker, app.conf.id, topic) == [100 if ack else None]


async def test_stop_of_a_stage_ends_with_what_it_hands_back_and_commits_that(
    broker: str, new_topic: TopicFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A backlog that was delivered is not worked off first: what is begun is finished, the rest comes again."""
    topic, seen, asked = new_topic(partitions=1), Seen(), list[set[Any]]()
    await fill(broker, topic, 100)
    limits = TransportLimits(drain_s=120.0, batch_records=50)
    app = our_app(broker, limits=limits, commit_interval_ms=60_000)

    async def hand_back(revoked: set[Any]) -> None:
        asked.append(revoked)
        if app.should_stop:
            seen.events[0].ack()

    app.hand_back = hand_back
    app.add_agent("stage", topic, seen.never)
    async with running(app):
        await seen.count(100)
    assert {(tp.topic, tp.partition) for tp in asked[-1]} == {(topic, 0)}
    assert "did not finish" not in caplog.text
    assert await committed(broker, app.conf.id, topic) == [seen.events[0].value.records[-1].offset + 1]


# ---- what is followed ----


async def test_deleted_topic_leaves_the_others_alone(broker: str, new_topic: TopicFactory) -> None:
    gone, kept = TopicFactory(broker)(partitions=1), new_topic(partitions=1)
    seen_gone, seen = Seen(), Seen()
    await fill(broker, gone, 10)
    app = our_app(broker, consumer_metadata_max_age_ms=200)
    app.add_agent("gone", gone, seen_gone.batches)
    app.add_agent("kept", kept, seen.batches)
    async with running(app):
        await seen_gone.count(10)
        await topics_admin.delete_topics(broker, [gone])
        await fill(broker, kept, 10)
        await seen.count(10)
        await until_committed(broker, app.conf.id, kept, 10)
        assert app.crash_reason is None


async def test_topic_made_anew_is_read_from_its_beginning(broker: str, new_topic: TopicFactory) -> None:
    """The offset of the group lies behind the end of the new log."""
    topic, group = new_topic(partitions=1), a_group()
    await fill(broker, topic, 50)
    first = Seen()
    app = our_app(broker, group)
    app.add_agent("first", topic, first.batches)
    async with running(app):
        await until_committed(broker, group, topic, 50)
    await topics_admin.delete_topics(broker, [topic])
    TopicFactory(broker)(partitions=1, name=topic)
    # The broker forgets a deleted topic's offsets; put them back as a broker would have them after losing its log.
    await _commit(broker, group, topic, 50)
    await fill(broker, topic, 10, first=100)
    second = Seen()
    app = our_app(broker, group)
    app.add_agent("second", topic, second.batches)
    async with running(app):
        await second.count(10)
        await until(lambda: sum(app.lags().values()) == 0, "no lag")
        await app.consumer.commit()
        assert await committed(broker, group, topic) == [10]
    assert second.values == [b"%d" % number for number in range(100, 110)]


async def _commit(bootstrap: str, group: str, topic: str, offset: int) -> None:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.commit({TopicPartition(topic, 0): offset})


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    with own_kafka(tmp_path) as own:
        yield own


async def test_broker_that_restarts_in_the_middle_costs_repeats_at_most(kafka: EmbeddedKafka) -> None:
    topic, seen = TopicFactory(kafka.bootstrap)(partitions=2), Seen()
    app = our_app(kafka.bootstrap)
    app.add_agent("counting", topic, seen.batches)
    async with running(app), BatchProducer(ProducerLimits(kafka.bootstrap)) as producer:
        await joined(app, 2)
        await producer.publish(records(topic, [b"%d" % number for number in range(100)], 0))
        await seen.count(100)
        kafka.kill(1)
        publishing = asyncio.create_task(producer.publish(records(topic, [b"%d" % n for n in range(100, 200)], 0)))
        await kafka.start_node(1)
        await publishing
        await until(lambda: (0, 199) in seen.offsets, "the records after the restart")
        await until_committed(kafka.bootstrap, app.conf.id, topic, 200)
        assert app.crash_reason is None
    offsets = [offset for _, offset in seen.offsets]
    assert sorted(set(offsets)) == list(range(200))
