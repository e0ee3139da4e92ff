"""`bench transform` and `bench rollup`: a loaded topic worked off, beside other stream processors."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from app.bench import environments, golden
from app.bench.broker import INPUT_TOPIC, OUTPUT_TOPIC, PARTITIONS, WARM_UP_SHARE, BenchBroker
from app.bench.child import Child, SideFailed, start
from app.bench.environments import Command, Say
from app.bench.payload import WINDOW_MS, Plan, flush_samples, plan_until, samples
from app.bench.result import Result, Run
from app.bench.series import machine, series
from app.bench.side import OURS, Effort, Progress, Side, our_module

RUN_TIMEOUT_S = 120.0
# The look at the end offsets that says how far a side is; it costs the broker one small request.
POLL_S = 0.1
UNIT = "input records/s"

_STREAMS = "at_least_once, one thread, acks=all, idempotent, linger 100 ms, offsets committed every 30 s"
_QUIX = "at-least-once, acks=all, librdkafka defaults (not idempotent), offsets committed every 5 s"
_FAUST = "at_least_once, acks=all, not idempotent, linger 0, offsets committed every 2.8 s"

TRANSFORM_SIDES = (
    Side(
        OURS,
        our_module("app.bench.ours.transform"),
        "at-least-once, acks=all, idempotent; offsets committed only after the outputs of their batch are acknowledged",
    ),
    Side("kafka-streams", partial(environments.kafka_streams, "Forward"), _STREAMS, target=1.5),
    Side(
        "quix",
        partial(environments.python_peer, "quix", "quix_processor.py"),
        _QUIX,
        share=0.25,
        target=3,
    ),
    Side(
        "faust",
        partial(environments.python_peer, "faust", "faust_processor.py"),
        _FAUST,
        share=0.03,
        target=30,
    ),
)
ROLLUP_SIDES = (
    Side(
        OURS,
        our_module("app.bench.ours.rollup"),
        "at-least-once; state, applied offset and outputs in one RocksDB WriteBatch (WAL on, no fsync), changelog on, "
        "state logging on; outputs and changelog acknowledged (acks=all, idempotent) before the offsets are committed",
    ),
    Side(
        "kafka-streams",
        partial(environments.kafka_streams, "Rollup"),
        f"{_STREAMS}; RocksDB window store (no WAL), changelog on, record cache 10 MB (stock), "
        "suppress(untilWindowCloses)",
        target=1,
    ),
    Side(
        "quix",
        partial(environments.python_peer, "quix", "quix_processor.py"),
        f"{_QUIX}; RocksDB state and changelog written every commit, final windows",
        share=0.25,
        target=3,
    ),
    Side(
        "faust",
        partial(environments.python_peer, "faust", "faust_processor.py"),
        f"{_FAUST}; RocksDB table and changelog on, changelog not awaited",
        share=0.02,
    ),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What differs between map-and-forward and the rollup."""

    name: str
    records: Callable[[int], int]
    outputs: Callable[[Plan], int]
    check: golden.Check
    flushed: bool


def _whole_windows(records: int) -> int:
    """At least three whole windows of a thousand devices."""
    block = 1000 * WINDOW_MS // 1000
    return max(3, round(records / block)) * block


TRANSFORM = Work("transform", lambda n: max(1, n), lambda plan: plan.records, golden.check_converted, flushed=False)
ROLLUP = Work("rollup", _whole_windows, golden.window_count, golden.check_rollups, flushed=True)


async def bench_transform(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    """Parse, convert one value, add a field, write on: beside Kafka Streams, Quix Streams and stock Faust."""
    return await _bench(TRANSFORM, TRANSFORM_SIDES, broker, effort, say, progress)


async def bench_rollup(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    """Tumbling windows of 10 s a device with durable state, one final row each: beside the same peers."""
    return await _bench(ROLLUP, ROLLUP_SIDES, broker, effort, say, progress)


@dataclass(slots=True)
class _Inputs:
    """Input topics by size, each loaded once and read by every side of that size."""

    broker: BenchBroker
    work: Work
    say: Say
    loaded: dict[int, tuple[str, Plan]] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)

    async def of(self, records: int) -> tuple[str, Plan]:
        if records not in self.loaded:
            self.say(f"loading {records:,} records")
            topic = await self.broker.create_topic("in", INPUT_TOPIC)
            plan = plan_until(int(time.time() * 1000), records)
            await self.broker.loaded(topic, samples(plan))
            if self.work.flushed:
                await self.broker.loaded(topic, flush_samples(plan))
            self.loaded[records] = (topic, plan)
        return self.loaded[records]


async def _bench(
    work: Work, sides: tuple[Side, ...], broker: BenchBroker, effort: Effort, say: Say, progress: Progress
) -> Result:
    inputs = _Inputs(broker, work, say)

    async def measure(side: Side, command: Command, run: int) -> Run:
        topic, plan = await inputs.of(work.records(round(effort.records * side.share)))
        return await _measure(inputs, side, command, run, topic, plan, progress)

    settings = {
        **machine(),
        "records": work.records(effort.records),
        "records_by_side": {s.name: work.records(round(effort.records * s.share)) for s in sides},
        "payload_bytes": len(next(samples(Plan(1, 1_763_689_000_000))).value),
        "devices": 1000,
        "partitions": PARTITIONS,
        "input": "loaded beforehand in batches of 1,000 records, keyed by device, murmur2",
        "measured": "from a fifth of the work (warm-up) to the last output by the broker's clock; `from_launch` from "
        "the start of the process, so with its start-up and warm-up",
        "golden": "outputs compared with the expected ones in every side's first run",
        **({"window_ms": WINDOW_MS} if work is ROLLUP else {}),
        **await broker.facts(),
    }
    return await series(work.name, UNIT, sides, effort, settings, measure, say)


async def _measure(
    inputs: _Inputs, side: Side, command: Command, run: int, topic: str, plan: Plan, progress: Progress
) -> Run:
    broker, work = inputs.broker, inputs.work
    output = await broker.create_topic("out", OUTPUT_TOPIC)
    group = broker.name("group")
    specification = _specification(broker, side, work, plan, topic, output, group)
    expected = work.outputs(plan)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        launched_ms = time.time() * 1000
        child = await start(command.argv, Path(folder), specification)
        try:
            await _until_done(broker, child, output, expected, lambda n: progress(side.name, n, expected))
        finally:
            await child.stop()
    appended = await broker.count(output)
    if appended != expected:
        raise SideFailed(f"the output has {appended:,} records, {expected:,} were expected")
    if side.name not in inputs.checked:
        await work.check(broker, topic, output, plan)
        inputs.checked.add(side.name)
    run_record = await _figures(broker, work, side, run, child, plan, output, launched_ms)
    await broker.delete_topics(output)
    await broker.delete_topics(group)
    return run_record


def _specification(
    broker: BenchBroker, side: Side, work: Work, plan: Plan, topic: str, output: str, group: str
) -> dict[str, Any]:
    return {
        "bootstrap": broker.bootstrap_servers,
        "work": work.name,
        "input": topic,
        "output": output,
        "group": group,
        "partitions": PARTITIONS,
        "window_ms": WINDOW_MS,
        **({"mark_at_records": mark_at(plan), "end_at_records": plan.records + plan.devices} if work.flushed else {}),
        **side.options,
    }


def mark_at(plan: Plan) -> int:
    """The number of handled records at which a side says that its warm-up is over."""
    return int(plan.records * WARM_UP_SHARE)


async def _until_done(
    broker: BenchBroker, child: Child, output: str, expected: int, seen: Callable[[int], None]
) -> None:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while (count := await broker.count(output)) < expected:
        seen(count)
        child.check()
        child.sample_usage()
        if time.monotonic() > deadline:
            heard = " | ".join(list(child.heard)[-4:])
            raise SideFailed(f"{count:,} of {expected:,} outputs in {RUN_TIMEOUT_S:.0f} s: {heard or 'no output'}")
        await asyncio.sleep(POLL_S)
    seen(count)
    child.sample_usage()


async def _figures(
    broker: BenchBroker, work: Work, side: Side, run: int, child: Child, plan: Plan, output: str, launched_ms: float
) -> Run:
    appends = await broker.append_times(output)
    from_launch = plan.records * 1000 / (appends.last_ms - launched_ms)
    if work is TRANSFORM:
        steady = appends.steady
    else:
        # Outputs of windows come in bursts, so the warm-up ends where the side had read a fifth of its input.
        mark = child.events.get("mark")
        if mark is None:
            raise SideFailed("never told when a fifth of the input was read")
        span_ms = appends.last_ms - float(mark["at_ms"])
        steady = (plan.records - mark_at(plan)) * 1000 / span_ms if span_ms >= 50 else None
    figures = {
        "records": plan.records,
        "from_launch": round(from_launch, 1),
        "cpu_s": round(child.usage.cpu_s, 2),
        "rss_mb": round(child.usage.rss_mb, 1),
        "records_per_cpu_s": round(plan.records / child.usage.cpu_s) if child.usage.cpu_s else None,
    }
    return Run(run, side.name, float(from_launch if steady is None else steady), figures)
