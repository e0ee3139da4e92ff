"""Stock faust-streaming: map-and-forward, or a rollup in a RocksDB table; run in its own environment."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import mode.loop

mode.loop.use("uvloop")

import faust  # noqa: E402 - the event loop is chosen first


def say(event: dict[str, Any]) -> None:
    """One line on the real stdout; Faust's worker turns `sys.stdout` into a log."""
    print(json.dumps(event), file=sys.__stdout__, flush=True)


def converted(sample: dict[str, Any]) -> dict[str, Any]:
    metric = sample["metrics"][0]
    metric["value"] = metric["value"] * 1.8 + 32
    metric["unit"] = "FAH"
    sample["site"] = "north"
    return sample


def folded(state: list[Any] | None, start: int, sample: dict[str, Any]) -> list[Any]:
    """Window start, metric, open, high, low, close, count and sum after one more sample."""
    metric = sample["metrics"][0]
    value = metric["value"]
    if state is None or state[0] != start:
        return [start, metric["metric"], value, value, value, value, 1, value]
    _, name, opened, high, low, _, count, total = state
    return [start, name, opened, max(high, value), min(low, value), value, count + 1, total + value]


def row(device_id: str, state: list[Any], window_ms: int) -> dict[str, Any]:
    start, metric, opened, high, low, close, count, total = state
    return {
        "device_id": device_id,
        "metric": metric,
        "window_start": start,
        "window_ms": window_ms,
        "open": opened,
        "high": high,
        "low": low,
        "close": close,
        "count": count,
        "sum": total,
    }


def build(spec: dict[str, Any]) -> Any:
    app = faust.App(
        spec["group"],
        broker=f"kafka://{spec['bootstrap']}",
        datadir="state",
        store="rocksdb://",
        topic_partitions=spec["partitions"],
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
    )
    source = app.topic(spec["input"], key_type=bytes, value_serializer="json")
    sink = app.topic(spec["output"], key_type=bytes, value_serializer="json")
    if spec["work"] == "rollup":
        _rollup(app, source, sink, spec)
    else:

        async def forward(stream: Any) -> None:
            async for key, sample in stream.items():
                await sink.send(key=key, value=converted(sample))

        app.agent(source, name="forward")(forward)
    return app


def _rollup(app: Any, source: Any, sink: Any, spec: dict[str, Any]) -> None:
    table = app.Table(f"{spec['group']}-windows", partitions=spec["partitions"])
    window_ms, mark_at = spec["window_ms"], spec["mark_at_records"]

    async def rollup(stream: Any) -> None:
        handled = 0
        async for key, sample in stream.items():
            handled += 1
            if handled == mark_at:
                say({"event": "mark", "at_ms": time.time() * 1000})
            device_id = sample["device_id"]
            start = sample["source_timestamp"] // window_ms * window_ms
            state = table.get(device_id)
            if state is not None and state[0] != start:
                await sink.send(key=key, value=row(device_id, state, window_ms))
            table[device_id] = folded(state, start, sample)

    app.agent(source, name="rollup")(rollup)


if __name__ == "__main__":
    specification = json.loads(Path(sys.argv[-1]).read_text())
    worker = faust.Worker(build(specification), loglevel="ERROR")
    say({"event": "ready"})
    worker.execute_from_commandline()
