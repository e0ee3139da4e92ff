"""Laws of tables that settle in one trip, and of a publisher whose order stays unbroken, on a real broker."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.adapters.producer import BatchProducer, ProducerLimits
from app.errors import Fenced, PublishFailed
from app.ports import OutRecord
from tables.partition import SingleTrip, TablePartition
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import values_of
from tests.helpers.table_worker import apply, now_ms, opened
from tests.helpers.tables import INPUT, fold, rows_of

pytestmark = pytest.mark.broker

ONE = SingleTrip()


@pytest.fixture
async def producer(broker: str) -> AsyncIterator[BatchProducer]:
    async with BatchProducer(ProducerLimits(broker)) as running:
        yield running


@pytest.fixture
def changelog(new_topic: TopicFactory) -> str:
    return new_topic(1, cleanup_policy="compact", min_compaction_lag_ms="600000")


@pytest.fixture
def output(new_topic: TopicFactory) -> str:
    return new_topic(1)


async def holds(broker: str, tables: TablePartition, output: str, inputs: int) -> None:
    """Every input is applied once, and every output was sent."""
    rows, outputs = fold(inputs)
    assert rows_of(tables) == rows
    assert tables.applied == {INPUT: inputs - 1}
    assert set(await values_of(broker, output)).issuperset(outputs)


@pytest.mark.parametrize("stage", ["marker", "undelivered", "acknowledged"])
@pytest.mark.parametrize("first_back", ["same", "other"])
async def test_killed_owner_neither_loses_nor_applies_twice(
    broker: str, changelog: str, output: str, producer: BatchProducer, tmp_path: Path, stage: str, first_back: str
) -> None:
    """Before the trip; with the changelog written and the outputs nowhere; and before the input is committed."""
    words = (broker, str(tmp_path / "same"), changelog, output, "60", "30", stage, "1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.helpers.table_worker", *words, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"paused\n"
    finally:
        process.kill()
        await process.wait()
    counted = 30 if stage == "marker" and first_back == "other" else 33
    for turn, folder in enumerate((first_back, "same", "other", "third")):
        trip = ONE if turn % 2 else None
        tables, _ = await opened(broker, tmp_path / folder, changelog, producer, single_trip=trip)
        assert tables.applied == {INPUT: counted - 1}
        await holds(broker, tables, output, counted)
        counted += 15
        await apply(tables, output, counted)
        tables.close()


async def test_owner_that_was_overtaken_is_fenced_and_what_it_wrote_does_not_count(
    broker: str, changelog: str, output: str, tmp_path: Path
) -> None:
    limits = ProducerLimits(broker)
    async with BatchProducer(limits) as one, BatchProducer(limits) as two, BatchProducer(limits) as three:
        zombie, _ = await opened(broker, tmp_path / "zombie", changelog, one, single_trip=ONE)
        await apply(zombie, output, 30)
        owner, _ = await opened(broker, tmp_path / "owner", changelog, two, single_trip=ONE)
        await apply(owner, output, 60)
        with pytest.raises(Fenced, match=r"another process wrote \d+ records"):
            await apply(zombie, output, 45)
        with pytest.raises(Fenced, match="another process wrote"):
            await apply(owner, output, 75)
        zombie.close()
        owner.close()
        for folder in ("owner", "zombie", "third"):
            tables, _ = await opened(broker, tmp_path / folder, changelog, three, single_trip=ONE)
            await holds(broker, tables, output, 63)  # what the owner had written before it was told
            tables.close()


def records(topic: str, *values: bytes) -> list[OutRecord]:
    return [OutRecord(topic, b"k", value, now_ms(), (), 0) for value in values]


async def outcomes(producer: BatchProducer, *runs: list[OutRecord]) -> list[str]:
    found = await asyncio.gather(*(producer.publish(run) for run in runs), return_exceptions=True)
    return [one.reason if isinstance(one, PublishFailed) else str(one) for one in found]


async def test_nothing_follows_a_record_that_the_broker_refused(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(1, max_message_bytes="20000")
    async with BatchProducer(ProducerLimits(broker)) as producer:
        producer.unbroken(topic, 0)
        await producer.publish(records(topic, b"first"))
        refused, behind = await outcomes(
            producer, records(topic, b"before", b"x" * 30_000, b"marker"), records(topic, b"later")
        )
        assert refused in {"record_too_large", "order_broken"}
        assert behind == "order_broken"
        assert await outcomes(producer, records(topic, b"much later")) == ["order_broken"]
        assert (await values_of(broker, topic))[:1] == [b"first"]
        assert not {b"marker", b"later", b"much later"} & set(await values_of(broker, topic))
        producer.unbroken(topic, 0)
        await producer.publish(records(topic, b"anew"))
    assert (await values_of(broker, topic))[-1] == b"anew"


async def test_nothing_follows_a_record_that_was_refused_here(broker: str, new_topic: TopicFactory) -> None:
    topic, other = new_topic(1), new_topic(1)
    async with BatchProducer(ProducerLimits(broker, record_bytes=10_000)) as producer:
        producer.unbroken(topic, 0)
        await producer.publish([*records(topic, b"first"), *records(other, b"first")])
        runs = (records(topic, b"row", b"x" * 20_000, b"marker"), records(topic, b"later"), records(other, b"other"))
        assert await outcomes(producer, *runs) == ["record_too_large", "order_broken", "None"]
    assert set(await values_of(broker, topic)) <= {b"first", b"row"}
    assert await values_of(broker, other) == [b"first", b"other"]
