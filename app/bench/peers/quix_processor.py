"""Quix Streams: map-and-forward, or a tumbling window with RocksDB state; run in its own environment."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]


def converted(sample: dict[str, Any]) -> dict[str, Any]:
    metric = sample["metrics"][0]
    metric["value"] = metric["value"] * 1.8 + 32
    metric["unit"] = "FAH"
    sample["site"] = "north"
    return sample


class Windows:
    """Open, high, low, close, count and sum as a list; tells when a fifth of all records has been handled."""

    def __init__(self, mark_at: int) -> None:
        self.handled = 0
        self.mark_at = mark_at

    def count_one(self) -> None:
        self.handled += 1
        if self.handled == self.mark_at:
            print(json.dumps({"event": "mark", "at_ms": time.time() * 1000}), flush=True)

    def first(self, sample: dict[str, Any]) -> list[Any]:
        self.count_one()
        metric = sample["metrics"][0]
        value = metric["value"]
        return [metric["metric"], value, value, value, value, 1, value]

    def step(self, state: list[Any], sample: dict[str, Any]) -> list[Any]:
        self.count_one()
        metric, opened, high, low, _, count, total = state
        value = sample["metrics"][0]["value"]
        return [metric, opened, max(high, value), min(low, value), value, count + 1, total + value]


def row(window: dict[str, Any], key: bytes, _timestamp: int, _headers: Any) -> dict[str, Any]:
    metric, opened, high, low, close, count, total = window["value"]
    return {
        "device_id": key.decode(),
        "metric": metric,
        "window_start": window["start"],
        "window_ms": window["end"] - window["start"],
        "open": opened,
        "high": high,
        "low": low,
        "close": close,
        "count": count,
        "sum": total,
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[-1]).read_text())
    app = Application(
        broker_address=spec["bootstrap"],
        consumer_group=spec["group"],
        auto_offset_reset="earliest",
        state_dir="state",
        loglevel="WARNING",
    )
    source = app.topic(spec["input"], value_deserializer="json")
    sink = app.topic(spec["output"], value_serializer="json")
    frame = app.dataframe(source)
    if spec["work"] == "rollup":
        windows = Windows(spec["mark_at_records"])
        frame = (
            frame.tumbling_window(spec["window_ms"], grace_ms=0)
            .reduce(reducer=windows.step, initializer=windows.first)
            .final()
            .apply(row, metadata=True)
        )
    else:
        frame = frame.apply(converted)
    frame.to_topic(sink)
    print(json.dumps({"event": "ready"}), flush=True)
    app.run()


main()
