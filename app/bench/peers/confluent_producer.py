"""confluent-kafka: keyed records of a payload file, idempotent, acks=all; run in its own environment."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Producer


def load(spec: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """(key, value) of every line; built before the clock starts, as on every side."""
    lines = Path(spec["payload_path"]).read_bytes().splitlines()
    return [(json.loads(line)["device_id"].encode(), line) for line in lines]


def connect(spec: dict[str, Any]) -> Any:
    return Producer(
        {
            "bootstrap.servers": spec["bootstrap"],
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": spec["linger_ms"],
            "batch.size": spec["batch_bytes"],
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": spec["buffer_bytes"] // 1024,
            "compression.type": "none",
            "partitioner": "murmur2",
            # Reports of success cost a Python call a record; without them the harness still counts by end offsets.
            "delivery.report.only.error": spec["mode"] != "reports",
        }
    )


def produce_one_by_one(
    producer: Any, spec: dict[str, Any], payload: list[tuple[bytes, bytes]], errors: list[str]
) -> None:
    topic, left, produce, poll = spec["topic"], spec["records"], producer.produce, producer.poll
    timestamp_ms = spec["timestamp_ms"]

    def report(error: Any, _: Any) -> None:
        if error is not None:
            errors.append(str(error))

    while left > 0:
        for key, value in payload[:left]:
            while True:
                try:
                    produce(topic, value, key, -1, report, timestamp_ms)
                    break
                except BufferError:
                    poll(0.01)
        left -= len(payload)
        poll(0)


def produce_in_batches(
    producer: Any, spec: dict[str, Any], payload: list[tuple[bytes, bytes]], errors: list[str]
) -> None:
    """`produce_batch` of a thousand; it takes no timestamps, so the broker's input here lacks the source time."""

    def report(error: Any, _: Any) -> None:
        errors.append(str(error))

    left = spec["records"]
    while left > 0:
        for start in range(0, min(left, len(payload)), 1000):
            messages = [{"key": k, "value": v} for k, v in payload[start : min(left, start + 1000)]]
            while messages:
                try:
                    queued = producer.produce_batch(spec["topic"], messages, on_delivery=report)
                except BufferError:
                    queued = 0
                if queued == len(messages):
                    break
                messages = [{"key": m["key"], "value": m["value"]} for m in messages if queued == 0 or "_error" in m]
                producer.poll(0.01)
            producer.poll(0)
        left -= len(payload)


def main() -> None:
    spec = json.loads(Path(sys.argv[-1]).read_text())
    payload = load(spec)
    producer = connect(spec)
    producer.list_topics(spec["topic"], 10)
    errors: list[str] = []
    print(json.dumps({"event": "ready"}), flush=True)
    started = time.perf_counter()
    (produce_in_batches if spec["mode"] == "batch" else produce_one_by_one)(producer, spec, payload, errors)
    left = producer.flush(60)
    elapsed = time.perf_counter() - started
    print(json.dumps({"event": "result", "elapsed_s": elapsed, "errors": len(errors) + left}), flush=True)


main()
