"""Task functions of the workflow benchmarks; the first three are line for line what the peers run."""

import asyncio
from typing import Any


async def source(_: list[Any], number: int) -> list[dict[str, float]]:
    """Three rows made of the number."""
    return [{"device": float(at), "value": float(number + at)} for at in range(3)]


async def transform(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The same rows in another unit."""
    return [{**row, "value": row["value"] * 1.8 + 32} for row in rows]


async def sink(rows: list[dict[str, float]]) -> dict[str, int]:
    """How many rows there were."""
    return {"stored": len(rows)}


def crunch(_: list[Any], number: int) -> int:
    """A few milliseconds of computing."""
    found = number
    for each in range(20_000):
        found = (found * 31 + each) % 1_000_003
    return found


async def hold(_: list[Any], number: int) -> int:
    """The number after 30 ms, as something outside would take them: what is in hand when its owner dies."""
    await asyncio.sleep(0.03)
    return number
