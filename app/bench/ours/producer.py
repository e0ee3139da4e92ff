"""Our batched producer in the producer benchmark: a payload file sent as fast as the broker takes it."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from app.adapters import collector
from app.adapters.producer import BatchProducer, ProducerLimits
from app.ports import OutRecord

LIST_RECORDS = 1_000
LISTS_UNDER_WAY = 16


def load(spec: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """(key, value) of every line; built before the clock starts, as on every side."""
    lines = Path(spec["payload_path"]).read_bytes().splitlines()
    return [(json.loads(line)["device_id"].encode(), line) for line in lines]


async def in_batches(producer: BatchProducer, spec: dict[str, Any], payload: list[tuple[bytes, bytes]]) -> None:
    """Publish lists of a thousand records, a few at a time; each waits for its acknowledgement."""
    topic, timestamp_ms = spec["topic"], spec["timestamp_ms"]
    where, make = producer.partition_of, tuple.__new__
    slots = asyncio.Semaphore(LISTS_UNDER_WAY)

    async def publish(records: list[OutRecord]) -> None:
        await producer.publish(records)
        slots.release()

    async with asyncio.TaskGroup() as group:
        for first in range(0, spec["records"], LIST_RECORDS):
            await slots.acquire()
            at = first % len(payload)
            part = payload[at : at + min(LIST_RECORDS, spec["records"] - first)]
            records = [
                make(OutRecord, (topic, key, value, timestamp_ms, (), where(topic, key), None)) for key, value in part
            ]
            group.create_task(publish(records))


async def one_by_one(producer: BatchProducer, spec: dict[str, Any], payload: list[tuple[bytes, bytes]]) -> None:
    """Wait for each acknowledgement before the next record."""
    for index in range(spec["records"]):
        key, value = payload[index % len(payload)]
        await producer.publish([OutRecord(spec["topic"], key, value, spec["timestamp_ms"])])


async def run(spec: dict[str, Any]) -> None:
    payload = load(spec)
    collector.widen()  # as every process of the service does
    failed = 0

    def delivered(_topic: str, count: int, reason: str | None) -> None:
        nonlocal failed
        failed += count if reason else 0

    limits = ProducerLimits(
        bootstrap_servers=spec["bootstrap"],
        flush_interval_ms=spec["linger_ms"],
        batch_bytes=spec["batch_bytes"],
        buffer_bytes=spec["buffer_bytes"],
        buffer_records=20_000,
    )
    async with BatchProducer(limits, delivered) as producer:
        await producer.partitions(spec["topic"])
        print(json.dumps({"event": "ready"}), flush=True)
        started = time.perf_counter()
        await (one_by_one if spec["mode"] == "one-by-one" else in_batches)(producer, spec, payload)
        elapsed = time.perf_counter() - started
        print(json.dumps({"event": "result", "elapsed_s": elapsed, "errors": failed}), flush=True)


if __name__ == "__main__":
    uvloop.run(run(json.loads(Path(sys.argv[-1]).read_text())))
