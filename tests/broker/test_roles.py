"""Laws of what the roles share, on a real broker."""

import asyncio
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from app.adapters.clock import SystemClock
from app.adapters.device_registry import DeviceRegistry
from app.adapters.topics_admin import ensure_topics
from app.http.health import HealthRegistry
from app.roles.context import Context
from app.roles.worker import run_sink
from config.http import ReadModelSettings
from config.kafka import KafkaSettings
from config.live import LiveSettings
from config.load import load
from config.settings import Settings
from config.sinks import SinkSettings
from config.topics import DEVICE_SIGNALS
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import until
from tests.helpers.sinks import a_signal

pytestmark = pytest.mark.broker


async def send(broker: str, topic: str, *records: tuple[bytes, bytes | None]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker) as producer:
        for key, value in records:
            await producer.send_and_wait(topic, value, key=key)


async def test_the_registry_refuses_nobody_before_it_is_whole_and_strangers_afterwards(
    broker: str, new_topic: TopicFactory
) -> None:
    topic = new_topic(partitions=2, **{"cleanup.policy": "compact"})
    await send(broker, topic, (b"press-0001", b"{}"), (b"press-0002", b"{}"), (b"press-0002", None))
    kafka = KafkaSettings(bootstrap_servers=broker)
    registry = DeviceRegistry(kafka, broker, ReadModelSettings(), topic)
    assert "anybody" in registry
    stop = asyncio.Event()
    following = asyncio.create_task(registry.run(stop))
    async with asyncio.timeout(20):
        await registry.complete()
    assert [name in registry for name in ("press-0001", "press-0002", "anybody")] == [True, False, False]
    await send(broker, topic, (b"pump-0001", b"{}"))
    await until(lambda: "pump-0001" in registry, "a device that came later is known")
    stop.set()
    await following


async def test_a_running_producer_takes_on_hot_settings_and_leaves_the_others(
    broker: str, new_topic: TopicFactory, tmp_path: Path
) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(f"kafka: {{bootstrap_servers: '{broker}'}}\nproducer: {{flush_interval_ms: 60000}}\n")
    live = LiveSettings(load(file, environ={}))
    context = Context(
        live.current, lambda: live.current, HealthRegistry(frozenset(), "1"), asyncio.Event(), SystemClock(),
        live.subscribe,
    )  # fmt: skip
    topic = new_topic(partitions=1)
    async with context.producer("test") as producer:
        await producer.partitions(topic)
        file.write_text(
            f"kafka: {{bootstrap_servers: '{broker}'}}\n"
            "producer: {flush_interval_ms: 5, batch_size: 10, worker_count: 2}\n"
        )
        live.apply(load(file, environ={}))
        assert (producer.limits.batch_records, producer.limits.batches_in_flight) == (10, 8)
        assert producer.send_nowait(topic, b"k", b"v", context.clock.now_ms())
        await until(lambda: producer.buffered_records == 0, "the record is sent long before the old minute is over")


async def test_a_sink_whose_target_is_away_is_watched_and_does_not_stand_still(module_broker: str) -> None:
    settings = Settings(kafka={"bootstrap_servers": module_broker})
    await ensure_topics(module_broker, [DEVICE_SIGNALS], KafkaSettings(partitions=1))
    await send(module_broker, DEVICE_SIGNALS.name, (b"press-0001", orjson.dumps(a_signal().row)))
    health, stop = HealthRegistry(frozenset(), "1"), asyncio.Event()
    target = SinkSettings(
        name="away",
        kind="http",
        url="http://127.0.0.1:1/",
        topics=(DEVICE_SIGNALS.name,),
        allow_private_addresses=True,
        retry_first_ms=10,
    )
    running = asyncio.create_task(run_sink(Context(settings, lambda: settings, health, stop, SystemClock()), target))
    await until(lambda: "retrying, lag 1" in str(health.ready()), "it has a record, and nowhere to write it", 60)
    first = health.watched["sink away"]()
    await until(lambda: health.watched["sink away"]().processed > first.processed, "it goes on trying")
    assert first.lag == 0
    stop.set()
    await running
    assert "sink away" not in health.watched
