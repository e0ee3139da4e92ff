"""`bench capacity`: memory and CPU of the producer process at a few loads, and the coefficients they give."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.bench.broker import INPUT_TOPIC, BenchBroker
from app.bench.environments import Say
from app.bench.result import Result, Run
from app.bench.send_latency import fleet_run, limits_of
from app.bench.series import machine
from app.bench.side import OURS, Progress
from app.domain.capacity import Load, Observation, fitted
from config.producer import ProducerSettings

SECONDS = 6
# Loads that differ in one influence at a time, and one that differs in all.
LOADS = (
    Load(100, 1_000, 0),
    Load(1_000, 1_000, 0),
    Load(1_000, 10_000, 0),
    Load(5_000, 5_000, 0),
    Load(1_000, 1_000, 50_000),
)


async def bench_capacity(
    broker: BenchBroker, seconds: int, say: Say, progress: Progress, loads: Sequence[Load] = LOADS
) -> Result:
    """Run the fleet at each load for `seconds` and fit the planner's formulas to what it took."""
    producer = ProducerSettings()
    seen: list[Observation] = []
    runs: list[Run] = []
    for number, load in enumerate(loads):
        observed = await _observe(broker, load, producer, seconds, progress)
        say(f"{load.devices} devices, {load.messages_per_s:,.0f}/s: {observed.memory_mb:.0f} MB")
        seen.append(observed)
        value = {"memory_mb": round(observed.memory_mb, 1), "cpu_millicores": round(observed.cpu_millicores, 1)}
        runs.append(Run(number, OURS, value, load._asdict()))
    settings = {
        **machine(),
        "seconds": seconds,
        "process": "the producer: fleet and batched producer",
        "memory": "largest resident size",
        "producer": producer.model_dump(mode="json"),
    }
    ours = {name: round(value, 6) for name, value in fitted(seen)._asdict().items()}
    return Result("capacity", "MB and millicores", ours, {}, settings, tuple(runs))


async def _observe(
    broker: BenchBroker, load: Load, producer: ProducerSettings, seconds: int, progress: Progress
) -> Observation:
    topic = await broker.create_topic("telemetry", INPUT_TOPIC)
    facts = await broker.create_topic("facts", {})
    specification: dict[str, Any] = {
        "bootstrap": broker.bootstrap_servers,
        "topic": topic,
        "facts": facts,
        "seconds": seconds,
        "buffered_records": load.buffered_records,
        "device": {
            "count": load.devices,
            "sample_interval_ms": round(load.devices * 1000 / load.messages_per_s),
            "fault_interval_ms": 0,
        },
        "producer": limits_of(producer),
    }
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        _, usage = await fleet_run(specification, Path(folder), seconds, progress)
    for name in (topic, facts):
        await broker.delete_topics(name)
    return Observation(load, usage.rss_mb, usage.cpu_s * 1000 / seconds)
