"""`bench spool`: what a broker's absence of ten minutes left on disk, sent to the broker that is back."""

import tempfile
import time
from pathlib import Path
from typing import Any

from app.bench.broker import INPUT_TOPIC, PARTITIONS, BenchBroker
from app.bench.child import SideFailed, Usage, start
from app.bench.environments import Say
from app.bench.payload import plan_until
from app.bench.result import Result, Run
from app.bench.send_latency import limits_of
from app.bench.series import machine
from app.bench.side import OURS, Progress, our_module
from app.bench.statistics import median
from config.producer import ProducerSettings
from config.spool import SpoolSettings

RATE = 10_000
SECONDS = 600
TIMEOUT_S = 900.0
PROMISES = {"times_real_time": 5, "lost": 0}


async def bench_spool(broker: BenchBroker, runs: int, records: int, say: Say, progress: Progress) -> Result:
    """Fill a spool with `records` readings, then send them by a successor; records a second to the last one's end."""
    done: list[Run] = []
    rates: list[float] = []
    for number in range(runs):
        run = await _measure(broker, number, records, progress)
        done.append(run)
        assert isinstance(run.value, float)
        rates.append(run.value)
        say(f"run {number + 1}/{runs}: {run.value:,.0f} readings/s, {run.value / RATE:.1f} times real time")
    settings = {
        **machine(),
        "records": records,
        "recorded_at_per_s": RATE,
        "seconds_of_absence": round(records / RATE, 1),
        "partitions": PARTITIONS,
        "filled": "as fast as the disk takes it, by the code that keeps the fleet's readings",
        "measured": "from the opening of the folder to the last acknowledgement; lost: by the end offsets",
        "durability": {OURS: "on disk until acknowledged by all in-sync replicas; forced to the disk each second"},
        "promises": PROMISES,
        **await broker.facts(),
    }
    return Result("spool", "readings/s", median(rates), {}, settings, tuple(done))


async def _measure(broker: BenchBroker, number: int, records: int, progress: Progress) -> Run:
    topic = await broker.create_topic("spool", INPUT_TOPIC)
    spool = SpoolSettings()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        specification = {
            "bootstrap": broker.bootstrap_servers,
            "topic": topic,
            "records": records,
            "start_ms": plan_until(int(time.time() * 1000), records).start_ms,
            "folder": str(Path(folder) / "spool"),
            "segment_bytes": spool.segment_bytes,
            "fsync_interval_ms": spool.fsync_interval_ms,
            "producer": limits_of(ProducerSettings()),
        }
        filled, _ = await _side({**specification, "do": "fill"}, records, progress)
        result, usage = await _side({**specification, "do": "send"}, records, progress)
    there = await broker.count(topic)
    await broker.delete_topics(topic)
    if (there, result["acknowledged"], result["recovered"]) != (records, records, records):
        raise SideFailed(
            f"{records:,} readings were written, {result['recovered']:,} found, {result['acknowledged']:,}"
            f" acknowledged, and the broker has {there:,}"
        )
    rate = records / result["send_s"]
    figures = {
        "times_real_time": round(rate / RATE, 2),
        "lost": records - there,
        "spool_mb": round(filled["spool_bytes"] / 1e6, 1),
        "fill_records_per_s": round(records / filled["fill_s"]),
        "found_s": round(result["found_s"], 3),
        "send_s": round(result["send_s"], 2),
        "cpu_s": round(usage.cpu_s, 2),
        "rss_mb": round(usage.rss_mb, 1),
        "ledger_balances": result["balances"],
    }
    return Run(number, OURS, float(rate), figures)


async def _side(specification: dict[str, Any], records: int, progress: Progress) -> tuple[dict[str, Any], Usage]:
    """One process to its end: what it tells, and what it took."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        child = await start(our_module("app.bench.ours.spool")(lambda _: None).argv, Path(folder), specification)

        def told(_: float) -> None:
            progress(specification["do"], child.events.get("progress", {}).get("done", 0), records)

        try:
            return await child.until("result", TIMEOUT_S, told), child.usage
        finally:
            await child.stop()
