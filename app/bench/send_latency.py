"""`bench send-latency`: 10,000 messages a second, open loop, from the intended instant to acknowledgement."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.bench.broker import INPUT_TOPIC, PARTITIONS, BenchBroker
from app.bench.child import SideFailed, Usage, start
from app.bench.environments import Say
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress, our_module
from app.bench.statistics import Latency, median_latency
from config.producer import ProducerSettings

DEVICES = 1000
RATE = 10_000
SECONDS = 60
FINISH_TIMEOUT_S = 60.0
PROMISES = {"p95_ms": 100, "mean_ms": 50, "errors": 0, "rss_mb": 400}


async def bench_send_latency(
    broker: BenchBroker, runs: int, seconds: int, say: Say, progress: Progress, rate: int = RATE
) -> Result:
    """The fleet of a thousand devices with the product's own producer settings, in a process of its own."""
    producer = ProducerSettings()
    done: list[Run] = []
    rows: list[Latency] = []
    for number in range(runs):
        run, latency = await _measure(broker, number, producer, rate, seconds, progress)
        done.append(run)
        rows.append(latency)
        say(f"run {number + 1}/{runs}: p95 {latency.p95:.1f} ms, mean {run.figures['mean_ms']:.1f} ms")
    settings = {
        **machine(),
        "rate": rate,
        "devices": DEVICES,
        "seconds": seconds,
        "partitions": PARTITIONS,
        "loop": "open: a reading's latency counts from the instant it was due, whatever the producer did meanwhile",
        "durability": {OURS: "acks=all, idempotent" if producer.idempotence else f"acks={producer.acks}"},
        "producer": producer.model_dump(mode="json"),
        "promises": PROMISES,
        **await broker.facts(),
    }
    return Result("send-latency", "ms", median_latency(rows).as_dict(), {}, settings, tuple(done))


def limits_of(producer: ProducerSettings) -> dict[str, Any]:
    """The settings of the service as the producer takes them."""
    return {
        "batch_records": producer.batch_size,
        "batch_bytes": producer.max_batch_bytes,
        "flush_interval_ms": producer.flush_interval_ms,
        "batches_in_flight": producer.worker_count,
        "buffer_records": producer.buffer_records,
        "compression": None if producer.compression == "none" else producer.compression,
        "acks": producer.acks,
        "idempotent": producer.idempotence,
    }


async def fleet_run(
    specification: Mapping[str, Any], folder: Path, seconds: int, progress: Progress
) -> tuple[dict[str, Any], Usage]:
    """Run the fleet process to its end: what it tells, and what it took while it sent (not while it started)."""
    command = our_module("app.bench.ours.fleet")(lambda _: None)
    child = await start(command.argv, folder, specification)
    try:
        await child.until("ready", FINISH_TIMEOUT_S)
        before_s = child.sample_usage().cpu_s
        result = await child.until("result", seconds + FINISH_TIMEOUT_S, lambda s: progress(OURS, int(s), seconds))
    finally:
        await child.stop()
    return result, Usage(child.usage.cpu_s - before_s, child.usage.rss_mb)


async def _measure(
    broker: BenchBroker, number: int, producer: ProducerSettings, rate: int, seconds: int, progress: Progress
) -> tuple[Run, Latency]:
    topic = await broker.create_topic("telemetry", INPUT_TOPIC)
    facts = await broker.create_topic("facts", {})
    specification = {
        "bootstrap": broker.bootstrap_servers,
        "topic": topic,
        "facts": facts,
        "seconds": seconds,
        # Faults would make the rate uneven; they are the business of other tests.
        "device": {"count": DEVICES, "sample_interval_ms": DEVICES * 1000 // rate, "fault_interval_ms": 0},
        "producer": limits_of(producer),
    }
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        result, usage = await fleet_run(specification, Path(folder), seconds, progress)
    there = await broker.count(topic)
    for name in (topic, facts):
        await broker.delete_topics(name)
    if there != result["acknowledged"]:
        raise SideFailed(f"{result['acknowledged']:,} records were acknowledged, the broker has {there:,}")
    latency = Latency(**result["latency_ms"])
    figures = {
        "mean_ms": round(float(result["mean_ms"]), 3),
        "messages_per_s": round(there / seconds, 1),
        "generated": result["generated"],
        "errors": result["generated"] - there,
        "dropped": result["dropped"],
        "ledger_balances": result["balances"],
        "rss_mb": round(usage.rss_mb, 1),
        "cpu_percent_of_one": round(100 * usage.cpu_s / seconds, 1),
    }
    return Run(number, OURS, latency.as_dict(), figures), latency
