"""Laws of feeding a read model, on the real broker."""

import asyncio
import contextlib
import socket
import time
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaConnectionError

from app.adapters.read_feed import ReadFeed
from config.http import ReadModelSettings
from config.kafka import KafkaSettings
from tests.helpers.broker import TopicFactory

pytestmark = pytest.mark.broker
HOUR_MS = 3_600_000


class Reader:
    """A feed that runs, and what it took."""

    def __init__(self, bootstrap, whole=(), recent=(), **limits):
        self.taken: list[tuple[str, bytes | None, bytes | None]] = []
        self.skips = 0
        self.stop = asyncio.Event()
        settings = ReadModelSettings(retry_backoff_ms=50, **limits)
        kafka = KafkaSettings(metadata_max_age_ms=1000)
        self.feed = ReadFeed(
            kafka, bootstrap, settings, self._take, self._skipped, (*whole, *recent), whole=whole, skippable=recent
        )

    def _take(self, topic, key, value):
        self.taken.append((topic, key, value))

    def _skipped(self):
        self.skips += 1

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - a condition on another object's state
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def reading(*args, **kwargs) -> AsyncIterator[Reader]:
    reader = Reader(*args, **kwargs)
    task = asyncio.create_task(reader.feed.run(reader.stop))
    try:
        yield reader
    finally:
        reader.stop.set()
        await asyncio.wait_for(task, 20)


async def _send(bootstrap, topic, records, partition=None):
    """`records` are (key, value, timestamp_ms)."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=False) as producer:
        sent = [await producer.send(topic, value, key, partition, at) for key, value, at in records]
        await asyncio.gather(*sent)


def _now_ms():
    return time.time_ns() // 1_000_000


async def test_metadata_is_read_whole_and_the_rest_from_the_lookback(broker, new_topic):
    whole, recent = new_topic(2), new_topic(2)
    now = _now_ms()
    records = [(b"old", b"1", now - 2 * HOUR_MS), (b"new", b"2", now)]
    await _send(broker, whole, records, 0)
    await _send(broker, recent, records, 0)
    async with reading(broker, [whole], [recent], lookback_s=3600) as reader:
        await reader.until(lambda: reader.feed.caught_up)
        assert {(t, k) for t, k, _ in reader.taken} == {(whole, b"old"), (whole, b"new"), (recent, b"new")}


async def test_no_more_than_the_newest_are_read_however_many_the_lookback_holds(broker, new_topic):
    topic = new_topic(2)
    for partition in (0, 1):
        await _send(broker, topic, [(b"k", str(n).encode(), None) for n in range(50)], partition)
    async with reading(broker, (), [topic], lookback_max_records=20) as reader:
        await reader.until(lambda: reader.feed.caught_up)
        assert sorted(int(value or b"") for _, _, value in reader.taken) == sorted([*range(40, 50)] * 2)


async def test_every_partition_is_read_and_tombstones_too(broker, new_topic):
    topic = new_topic(3)
    await _send(broker, topic, [(str(n).encode(), None if n % 2 else b"v", None) for n in range(60)])
    async with reading(broker, [topic]) as reader:
        await reader.until(lambda: reader.feed.caught_up)
        assert sorted(int(key or b"-1") for _, key, _ in reader.taken) == list(range(60))
        assert {value for _, _, value in reader.taken} == {None, b"v"}


async def test_empty_topics_are_caught_up_with_and_then_followed(broker, new_topic):
    topic = new_topic(1)
    async with reading(broker, (), [topic]) as reader:
        await reader.until(lambda: reader.feed.caught_up)
        assert (reader.taken, reader.feed.lag) == ([], 0)
        await _send(broker, topic, [(b"k", b"v", None)])
        await reader.until(lambda: reader.taken)


async def test_partitions_added_later_are_read_too(broker, new_topic):
    topic = new_topic(1)
    async with reading(broker, [topic]) as reader:
        await reader.until(lambda: reader.feed.caught_up)
        admin = AIOKafkaAdminClient(bootstrap_servers=broker)
        await admin.start()
        await admin.create_partitions({topic: NewPartitions(2)})
        await admin.close()
        await _send(broker, topic, [(b"k", b"v", None)], 1)
        await reader.until(lambda: reader.taken)


async def test_topics_that_do_not_exist_yet_are_waited_for(broker, caplog):
    caplog.set_level("INFO")
    factory = TopicFactory(broker)
    name = f"test-{uuid.uuid4().hex[:12]}"
    try:
        async with reading(broker, [name]) as reader:
            await reader.until(lambda: "there is no topic" in caplog.text)
            assert not reader.feed.connected
            factory(1, name)
            await reader.until(lambda: reader.feed.connected)
    finally:
        factory.delete_all()
    assert caplog.text.count("there is no topic") == 1


async def test_telemetry_too_far_behind_is_skipped_and_said(broker, new_topic):
    topic = new_topic(1)
    await _send(broker, topic, [(b"k", str(n).encode(), None) for n in range(4000)])
    async with reading(broker, (), [topic], lag_max_records=1000) as reader:
        await reader.until(lambda: reader.feed.caught_up)
        assert reader.skips == 1
        assert len(reader.taken) <= 1000
        await _send(broker, topic, [(b"k", b"last", None)])
        await reader.until(lambda: reader.taken and reader.taken[-1][2] == b"last")


async def test_after_a_failure_reading_goes_on_where_it_was(broker, new_topic):
    topic = new_topic(1)
    await _send(broker, topic, [(b"k", b"1", None)])
    async with reading(broker, [topic]) as reader:
        await reader.until(lambda: reader.feed.caught_up)
        take = reader.feed._take

        def fail_once(*_):
            reader.feed._take = take
            raise KafkaConnectionError("gone")

        reader.feed._take = fail_once
        await _send(broker, topic, [(b"k", b"2", None)])
        await reader.until(lambda: len(reader.taken) == 2)
    assert [value for _, _, value in reader.taken] == [b"1", b"2"]


async def test_an_absent_broker_is_one_line_and_no_traceback(caplog):
    caplog.set_level("INFO", logger="app")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with reading(f"127.0.0.1:{port}", ["nothing"]) as reader:
        await reader.until(lambda: caplog.records)
        tries = 0

        def tried_again():
            nonlocal tries
            tries += 1
            return tries > 200

        await reader.until(tried_again)
        assert not reader.feed.connected
    ours = [record for record in caplog.records if record.name.startswith("app.")]
    assert len(ours) == 1
    assert ours[0].exc_info is None
