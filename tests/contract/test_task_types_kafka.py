"""source.kafka, source.rollups and sink.kafka with a real broker."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.adapters.producer import BatchProducer, ProducerLimits
from app.ports import OutRecord
from tests.helpers.kafka import T0_MS, read_topic
from tests.helpers.task_calls import Tasks, tasks

pytestmark = pytest.mark.broker

NewTopic = Callable[..., str]


@pytest.fixture
async def run(broker: str, tmp_path: Path) -> AsyncIterator[Tasks]:
    async with tasks(tmp_path, broker) as types:
        yield types


async def publish(broker: str, *records: OutRecord) -> None:
    async with BatchProducer(ProducerLimits(broker, flush_interval_ms=0)) as producer:
        await producer.publish(records)


def numbered(topic: str, count: int, partitions: int = 2) -> list[OutRecord]:
    """`count` records one second apart, on the partitions in turn."""
    return [
        OutRecord(topic, b"k%d" % (n % 3), b'{"n": %d}' % n, T0_MS + n * 1_000, [("h", b"x")], n % partitions)
        for n in range(count)
    ]


# ---- source.kafka


async def test_a_slice_is_bounded_by_time_offset_and_number(run: Tasks, broker: str, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=2)
    await publish(broker, *numbered(topic, 10))

    async def numbers(**params: Any) -> list[int]:
        return [value["n"] for value in await run.run("source.kafka", topic=topic, values=True, **params)]

    assert await numbers() == list(range(10))
    assert await numbers(since=T0_MS + 4_000) == [4, 5, 6, 7, 8, 9]
    assert await numbers(since=T0_MS + 4_000, until=T0_MS + 7_000) == [4, 5, 6]
    assert await numbers(since="2999-01-01") == []
    assert await numbers(partition=1, start_offset=1, end_offset=3) == [3, 5]
    assert await numbers(partition=1, start_offset=99) == []
    assert await numbers(last=1) == [8, 9]
    assert await numbers(max_rows=9, on_more="cut", partition=0) == [0, 2, 4, 6, 8]
    assert (await run.failure("source.kafka", topic=topic, max_rows=9)).type == "TooManyRows"
    assert (await run.failure("source.kafka", topic=topic, max_scan=9)).type == "TooMuchToRead"
    assert (await run.failure("source.kafka", topic=topic, partition=2)).type == "UnknownPartition"
    assert (await run.failure("source.kafka", topic=topic, since="soon")).type == "InvalidParams"


async def test_records_are_given_whole_and_by_key(run: Tasks, broker: str, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=4)
    await publish(broker, *(OutRecord(topic, b"k%d" % (n % 3), b'"%d"' % n, T0_MS + n) for n in range(9)))
    found = await run.run("source.kafka", topic=topic, key="k1")
    assert [record["value"] for record in found] == ["1", "4", "7"]
    assert found[0] == {
        "topic": topic, "partition": found[0]["partition"], "offset": found[0]["offset"], "timestamp": T0_MS + 1,
        "key": "k1", "value": "1", "headers": {},
    }  # fmt: skip


async def test_values_are_read_as_asked(run: Tasks, broker: str, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=1)
    await publish(broker, OutRecord(topic, b"\xff", b"\xff", T0_MS), OutRecord(topic, None, None, T0_MS))
    failed = await run.failure("source.kafka", topic=topic)
    assert (failed.type, failed.detail) == ("InvalidRecord", {"partition": 0, "offset": 0})
    assert (await run.failure("source.kafka", topic=topic, decode="text")).type == "InvalidRecord"
    assert await run.run("source.kafka", topic=topic, decode="base64", values=True) == ["/w==", None]


async def test_no_topic_and_no_broker_are_told_apart(run: Tasks, tmp_path: Path) -> None:
    failed = await run.failure("source.kafka", topic="no-such-topic")
    assert (failed.type, failed.retryable) == ("UnknownTopic", False)
    failed = await run.failure("sink.kafka", [1], topic="no-such-topic")
    assert (failed.type, failed.retryable) == ("UnknownTopic", False)
    async with tasks(tmp_path) as nowhere:
        for type_ in ("source.kafka", "sink.kafka"):
            failed = (
                await nowhere.failure(type_, [1], topic="any", timeout_s=3)
                if type_ == "sink.kafka"
                else (await nowhere.failure(type_, topic="any"))
            )
            assert failed.type in {"KafkaUnavailable", "KafkaTimeout"}
            assert failed.retryable


# ---- source.rollups


def rollup(device: str, start: int, revision: int = 0, **changes: Any) -> bytes:
    fields = {
        "device_id": device, "metric": "temperature", "window_start": start, "window_ms": 60_000,
        "revision": revision, "is_final": revision > 0, "mean": 20.0 + revision, **changes,
    }  # fmt: skip
    return json.dumps(fields).encode()


async def test_rollups_of_a_device_are_its_latest_revisions(run: Tasks, broker: str, new_topic: NewTopic) -> None:
    topic, at = new_topic(partitions=3), T0_MS
    values = [
        rollup("press-1", at), rollup("press-1", at + 60_000), rollup("press-1", at, 1),
        rollup("press-1", at, window_ms=10_000),
        rollup("press-1", at, metric="pressure"), rollup("press-1", at - 60_000), b"nonsense", b"[]",
    ]  # fmt: skip
    await publish(
        broker,
        *(OutRecord(topic, b"press-1", value, at + n) for n, value in enumerate(values)),
        *(OutRecord(topic, b"press-2", rollup("press-2", at), at) for _ in range(3)),
    )
    params: dict[str, Any] = {"topic": topic, "device_id": "press-1", "since": at, "metric": "temperature"}
    found = await run.run("source.rollups", **params)
    assert [(one["window_start"] - at, one["revision"]) for one in found] == [(0, 1), (60_000, 0)]
    assert [one["mean"] for one in await run.run("source.rollups", final=True, **params)] == [21.0]
    assert len(await run.run("source.rollups", **{**params, "metric": None})) == 3
    assert await run.run("source.rollups", until=at, **params) == []
    assert (await run.failure("source.rollups", max_rows=1, **params)).type == "TooManyRows"


# ---- sink.kafka


async def test_records_carry_the_effects_key_and_go_by_their_own(run: Tasks, broker: str, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=4)
    rows = [{"device": {"id": "press-1"}, "v": n} for n in range(3)]
    for _ in range(2):
        told = await run.run("sink.kafka", rows, effect="e1/t", topic=topic, key="device.id", headers={"kind": "alarm"})
        assert told == {"topic": topic, "rows": 3}
    (found,) = [records for records in (await read_topic(broker, topic)).values() if records]
    assert [json.loads(record.value) for record in found] == rows * 2
    assert {record.key for record in found} == {b"press-1"}
    effects = [dict(record.headers)["idempotency-key"] for record in found]
    assert effects == [b"e1/t/0", b"e1/t/1", b"e1/t/2"] * 2
    assert {dict(record.headers)["kind"] for record in found} == {b"alarm"}


async def test_records_that_cannot_be_sent_say_why(run: Tasks, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=1)
    assert (await run.failure("sink.kafka", [{"a": 1}], topic=topic, key="b")).type == "InvalidRow"
    assert (await run.failure("sink.kafka", [{"a": object()}], topic=topic)).type == "InvalidRow"
    failed = await run.failure("sink.kafka", [{"a": "x" * 2_000_000}], topic=topic)
    assert (failed.type, failed.retryable) == ("RecordRefused", False)
    for own in ("workflow.commands", "workflow.tasks.default", "transform.state", "__consumer_offsets"):
        assert (await run.failure("sink.kafka", [1], topic=own)).type == "TopicRefused"
    assert await run.run("sink.kafka", [1], topic=topic, value="v") == {"topic": topic, "rows": 1}
