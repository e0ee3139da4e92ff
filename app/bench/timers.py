"""`bench timers`: a thousand durable timers due each second, and how late each of them fires."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.engine import Engine, start_batch, told
from app.bench.environments import Say
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress
from app.bench.statistics import Latency, latency_of, median_latency
from app.domain.workflow.events import Event, TaskSucceeded, WaitStarted

RATE = 1_000
SECONDS = 20
WAIT_S = 5
BATCH = 100
CONNECTIONS = 4
PHASE_TIMEOUT_S = 60.0
WORKFLOW = "bench-timer"
DEFINITION: dict[str, Any] = {"id": WORKFLOW, "tasks": {"rest": {"type": "wait", "with": {"seconds": WAIT_S}}}}
PROMISES = {"p99_ms": 50}


async def bench_timers(
    broker: BenchBroker, runs: int, seconds: int, say: Say, progress: Progress, rate: int = RATE
) -> Result:
    """Executions of one `wait` are started evenly, so that as many timers fall due each second `WAIT_S` later."""
    done: list[Run] = []
    rows: list[Latency] = []
    for number in range(runs):
        async with Engine(broker) as engine:
            await engine.register(DEFINITION)
            await _start_evenly(engine, rate, seconds, progress)
            total = rate * seconds
            await engine.until_ended(WORKFLOW, total, WAIT_S + PHASE_TIMEOUT_S)
            lags = lags_ms(await engine.histories())
            figures = {**engine.figures(), "timers": len(lags), "early": sum(lag < 0 for lag in lags)}
        if len(lags) != total:
            raise SideFailed(f"{total:,} timers were set, {len(lags):,} have fired")
        latency = latency_of(lags)
        rows.append(latency)
        done.append(Run(number, OURS, latency.as_dict(), figures))
        say(f"run {number + 1}/{runs}: p50 {latency.p50:g} ms, p99 {latency.p99:g} ms, max {latency.max:g} ms")
    settings = {
        **machine(),
        "timers_per_s": rate,
        "seconds": seconds,
        "wait_s": WAIT_S,
        "measured": "by the history: from the instant a timer was due to the event of its firing, in ms",
        "durability": {OURS: "a timer is a row of the state, on the changelog before it counts"},
        "promises": PROMISES,
        **await broker.facts(),
    }
    return Result("timers", "ms late", median_latency(rows).as_dict(), {}, settings, tuple(done))


async def _start_evenly(engine: Engine, rate: int, seconds: int, progress: Progress) -> None:
    """A batch whenever one is due; what is late is sent at once."""
    batch = start_batch(WORKFLOW, [None] * BATCH)
    began = time.perf_counter()
    total = rate * seconds // BATCH
    async with engine.pool(CONNECTIONS) as pool:

        async def one(number: int) -> None:
            await asyncio.sleep(max(0.0, began + number * BATCH / rate - time.perf_counter()))
            answer = await pool.request(batch)
            if answer.status != 202:
                raise SideFailed(f"a batch was refused: {told(answer)}")
            progress("starting", number + 1, total)

        async with asyncio.TaskGroup() as group:
            for number in range(total):
                group.create_task(one(number))


def lags_ms(histories: Mapping[str, Iterable[Event]]) -> list[float]:
    """How late each wait ended."""
    found: list[float] = []
    for events in histories.values():
        until: dict[str, int] = {}
        for event in events:
            if isinstance(event, WaitStarted):
                until[event.task] = event.until
            elif isinstance(event, TaskSucceeded) and event.task in until:
                found.append(float(event.at - until.pop(event.task)))
    return found
