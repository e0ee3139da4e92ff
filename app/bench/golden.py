"""Whether a side's output is the right one: compared with the expected work after JSON parsing."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.payload import WINDOW_MS, Ohlc, Plan, converted, expected_rollups

SAMPLE_A_PARTITION = 500
Check = Callable[[BenchBroker, str, str, Plan], Awaitable[None]]
"""Called with (broker, input topic, output topic, plan); raises `SideFailed` at the first wrong output."""


def window_count(plan: Plan) -> int:
    """Final windows of the plan: one a device and whole window."""
    return plan.devices * (plan.instants * 1000 // WINDOW_MS)


async def check_converted(broker: BenchBroker, source: str, output: str, _: Plan) -> None:
    """Each output is its input converted, at the same place of the same partition: nothing lost, doubled or moved."""
    before = await broker.values(source, SAMPLE_A_PARTITION)
    after = await broker.values(output, SAMPLE_A_PARTITION)
    for number, (inputs, outputs) in enumerate(zip(before, after, strict=True)):
        if len(inputs) != len(outputs):
            raise SideFailed(f"partition {number} has {len(outputs)} of {len(inputs)} outputs")
        for offset, (raw, got) in enumerate(zip(inputs, outputs, strict=True)):
            expected = converted(orjson.loads(raw))
            if orjson.loads(got) != expected:
                raise SideFailed(f"wrong output at {number}/{offset}: {got!r}, expected {expected!r}")


async def check_rollups(broker: BenchBroker, _: str, output: str, plan: Plan) -> None:
    """Every window of the plan exactly once, with the right open, high, low, close, count and sum."""
    left = expected_rollups(plan)
    for rows in await broker.values(output):
        for raw in rows:
            row = orjson.loads(raw)
            expected = left.pop((row["device_id"], row["window_start"]), None)
            if expected is None:
                raise SideFailed(f"a window twice or out of nowhere: {raw!r}")
            if not same_window(row, expected):
                raise SideFailed(f"wrong window: {raw!r}, expected {expected!r}")
    if left:
        raise SideFailed(f"{len(left):,} windows are missing, the first {next(iter(left))}")


def same_window(row: dict[str, Any], expected: Ohlc) -> bool:
    """Whether the fields that all sides give agree; sums may differ in the last bits by the order of adding."""
    exact = (
        row["metric"] == "temperature"
        and row["window_ms"] == WINDOW_MS
        and row["count"] == expected.samples
        and (row["open"], row["high"], row["low"], row["close"])
        == (expected.open, expected.high, expected.low, expected.close)
    )
    return exact and math.isclose(row["sum"], expected.sum, rel_tol=1e-9)
