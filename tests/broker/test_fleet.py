"""The fleet and the replay through the real producer and a real Kafka."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer

from agents import generate as fleet_agent
from agents import replay as replay_agent
from agents.generate import GenerateLimits, fleet_of, generate, limits_of
from agents.ledger import Books
from agents.replay import ReplayLimits, replay
from app.adapters.csv_replay import open_recording
from app.adapters.producer import BatchProducer, ProducerLimits
from app.domain.murmur2 import partition_for
from config.device import DeviceSettings
from config.mapping import ReplayMapping
from config.topics import TopicSpec
from tests.helpers.broker import TopicFactory

pytestmark = pytest.mark.broker


class WallClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


@pytest.fixture
def topics(new_topic: TopicFactory, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Topics of this test's own in the places of the service's."""
    names = {kind: new_topic(partitions=4) for kind in ("telemetry", "truth", "metadata", "deadletter")}
    for module, kinds in ((fleet_agent, ("truth", "metadata")), (replay_agent, ("truth", "metadata", "deadletter"))):
        for kind in kinds:
            spec = TopicSpec(names[kind], "device_id", kind)
            monkeypatch.setattr(module, f"DEVICE_{kind.upper()}", spec)
    return names


async def read_all(bootstrap: str, topic: str) -> list[Any]:
    """Every record of a topic up to its end."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=50)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        records: list[Any] = []
        async with asyncio.timeout(30):
            while len(records) < sum(ends.values()):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    records += batch
        return records
    finally:
        await consumer.stop()


async def test_each_sample_is_on_the_broker_once_in_its_place_and_the_ledger_balances(
    broker: str, topics: dict[str, str]
) -> None:
    device = DeviceSettings(count=50, sample_interval_ms=50, fault_interval_ms=2_000, fault_kinds=["spike", "stuck"])
    books, stop = Books(topics["telemetry"]), asyncio.Event()
    async with BatchProducer(ProducerLimits(broker), books.delivered) as producer:

        def limits() -> GenerateLimits:
            if books.ledger.acknowledged >= 2_000:
                stop.set()
            return limits_of(device)

        await generate(fleet_of(device), producer, WallClock(), books, limits, stop)
        await producer.flush()
    records = await read_all(broker, topics["telemetry"])
    assert books.balances(0)
    assert books.ledger.in_flight == 0
    assert len(records) == books.ledger.acknowledged == books.ledger.generated >= 2_000
    seen: Counter[tuple[str, int, int]] = Counter()
    last: dict[str, int] = {}
    for record in records:
        sample = orjson.loads(record.value)
        seen[sample["device_id"], sample["session_id"], sample["seq"]] += 1
        assert record.key == sample["device_id"].encode()
        assert record.partition == partition_for(record.key, 4)
        assert record.timestamp == sample["source_timestamp"]
        assert sample["seq"] == last.get(sample["device_id"], 0) + 1
        last[sample["device_id"]] = sample["seq"]
    assert set(seen.values()) == {1}
    truth = [orjson.loads(record.value) for record in await read_all(broker, topics["truth"])]
    begun = {each["fault_id"] for each in truth if each["to_ts"] is None}
    assert begun == {each["fault_id"] for each in truth if each["to_ts"] is not None} != set()
    states = [orjson.loads(record.value)["state"] for record in await read_all(broker, topics["metadata"])]
    assert (states.count("ONLINE"), states.count("OFFLINE")) == (50, 50)


async def test_a_recording_is_on_the_broker_whole_with_its_bad_rows_apart(
    broker: str, topics: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "one.csv"
    rows = [f"{1_577_836_800_000 + n * 1000},{n},{int(20 <= n < 30)}" for n in range(3_000)]
    rows[100] = "soon,1,0"
    path.write_text("\n".join(["at,temp,bad", *rows]))
    mapping = ReplayMapping.model_validate(
        {
            "time": {"column": "at", "format": "epoch_ms"},
            "device": {"id": "rec-{file}"},
            "metrics": [{"metric": "temperature", "column": "temp", "unit": "CEL"}],
            "labels": {"columns": {"anomaly": "bad"}},
        }
    )
    books = Books(topics["telemetry"])
    async with BatchProducer(ProducerLimits(broker, buffer_records=500), books.delivered) as producer:
        done = await replay(
            open_recording([path], mapping), producer, WallClock(), books, ReplayLimits(speed=0), asyncio.Event()
        )
        await producer.flush()
    assert (done.samples, done.dead_letters, done.truths, done.finished) == (2_999, 1, 2, True)
    values = [orjson.loads(r.value)["metrics"][0]["value"] for r in await read_all(broker, topics["telemetry"])]
    assert values == [float(n) for n in range(3_000) if n != 100]
    (letter,) = [orjson.loads(record.value) for record in await read_all(broker, topics["deadletter"])]
    assert (letter["line"], letter["file"]) == (102, "one.csv")
    assert books.balances(0)
    assert not books.ledger.dropped
