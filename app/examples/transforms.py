"""Example functions for transform.python: `app.examples.transforms:trend` and its neighbours."""

import asyncio
from collections.abc import Sequence
from typing import Any


def trend(rows: Sequence[dict[str, Any]], x: str = "at", y: str = "value") -> dict[str, float | int | None]:
    """The least-squares line through the rows: {"slope", "intercept", "count"}; null for fewer than two places."""
    points = [(float(row[x]), float(row[y])) for row in rows if row.get(x) is not None and row.get(y) is not None]
    count = len(points)
    if count == 0:
        return {"slope": None, "intercept": None, "count": 0}
    mean_x = sum(px for px, _ in points) / count
    mean_y = sum(py for _, py in points) / count
    spread = sum((px - mean_x) ** 2 for px, _ in points)
    if spread == 0:
        return {"slope": None, "intercept": None, "count": count}
    slope = sum((px - mean_x) * (py - mean_y) for px, py in points) / spread
    return {"slope": slope, "intercept": mean_y - slope * mean_x, "count": count}


def zscores(rows: Sequence[dict[str, Any]], field: str = "value", limit: float = 3.0) -> list[dict[str, Any]]:
    """The rows with their field's distance from the mean in standard deviations (`z`), and `outlier` beyond `limit`."""
    values = [float(row[field]) for row in rows]
    if not values:
        return []
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    found = []
    for row, value in zip(rows, values, strict=True):
        z = (value - mean) / deviation if deviation else 0.0
        found.append({**row, "z": z, "outlier": abs(z) > limit})
    return found


async def pause(rows: Sequence[Any], seconds: float = 0.1) -> list[Any]:
    """The rows, a while later."""
    await asyncio.sleep(seconds)
    return list(rows)
