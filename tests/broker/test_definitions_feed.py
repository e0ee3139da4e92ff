"""Laws of the registry of workflows, on the real broker."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from app.adapters.definitions_feed import DefinitionsFeed
from app.definition_wire import Definition, registration, version_of
from app.ports import OutRecord
from config.http import ReadModelSettings
from config.kafka import KafkaSettings
from tests.helpers.broker import TopicFactory

pytestmark = pytest.mark.broker
T0 = 1_763_689_000_000


def definition(workflow: str = "press", **fields: Any) -> Definition:
    document = {"id": workflow, "tasks": {"one": {"type": "transform.cel", "with": {"map": "row"}}}, **fields}
    return Definition(workflow, version_of(document), document)


@contextlib.asynccontextmanager
async def following(bootstrap: str, topic: str, **options: Any) -> AsyncIterator[DefinitionsFeed]:
    kafka = KafkaSettings(metadata_max_age_ms=1000)
    feed = DefinitionsFeed(kafka, bootstrap, ReadModelSettings(retry_backoff_ms=50), topic=topic, **options)
    stop = asyncio.Event()
    task = asyncio.create_task(feed.run(stop))
    try:
        yield feed
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


async def send(bootstrap: str, topic: str, records: Sequence[OutRecord | tuple[bytes, bytes | None]]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for record in records:
            key, value = (record.key, record.value) if isinstance(record, OutRecord) else record
            await producer.send_and_wait(topic, value, key)


async def read(feed: DefinitionsFeed) -> None:
    await asyncio.wait_for(feed.caught_up(), 20)


async def test_a_registered_version_is_there_and_the_latest_one_moves(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    first, second = definition(), definition(priority=5)
    assert first.version != second.version
    changes: list[tuple[str, str]] = []
    async with following(broker, topic, changed=lambda *what: changes.append(what)) as feed:
        await send(broker, topic, registration(first, T0))
        await read(feed)
        assert feed.ready
        found = feed.latest("press")
        assert found is not None
        assert (found.version, found.priority, list(found.tasks)) == (first.version, 0, ["one"])
        await send(broker, topic, registration(second, T0 + 1))
        await read(feed)
        assert (feed.latest_version("press"), feed.get("press", first.version)) == (second.version, found)
        assert [one.version for one in feed.versions("press")] == [second.version, first.version]
        assert feed.workflows() == ["press"]
        assert feed.latest("absent") is None
        assert feed.get("press", "absent") is None
        stored = feed.definition("press")
        assert stored is not None
        assert (stored.document, stored.registered_at) == (second.document, T0 + 1)
    assert changes == [("workflow", "press"), ("latest", "press")] * 2


async def test_a_version_applied_again_keeps_its_first_time_and_is_the_latest(
    broker: str, new_topic: TopicFactory
) -> None:
    topic = new_topic(partitions=1)
    first, second = definition(), definition(priority=5)
    records = [*registration(first, T0), *registration(second, T0 + 1), *registration(first, T0 + 2)]
    await send(broker, topic, records)
    async with following(broker, topic) as feed:
        await read(feed)
        assert feed.latest_version("press") == first.version
        assert {one.version: one.registered_at for one in feed.versions("press")} == {
            first.version: T0,
            second.version: T0 + 1,
        }


async def test_who_asks_whether_all_was_read_waits_behind_no_fetch(broker: str, new_topic: TopicFactory) -> None:
    """Behind one that waits for records each question would take 0.2 s, 20 s in all; the engine stands meanwhile."""
    topic = new_topic(partitions=1)
    async with following(broker, topic) as feed:
        await read(feed)
        async with asyncio.timeout(10):
            for _ in range(100):
                await feed.caught_up()


async def test_summaries_of_entities_come_and_go(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    await send(broker, topic, [(b"schedule:nightly", b'{"next": 1}'), (b"schedule:b", b"{}"), (b"backfill:x", b"{}")])
    async with following(broker, topic) as feed:
        await read(feed)
        assert feed.entities("schedule") == {"nightly": {"next": 1}, "b": {}}
        await send(broker, topic, [(b"schedule:nightly", None), (b"schedule:b", b"null")])
        await read(feed)
        assert feed.entities("schedule") == {}
        assert feed.entities("backfill") == {"x": {}}
        assert feed.entities("other") == {}


async def test_what_cannot_be_read_is_passed_over_and_said(
    broker: str, new_topic: TopicFactory, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(partitions=1)
    good = definition()
    bad = [
        (b"workflow:press@1", b"{"),
        (b"workflow:press@2", b'{"id": "other", "version": "2", "definition": {}}'),
        (b"workflow:press@3", b'{"id": "press", "version": "3", "definition": {}}'),
        (b"latest:press", b"[]"),
        (b"schedule:x", b"3"),
        (b"\xff", b"{}"),
    ]
    await send(broker, topic, [*bad, *registration(good, T0)])
    with caplog.at_level(logging.ERROR, "app.adapters.definitions_feed"):
        async with following(broker, topic) as feed:
            await read(feed)
            assert (feed.get("press", "3"), feed.get("press", "3")) == (None, None)
            assert feed.latest("press") is not None
    assert len(caplog.records) == len(bad)


async def test_the_registry_waits_through_an_absence_of_the_broker() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with following(f"127.0.0.1:{nobody.getsockname()[1]}", "workflow.definitions") as feed:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(feed.caught_up(), 0.3)
            assert not feed.ready
            assert feed.latest("press") is None
