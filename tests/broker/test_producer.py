"""Laws of the batched producer on a real broker: order, bounds, refusals, and nothing lost without a count."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.errors import OutOfOrderSequenceNumber

from app import metrics
from app.adapters import topics_admin
from app.adapters.embedded import EmbeddedKafka
from app.adapters.producer import BatchProducer, ProducerLimits
from app.errors import BrokerUnavailable, PublishFailed
from app.ports import OutRecord
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import T0_MS, frozen, own_kafka, read_topic, records, until, values_of

pytestmark = pytest.mark.broker


class Books:
    """What the delivered callback said."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.failed: Counter[str] = Counter()

    def __call__(self, topic: str, count: int, reason: str | None) -> None:
        if reason is None:
            self.acknowledged += count
        else:
            self.failed[reason] += count


def a_producer(bootstrap: str, books: Books | None = None, **limits: Any) -> BatchProducer:
    return BatchProducer(ProducerLimits(bootstrap, **limits), books)


def numbered(count: int, name: str = "") -> list[bytes]:
    return [b"%s%06d" % (name.encode(), number) for number in range(count)]


def errors(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("kafka_send_errors_total", {"reason": reason}) or 0.0


# ---- order and content ----


async def test_concurrent_publishers_keep_their_order_in_every_partition(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=3)
    async with a_producer(broker, batch_records=7) as producer:

        async def publisher(name: str) -> None:
            for first in range(0, 300, 30):
                run = [
                    OutRecord(topic, None, b"%s%06d" % (name.encode(), number), T0_MS, (), number % 3)
                    for number in range(first, first + 30)
                ]
                await producer.publish(run)

        await asyncio.gather(*(publisher(name) for name in "abcd"))
    found = await read_topic(broker, topic)
    for partition in range(3):
        values = [record.value for record in found[partition]]
        for name in b"abcd":
            mine = [value for value in values if value[0] == name]
            assert mine == sorted(mine)
            assert len(mine) == 100


async def test_records_queued_one_by_one_arrive_in_order_with_all_they_had(
    broker: str, new_topic: TopicFactory
) -> None:
    topic = new_topic(partitions=2)
    async with a_producer(broker, batch_records=100, flush_interval_ms=1) as producer:
        await producer.partitions(topic)
        for number, value in enumerate(numbered(1_000)):
            headers = (("number", value), ("odd", b"")) if number % 2 else ()
            assert producer.send_nowait(topic, b"k", None if number == 500 else value, T0_MS + number, 1, headers)
        await producer.flush()
        assert producer.buffered_records == 0
        assert producer.last_offset(topic, 1) == 999
    found = (await read_topic(broker, topic))[1]
    assert [record.timestamp - T0_MS for record in found] == list(range(1_000))
    assert (found[500].key, found[500].value) == (b"k", None)
    assert tuple(found[501].headers) == (("number", b"000501"), ("odd", b""))


async def test_batch_is_sent_when_it_is_full_or_old(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    books = Books()
    async with a_producer(broker, books, batch_records=50, flush_interval_ms=60_000) as producer:
        await producer.partitions(topic)
        for value in numbered(70):
            assert producer.send_nowait(topic, None, value, T0_MS, 0)
        await until(lambda: books.acknowledged == 50, "the full batch is sent")
        assert producer.buffered_records == 20
    async with a_producer(broker, books, batch_records=50, flush_interval_ms=5) as producer:
        await producer.partitions(topic)
        assert producer.send_nowait(topic, None, b"old", T0_MS, 0)
        await until(lambda: books.acknowledged == 71, "the old batch is sent")


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_are_read_by_others(broker: str, new_topic: TopicFactory, compression: str) -> None:
    topic = new_topic(partitions=1)
    async with a_producer(broker, compression=compression) as producer:
        await producer.publish(records(topic, numbered(500)))
    assert await values_of(broker, topic) == numbered(500)


@pytest.mark.parametrize("acks", ["0", "1"])
async def test_weaker_acknowledgements_work_without_an_offset(broker: str, new_topic: TopicFactory, acks: str) -> None:
    topic = new_topic(partitions=1)
    async with a_producer(broker, acks=acks, idempotent=False) as producer:
        await producer.publish(records(topic, numbered(10)))
        assert producer.last_offset(topic, 0) == (None if acks == "0" else 9)
    assert await values_of(broker, topic) == numbered(10)


async def test_large_keys_and_headers_count_towards_the_batch(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    wide = [OutRecord(topic, b"k" * 3_000, b"%d" % number, T0_MS, (("h", b"h" * 3_000),), 0) for number in range(2_000)]
    async with a_producer(broker, batch_records=100_000, batch_bytes=500_000) as producer:
        await producer.publish(wide)
    assert await values_of(broker, topic) == [b"%d" % number for number in range(2_000)]


async def test_records_of_others_between_ours_are_seen(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    async with a_producer(broker) as ours, a_producer(broker) as other:
        await other.publish(records(topic, [b"before"]))
        await ours.publish(records(topic, [b"first"]))
        assert ours.foreign_records(topic, 0) == 0
        await other.publish(records(topic, [b"between", b"too"]))
        await ours.publish(records(topic, [b"second"]))
        assert (ours.foreign_records(topic, 0), ours.last_offset(topic, 0)) == (2, 4)


async def test_latency_counts_from_the_instant_a_record_was_due(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    before = sum(metrics.SEND_DURATION.counts)
    slow_before = sum(metrics.SEND_DURATION.counts[-2:])
    due_ms = time.time() * 1000 - 8_000
    async with a_producer(broker) as producer:
        await producer.partitions(topic)
        for value in numbered(30):
            producer.send_nowait(topic, None, value, T0_MS, 0, (), due_ms)
        await producer.publish(records(topic, numbered(5)))
    assert sum(metrics.SEND_DURATION.counts) - before == 30
    assert sum(metrics.SEND_DURATION.counts[-2:]) - slow_before == 30


# ---- bounds ----


@pytest.mark.parametrize("bound", [{"buffer_records": 100}, {"buffer_bytes": 100 * 46, "record_bytes": 4_000}])
async def test_full_buffer_refuses_and_wakes_whoever_waits_for_room(
    broker: str, new_topic: TopicFactory, bound: dict[str, Any]
) -> None:
    topic = new_topic(partitions=1)
    async with a_producer(broker, flush_interval_ms=60_000, **bound) as producer:
        await producer.partitions(topic)
        accepted = 0
        while producer.send_nowait(topic, None, b"x" * 10, T0_MS, 0):
            accepted += 1
        assert accepted == producer.buffered_records == 100
        await asyncio.wait_for(producer.wait_for_room(), 10)
        assert producer.send_nowait(topic, None, b"x" * 10, T0_MS, 0)
    assert len(await values_of(broker, topic)) == 101


async def test_publish_of_more_than_the_buffer_holds_goes_through_in_order(
    broker: str, new_topic: TopicFactory
) -> None:
    topic = new_topic(partitions=2)
    highest = 0
    books = Books()

    def delivered(name: str, count: int, reason: str | None) -> None:
        nonlocal highest
        highest = max(highest, producer.buffered_records)
        books(name, count, reason)

    producer = BatchProducer(ProducerLimits(broker, buffer_records=64, batch_records=10), delivered)
    async with producer:
        runs = [records(topic, numbered(1_000, name), partition) for partition, name in enumerate("ab")]
        await asyncio.gather(*(producer.publish(run) for run in runs))
    found = await read_topic(broker, topic)
    assert [record.value for record in found[0]] == numbered(1_000, "a")
    assert [record.value for record in found[1]] == numbered(1_000, "b")
    assert (books.acknowledged, highest <= 64) == (2_000, True)


async def test_record_above_the_bound_is_refused_at_once_and_the_rest_is_sent(
    broker: str, new_topic: TopicFactory
) -> None:
    topic = new_topic(partitions=1)
    before = errors("record_too_large")
    async with a_producer(broker, record_bytes=1_000) as producer:
        await producer.partitions(topic)
        with pytest.raises(PublishFailed) as refused:
            producer.send_nowait(topic, None, b"x" * 1_000, T0_MS, 0)
        assert refused.value.reason == "record_too_large"
        with pytest.raises(PublishFailed):
            await producer.publish(records(topic, [b"small", b"x" * 1_000, b"never queued"]))
        await producer.publish(records(topic, [b"after"]))
    assert errors("record_too_large") - before == 2
    assert await values_of(broker, topic) == [b"small", b"after"]


# ---- refusals of the broker ----


async def test_batch_too_large_for_the_topic_is_sent_in_parts(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1, max_message_bytes="20000")
    values = [value * 150 for value in numbered(400)]
    books = Books()
    async with a_producer(broker, books) as producer:
        await producer.publish(records(topic, values))
        await producer.publish(records(topic, [b"after"]))
    assert await values_of(broker, topic) == [*values, b"after"]
    assert (books.acknowledged, books.failed) == (401, {})


async def test_record_the_broker_refuses_fails_only_those_who_wait_for_it(broker: str, new_topic: TopicFactory) -> None:
    topic, other = new_topic(partitions=1, max_message_bytes="20000"), new_topic(partitions=1)
    books = Books()
    before = errors("record_too_large")
    async with a_producer(broker, books) as producer:
        runs = [
            records(topic, [b"x" * 30_000]),
            records(topic, numbered(20, "a")),
            records(topic, numbered(20, "b")),
            records(other, numbered(20, "c")),
        ]
        refused, *outcomes = await asyncio.gather(*(producer.publish(run) for run in runs), return_exceptions=True)
        await producer.publish(records(topic, [b"after"]))
    assert isinstance(refused, PublishFailed)
    assert (refused.reason, refused.count) == ("record_too_large", 1)
    assert outcomes == [None, None, None]
    assert errors("record_too_large") - before == 1
    assert await values_of(broker, topic) == [*numbered(20, "a"), *numbered(20, "b"), b"after"]
    assert await values_of(broker, other) == numbered(20, "c")
    assert (books.acknowledged, dict(books.failed)) == (61, {"record_too_large": 1})


async def test_topic_and_partition_that_do_not_exist_are_refused_with_their_name(
    broker: str, new_topic: TopicFactory
) -> None:
    topic = new_topic(partitions=1)
    async with a_producer(broker, request_timeout_ms=300) as producer:
        with pytest.raises(PublishFailed, match="test-never-made") as unknown:
            await producer.publish(records("test-never-made", [b"x"]))
        assert unknown.value.reason == "unknown_topic"
        with pytest.raises(PublishFailed, match=rf"unknown_partition: {topic}-7"):
            await producer.publish(records(topic, [b"x"], partition=7))
        await producer.publish(records(topic, [b"x"]))


async def test_deleted_topic_fails_its_own_records_only_and_may_come_back(broker: str, new_topic: TopicFactory) -> None:
    gone, other = new_topic(partitions=1), new_topic(partitions=1)
    books = Books()
    async with a_producer(broker, books, request_timeout_ms=1_000, buffer_records=200) as producer:
        await producer.publish(records(gone, [b"before"]))
        await topics_admin.delete_topics(broker, [gone])
        failing = asyncio.create_task(producer.publish(records(gone, numbered(50))))
        await producer.publish(records(other, numbered(500)))
        with pytest.raises(PublishFailed) as unknown:
            await failing
        assert unknown.value.reason == "unknown_topic"
        TopicFactory(broker)(partitions=2, name=gone)
        await producer.publish(records(gone, [b"anew"], partition=1))
    assert await values_of(broker, gone) == [b"anew"]
    assert await values_of(broker, other) == numbered(500)
    assert (books.acknowledged, dict(books.failed)) == (502, {"unknown_topic": 50})


async def test_absent_broker_is_one_error_in_time() -> None:
    producer = a_producer("127.0.0.1:1", start_timeout_s=0.5)
    with pytest.raises(BrokerUnavailable, match=r"No Kafka broker answers at 127\.0\.0\.1:1"):
        await asyncio.wait_for(producer.start(), 5)


async def test_stopped_producer_refuses(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    async with a_producer(broker) as producer:
        await producer.publish(records(topic, [b"x"]))
    with pytest.raises(PublishFailed, match="stopped"):
        await producer.publish(records(topic, [b"y"]))
    with pytest.raises(PublishFailed, match="stopped"):
        producer.send_nowait(topic, None, b"y", T0_MS, 0)


async def test_bug_ends_the_producer_and_fails_all_that_waits(
    broker: str, new_topic: TopicFactory, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(partitions=2)
    no_number: Any = "yesterday"
    async with a_producer(broker, flush_interval_ms=60_000) as producer:
        await producer.partitions(topic)
        waiting = asyncio.create_task(producer.publish(records(topic, [b"x"], partition=1)))
        await producer.publish(records(topic, [b"x"], partition=1))
        await waiting
        producer.send_nowait(topic, None, b"waits", T0_MS, 1)
        with pytest.raises(PublishFailed, match="producer_failed"):
            await producer.publish([OutRecord(topic, None, b"x", no_number, (), 0)])
        assert isinstance(await asyncio.wait_for(producer.failure(), 5), TypeError)
        assert producer.buffered_records == 0
        with pytest.raises(PublishFailed, match="producer_failed"):
            await producer.publish(records(topic, [b"y"], partition=1))
    assert [record.levelname for record in caplog.records if record.name == "app.adapters.producer"] == ["ERROR"]


async def test_abandoned_publish_is_sent_all_the_same(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    async with a_producer(broker) as producer:
        await producer.partitions(topic)
        publishing = asyncio.create_task(producer.publish(records(topic, numbered(5_000))))
        await asyncio.sleep(0)  # at its first turn it queues; a look every 10 ms can come when all is acknowledged
        assert producer.buffered_records == 5_000
        publishing.cancel()
        await asyncio.wait([publishing])
        await producer.flush()
    assert await values_of(broker, topic) == numbered(5_000)


# ---- a broker that fails ----


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    with own_kafka(tmp_path_factory.mktemp("own")) as own:
        yield own


@pytest.fixture
def own_topic(kafka: EmbeddedKafka) -> TopicFactory:
    return TopicFactory(kafka.bootstrap)


async def _send_slowly(producer: BatchProducer, topic: str, begun: asyncio.Event, more: asyncio.Event) -> int:
    """Publish small runs until told to end; returns the records of all of them."""
    count = 0
    while not more.is_set():
        await producer.publish(records(topic, [b"%06d" % number for number in range(count, count + 10)]))
        count += 10
        begun.set()
    return count


async def test_frozen_broker_costs_time_and_nothing_else(kafka: EmbeddedKafka, own_topic: TopicFactory) -> None:
    topic = own_topic(partitions=1)
    books = Books()
    async with a_producer(kafka.bootstrap, books) as producer:
        begun, ending = asyncio.Event(), asyncio.Event()
        sending = asyncio.create_task(_send_slowly(producer, topic, begun, ending))
        await begun.wait()
        with frozen(kafka):
            await until(lambda: producer.buffered_records > 0, "a batch waits for the frozen broker")
            waiting = [asyncio.create_task(producer.publish(records(topic, [b"late"]))) for _ in range(3)]
            await until(lambda: producer.buffered_records >= 13, "more wait behind it")
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        ending.set()
        count = await sending
    values = [value for value in await values_of(kafka.bootstrap, topic) if value != b"late"]
    assert values == numbered(count)
    assert books.acknowledged == count + 3


async def test_killed_broker_loses_and_doubles_nothing(kafka: EmbeddedKafka, own_topic: TopicFactory) -> None:
    topic = own_topic(partitions=1)
    books = Books()
    async with a_producer(kafka.bootstrap, books, request_timeout_ms=30_000) as producer:
        begun, ending = asyncio.Event(), asyncio.Event()
        sending = asyncio.create_task(_send_slowly(producer, topic, begun, ending))
        await begun.wait()
        kafka.kill(1)
        await until(lambda: producer.buffered_records > 0, "a batch waits for the dead broker")
        await kafka.start_node(1)
        await until(lambda: producer.buffered_records == 0 or books.acknowledged > 100, "it goes on")
        ending.set()
        count = await sending
    assert await values_of(kafka.bootstrap, topic) == numbered(count)
    assert (books.acknowledged, books.failed) == (count, {})


async def test_outage_longer_than_every_time_out_loses_and_doubles_nothing(
    kafka: EmbeddedKafka, own_topic: TopicFactory
) -> None:
    topic = own_topic(partitions=2)
    books = Books()
    async with a_producer(kafka.bootstrap, books, request_timeout_ms=300, batch_records=10) as producer:
        await producer.publish(records(topic, [b"first"], partition=1))
        kafka.kill(1)
        began = time.monotonic()
        runs = [records(topic, numbered(60, name), partition) for partition, name in enumerate("ab")]
        waiting = [asyncio.create_task(producer.publish(run)) for run in runs]
        await until(lambda: time.monotonic() - began > 1.0, "three time-outs pass")
        await kafka.start_node(1)
        await asyncio.gather(*waiting)
    found = await read_topic(kafka.bootstrap, topic)
    assert [record.value for record in found[0]] == numbered(60, "a")
    assert [record.value for record in found[1]] == [b"first", *numbered(60, "b")]
    assert (books.acknowledged, books.failed) == (121, {})


async def test_client_that_fails_as_a_whole_is_replaced_and_nothing_is_lost(
    kafka: EmbeddedKafka, own_topic: TopicFactory
) -> None:
    topic = own_topic(partitions=2)
    books = Books()
    before = errors("broker_unavailable")
    async with a_producer(kafka.bootstrap, books, batch_records=10, start_timeout_s=0.3) as producer:
        await producer.publish(records(topic, [b"first"], partition=1))
        with frozen(kafka):
            runs = [records(topic, numbered(60, name), partition) for partition, name in enumerate("ab")]
            waiting = [asyncio.create_task(producer.publish(run)) for run in runs]
            await until(lambda: producer.buffered_records == 120, "queued")
            client = producer._client
            assert client is not None
            client._producer._message_accumulator.fail_all(OutOfOrderSequenceNumber())
            await until(lambda: errors("broker_unavailable") > before, "it is replaced in vain while the broker stands")
        await asyncio.gather(*waiting)
        assert producer._client is not client
        await producer.publish(records(topic, [b"last"], partition=1))
    found = await read_topic(kafka.bootstrap, topic)
    for partition, name in enumerate("ab"):
        values = [record.value for record in found[partition] if record.value.startswith(name.encode())]
        assert list(dict.fromkeys(values)) == numbered(60, name)
    assert (books.acknowledged, books.failed) == (122, {})


async def test_stop_ends_at_its_deadline_and_fails_what_is_left(kafka: EmbeddedKafka, own_topic: TopicFactory) -> None:
    topic = own_topic(partitions=2)
    books = Books()
    before = errors("stopped")
    producer = a_producer(kafka.bootstrap, books, batch_records=10)
    await producer.start()
    await producer.publish(records(topic, numbered(10)))
    with frozen(kafka):
        waiting = asyncio.create_task(producer.publish(records(topic, numbered(70))))
        await until(lambda: producer.buffered_records == 70, "queued")
        began = time.monotonic()
        await producer.stop(timeout_s=0.2)
        assert time.monotonic() - began < 3
        with pytest.raises(PublishFailed, match="stopped"):
            await waiting
    assert (books.acknowledged, dict(books.failed)) == (10, {"stopped": 70})
    assert errors("stopped") - before == 70
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_publishes_queue_in_the_order_they_were_made_whatever_each_waits_for(
    broker: str, new_topic: TopicFactory
) -> None:
    """The first waits for the topic's metadata, later ones for room: none overtakes another."""
    topic = new_topic(partitions=1)
    async with (
        a_producer(broker, batch_records=50, buffer_records=60, flush_interval_ms=1) as producer,
        asyncio.TaskGroup() as group,
    ):
        for first in range(0, 2_000, 40):
            run = [OutRecord(topic, None, b"%06d" % number, T0_MS, (), 0) for number in range(first, first + 40)]
            group.create_task(producer.publish(run))
    found = (await read_topic(broker, topic))[0]
    assert [int(record.value) for record in found] == list(range(2_000))
