"""`bench producer` and `bench batch-vs-single`: records sent and acknowledged a second, beside other clients."""

import re
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from app.bench import environments
from app.bench.broker import OUTPUT_TOPIC, PARTITIONS, BenchBroker
from app.bench.child import Child, SideFailed, start
from app.bench.environments import Command, Say
from app.bench.payload import PAYLOAD_FILE_RECORDS, plan_until, samples
from app.bench.result import Result, Run
from app.bench.series import machine, series
from app.bench.side import OURS, Effort, Side, our_module

LINGER_MS = 5
BATCH_BYTES = 1_000_000
BUFFER_BYTES = 64 << 20
RUN_TIMEOUT_S = 180.0
PERF_TEST = "kafka-producer-perf-test"
_PERF_LINE = re.compile(r"^(\d+) records sent, ([\d.]+) records/sec .*avg latency")

_IDEMPOTENT = "acks=all, idempotent, 5 requests in flight"
_SAME_BATCH = f"linger {LINGER_MS} ms, batches up to {BATCH_BYTES:,} bytes"

PRODUCER_SIDES = (
    Side(
        OURS,
        our_module("app.bench.ours.producer"),
        f"acks=all, idempotent, 2 batches in flight a partition, flush interval {LINGER_MS} ms, "
        f"batches up to 1,000 records or {BATCH_BYTES:,} bytes",
        {"mode": "batch"},
    ),
    Side(
        PERF_TEST,
        environments.producer_performance,
        f"{_IDEMPOTENT}, {_SAME_BATCH}; sends records without keys and draws payloads at random",
        {"batch_bytes": BATCH_BYTES},
        target=1.5,
    ),
    Side(
        f"{PERF_TEST}-stock",
        environments.producer_performance,
        f"{_IDEMPOTENT}, linger 5 ms, batches of 16,384 bytes (the client's defaults); no keys",
        {"batch_bytes": 16_384},
    ),
    Side(
        "confluent-kafka",
        partial(environments.python_peer, "confluent", "confluent_producer.py"),
        f"{_IDEMPOTENT}, {_SAME_BATCH}; produce() a record, reports on errors only",
        {"mode": "single"},
        target=1.5,
    ),
    Side(
        "confluent-kafka-reports",
        partial(environments.python_peer, "confluent", "confluent_producer.py"),
        f"{_IDEMPOTENT}, {_SAME_BATCH}; produce() a record, a delivery report a record, as its manual shows",
        {"mode": "reports"},
    ),
    Side(
        "confluent-kafka-batch",
        partial(environments.python_peer, "confluent", "confluent_producer.py"),
        f"{_IDEMPOTENT}, {_SAME_BATCH}; produce_batch() of 1,000, which cannot carry the source timestamp",
        {"mode": "batch"},
    ),
    Side(
        "aiokafka-send",
        partial(environments.python_peer, "aiokafka", "aiokafka_producer.py"),
        f"acks=all, idempotent, 1 request in flight, {_SAME_BATCH}; send() a record, futures awaited a block behind",
        {"mode": "many"},
        share=0.3,
    ),
)
SINGLE_SIDES = (
    PRODUCER_SIDES[0],
    Side(
        "one-by-one",
        partial(environments.python_peer, "aiokafka", "aiokafka_producer.py"),
        "acks=all, idempotent, aiokafka send_and_wait of each record before the next, linger 0",
        {"mode": "one-by-one"},
        share=0.005,
        target=50,
    ),
    Side(
        "one-by-one-ours",
        our_module("app.bench.ours.producer"),
        "acks=all, idempotent, our producer, publish() of one record before the next",
        {"mode": "one-by-one"},
        share=0.005,
    ),
)


async def bench_producer(broker: BenchBroker, effort: Effort, say: Say) -> Result:
    """Ours beside the Java tool, confluent-kafka and aiokafka's own `send`."""
    return await _bench("producer", PRODUCER_SIDES, broker, effort, say)


async def bench_batch_vs_single(broker: BenchBroker, effort: Effort, say: Say) -> Result:
    """Batches of a thousand beside one awaited send after the other."""
    return await _bench("batch-vs-single", SINGLE_SIDES, broker, effort, say)


async def _bench(name: str, sides: tuple[Side, ...], broker: BenchBroker, effort: Effort, say: Say) -> Result:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        payload, mean_bytes, timestamp_ms = _payload_file(Path(folder))
        common = {
            "bootstrap": broker.bootstrap_servers,
            "payload_path": str(payload),
            "linger_ms": LINGER_MS,
            "batch_bytes": BATCH_BYTES,
            "buffer_bytes": BUFFER_BYTES,
            "timestamp_ms": timestamp_ms,
        }

        async def measure(side: Side, command: Command, run: int) -> Run:
            records = max(1, round(effort.records * side.share))
            return await _measure(broker, side, command, run, {**common, **side.options, "records": records})

        settings = {
            **machine(),
            "records": effort.records,
            "payload_bytes_mean": mean_bytes,
            "partitions": PARTITIONS,
            "compression": "none",
            "buffer_bytes": BUFFER_BYTES,
            "measured": "append times of the broker over the last 80 % of the records (the first fifth warms up); "
            "`total` from the first send to the last acknowledgement",
            **await broker.facts(),
        }
        return await series(name, "records/s", sides, effort, settings, measure, say)


def _payload_file(folder: Path) -> tuple[Path, float, int]:
    """Ten thousand samples, a line each; every side takes its payloads from this file."""
    plan = plan_until(int(time.time() * 1000), PAYLOAD_FILE_RECORDS)
    lines = [record.value for record in samples(plan)]
    path = folder / "payload.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, round(sum(map(len, lines)) / len(lines), 1), plan.start_ms


async def _measure(broker: BenchBroker, side: Side, command: Command, run: int, common: dict[str, Any]) -> Run:
    topic = await broker.create_topic("out", OUTPUT_TOPIC)
    specification = {**common, "topic": topic}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        if side.name.startswith(PERF_TEST):
            child = await start((*command.argv, *_perf_arguments(specification)), Path(folder))
        else:
            child = await start(command.argv, Path(folder), specification)
        try:
            elapsed_s, errors = await _finished(child, side, specification["records"])
        finally:
            await child.stop()
    figures = await _verified(broker, topic, specification["records"], errors)
    await broker.delete_topics(topic)
    total = specification["records"] / elapsed_s
    steady = figures.pop("steady")
    figures.update(total=round(total, 1), cpu_s=round(child.usage.cpu_s, 2), rss_mb=round(child.usage.rss_mb, 1))
    return Run(run, side.name, float(total if steady is None else steady), figures)


async def _finished(child: Child, side: Side, records: int) -> tuple[float, int]:
    """(seconds from the first send to the last acknowledgement, errors) as the side itself saw them."""
    if not side.name.startswith(PERF_TEST):
        result = await child.until("result", RUN_TIMEOUT_S)
        return float(result["elapsed_s"]), int(result["errors"])
    await child.ended(RUN_TIMEOUT_S)
    for line in reversed(child.heard):
        if (found := _PERF_LINE.match(line)) and int(found[1]) == records:
            return records / float(found[2]), 0
    raise SideFailed(f"printed no summary: {' | '.join(list(child.heard)[-6:])}")


async def _verified(broker: BenchBroker, topic: str, records: int, errors: int) -> dict[str, Any]:
    """Nothing counts that the broker does not have: its end offsets must give every record once."""
    found = await broker.count(topic)
    if errors or found != records:
        raise SideFailed(f"{errors} errors; the broker has {found:,} of {records:,} records")
    return {"records": records, "steady": (await broker.append_times(topic)).steady}


def _perf_arguments(spec: dict[str, Any]) -> tuple[str, ...]:
    properties = {
        "bootstrap.servers": spec["bootstrap"],
        "acks": "all",
        "enable.idempotence": "true",
        "max.in.flight.requests.per.connection": "5",
        "linger.ms": spec["linger_ms"],
        "batch.size": spec["batch_bytes"],
        "buffer.memory": spec["buffer_bytes"],
        "max.request.size": max(1_048_576, spec["batch_bytes"] * 5),
        "compression.type": "none",
    }
    return (
        "--topic", spec["topic"],
        "--num-records", str(spec["records"]),
        "--throughput", "-1",
        "--payload-file", spec["payload_path"],
        "--producer-props", *(f"{name}={value}" for name, value in properties.items()),
    )  # fmt: skip
