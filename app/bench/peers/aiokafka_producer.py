"""aiokafka as its manual shows it: every send awaited, or many sends with their futures; in its own environment."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from aiokafka import AIOKafkaProducer


def load(spec: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """(key, value) of every line; built before the clock starts, as on every side."""
    lines = Path(spec["payload_path"]).read_bytes().splitlines()
    return [(json.loads(line)["device_id"].encode(), line) for line in lines]


async def one_by_one(producer: Any, spec: dict[str, Any], payload: list[tuple[bytes, bytes]]) -> None:
    """Wait for each acknowledgement before the next record."""
    for index in range(spec["records"]):
        key, value = payload[index % len(payload)]
        await producer.send_and_wait(spec["topic"], value, key, timestamp_ms=spec["timestamp_ms"])


async def many(producer: Any, spec: dict[str, Any], payload: list[tuple[bytes, bytes]]) -> None:
    """Hand over records as fast as the client takes them; the acknowledgements are awaited one block behind."""
    left = spec["records"]
    waiting: list[asyncio.Future[Any]] = []
    while left > 0:
        block = [
            await producer.send(spec["topic"], value, key, timestamp_ms=spec["timestamp_ms"])
            for key, value in payload[:left]
        ]
        left -= len(payload)
        await asyncio.gather(*waiting)
        waiting = block
    await asyncio.gather(*waiting)


async def run(spec: dict[str, Any]) -> None:
    payload = load(spec)
    producer = AIOKafkaProducer(
        bootstrap_servers=spec["bootstrap"],
        acks="all",
        enable_idempotence=True,
        # A lone awaited send would only wait out the linger.
        linger_ms=0 if spec["mode"] == "one-by-one" else spec["linger_ms"],
        max_batch_size=spec["batch_bytes"],
        max_request_size=spec["batch_bytes"] * 5,
    )
    await producer.start()
    try:
        await producer.partitions_for(spec["topic"])
        print(json.dumps({"event": "ready"}), flush=True)
        started = time.perf_counter()
        await (one_by_one if spec["mode"] == "one-by-one" else many)(producer, spec, payload)
        elapsed = time.perf_counter() - started
        print(json.dumps({"event": "result", "elapsed_s": elapsed, "errors": 0}), flush=True)
    finally:
        await producer.stop()


uvloop.run(run(json.loads(Path(sys.argv[-1]).read_text())))
