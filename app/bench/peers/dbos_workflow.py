"""Three steps as a DBOS workflow on PostgreSQL, started in its own process; run in its own environment."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from dbos import DBOS, SetWorkflowID  # type: ignore[import-not-found]


@DBOS.step()  # type: ignore[untyped-decorator, unused-ignore]
async def source(number: int) -> list[dict[str, float]]:
    """Three rows made of the number."""
    return [{"device": float(at), "value": float(number + at)} for at in range(3)]


@DBOS.step()  # type: ignore[untyped-decorator, unused-ignore]
async def transform(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The same rows in another unit."""
    return [{**row, "value": row["value"] * 1.8 + 32} for row in rows]


@DBOS.step()  # type: ignore[untyped-decorator, unused-ignore]
async def sink(rows: list[dict[str, float]]) -> dict[str, int]:
    """How many rows there were."""
    return {"stored": len(rows)}


@DBOS.workflow()  # type: ignore[untyped-decorator, unused-ignore]
async def three(number: int) -> dict[str, int]:
    """Each step's result is in PostgreSQL before the next begins."""
    rows = await source(number)
    converted = await transform(rows)
    stored: dict[str, int] = await sink(converted)
    return stored


async def one(name: str, number: int) -> float:
    """Run one workflow to its end; milliseconds."""
    began = time.perf_counter()
    with SetWorkflowID(f"{name}-{number}"):
        result = await three(number)
    assert result == {"stored": 3}, result
    return (time.perf_counter() - began) * 1000


async def many(name: str, executions: int, workers: int) -> tuple[float, list[float]]:
    """So many at once; seconds for all, milliseconds of each."""
    numbers = iter(range(executions))
    latencies: list[float] = []

    async def work() -> None:
        latencies.extend([await one(name, number) for number in numbers])

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return time.perf_counter() - began, latencies


async def run(spec: dict[str, Any]) -> None:
    await many("warm", spec["warm_up"], spec["workers"])
    print(json.dumps({"event": "ready"}), flush=True)
    elapsed_s, _ = await many("all", spec["executions"], spec["workers"])
    _, alone = await many("alone", spec["alone"], 1)
    print(json.dumps({"event": "result", "elapsed_s": elapsed_s, "alone_ms": alone}), flush=True)


def main(spec: dict[str, Any]) -> None:
    DBOS(
        config={
            "name": "headrace-bench",
            "system_database_url": spec["database"],
            "log_level": "WARNING",
            "run_admin_server": False,
            "sys_db_pool_size": spec["pool"],
        }
    )
    DBOS.launch()
    try:
        uvloop.run(run(spec))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[-1]).read_text()))
