"""`bench failover`: SIGKILL of an engine under load, again and again, and how long no execution of its partitions ends.

Two engines, a node each, share the partitions; executions of two 30 ms tasks are started evenly, so that work is in
hand whenever one dies. The other node notices, has the dead one removed from its group, and takes over from tables
that it kept warm. What is counted is on the broker: the ends of executions in the histories.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.engine import Engine, start_batch
from app.bench.environments import Say
from app.bench.load import AnswerLost, Pool
from app.bench.plot import as_text, write_png
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress
from app.domain.workflow.events import ExecutionEnded, ExecutionStarted

RATE: Final = 500
KILLS: Final = 20
BATCH: Final = 5
CONNECTIONS: Final = 32
ENGINES: Final = ("coordinator-1", "coordinator-2")
WORKFLOW: Final = "bench-failover"
QUIET_S: Final = 2.0
AFTER_MS: Final = 1_500
BIN_MS: Final = 20
BEFORE_MS: Final = 400
# One reading of a hundred kills' histories, 3,000,000 events, is half a minute of it.
END_TIMEOUT_S: Final = 300.0
PROMISES: Final = {"gap_p50_ms": 250, "gap_max_ms": 1000}


def _hold(number: str, *needs: str) -> dict[str, Any]:
    function = {"function": "app.bench.ours.steps:hold", "args": {"number": number}}
    return {"type": "transform.python", "with": function, **({"needs": list(needs)} if needs else {})}


DEFINITION: Final[dict[str, Any]] = {
    "id": WORKFLOW,
    "tasks": {"first": _hold("${input.number}"), "second": _hold("${first}", "first")},
}


@dataclass(slots=True)
class Ends:
    """What the histories say: when executions ended, by partition (ms, ascending), and when each began and ended.

    `sent_again` are ends that a new owner sent once more, not knowing that they were out; `changed` those that then
    said something else, which no end may.
    """

    by_partition: dict[int, list[int]] = field(default_factory=dict)
    lives: list[tuple[int, int]] = field(default_factory=list)
    sent_again: int = 0
    changed: int = 0
    started: int = 0


async def bench_failover(
    broker: BenchBroker,
    kills: int,
    say: Say,
    progress: Progress,
    rate: int = RATE,
    plot: Path | None = None,
    *,
    stop: bool = False,
) -> Result:
    """Kill `kills` engines by turns under `rate` executions a second; gaps, and the bins of a plot around the kills.

    With `stop` they are frozen for `AFTER_MS` instead, and then go on: what they still send is a zombie's.
    """
    instants: list[float] = []
    processes = {**dict.fromkeys(ENGINES, "coordinator"), "api-gateway": "api-gateway"}
    settings = {"workflow.retention_s": 3600}
    async with Engine(broker, settings, processes) as engine:
        await engine.register(DEFINITION)
        async with _loaded(engine, rate) as sent:
            await asyncio.sleep(QUIET_S)
            for number in range(kills):
                progress("killing", number, kills)
                await asyncio.sleep(QUIET_S * random.uniform(0.5, 1.5))
                instants.append(time.time() * 1000)
                await _hurt(engine, ENGINES[number % len(ENGINES)], stop=stop)
            await asyncio.sleep(QUIET_S)
        ends = await _all_ended(engine, sent)
    gaps = [gap_ms(ends, instant) for instant in instants]
    recovered = [in_hand_ms(ends, instant) for instant in instants]
    bars = bins(ends, instants)
    text = as_text(bars)
    say(f"completions in bins of {BIN_MS} ms, from {BEFORE_MS} ms before to {AFTER_MS} ms after the kill:\n{text}")
    if plot is not None:
        write_png(plot, bars, BEFORE_MS // BIN_MS)
    value = {
        "gap_p50_ms": median(gaps),
        "gap_max_ms": max(gaps),
        "in_hand_p50_ms": median(recovered),
        "in_hand_max_ms": max(recovered),
    }
    about = {
        **machine(),
        "signal": "SIGSTOP" if stop else "SIGKILL",
        "kills": kills,
        "rate": rate,
        "executions": ends.started,
        "ends_sent_again": ends.sent_again,
        "ends_changed": ends.changed,
        "gap": "the longest time between two ends on any one partition that a kill falls into or that follows it",
        "in_hand": "from the kill to the end of the last execution that was under way",
        "plot": text,
        "promises": PROMISES,
        "durability": {OURS: "as `bench workflow`; standby_replicas 1"},
        **await broker.facts(),
    }
    runs = tuple(
        Run(number, OURS, {"gap_ms": gap, "in_hand_ms": hand})
        for number, (gap, hand) in enumerate(zip(gaps, recovered, strict=True))
    )
    return Result("failover-stop" if stop else "failover", "ms", value, {}, about, runs)


async def _hurt(engine: Engine, name: str, *, stop: bool) -> None:
    """Take an engine away for `AFTER_MS`, and wait until it is ready again."""
    if stop:
        engine.freeze(name)
    else:
        await engine.kill(name)
    await asyncio.sleep(AFTER_MS / 1000)
    await (engine.thaw(name) if stop else engine.start_again(name))


@contextlib.asynccontextmanager
async def _loaded(engine: Engine, rate: int) -> AsyncIterator[list[int]]:
    """Start executions evenly until the block ends; the list counts what was accepted."""
    accepted = [0]
    stop = asyncio.Event()

    async def one(pool: Pool, number: int) -> None:
        inputs = [{"number": number * BATCH + at} for at in range(BATCH)]
        with contextlib.suppress(AnswerLost, OSError):
            answer = await pool.request(start_batch(WORKFLOW, inputs))
            if answer.status == 202:
                accepted[0] += json.loads(answer.body)["accepted"]

    async def load() -> None:
        began = time.perf_counter()
        number = 0
        async with engine.pool(CONNECTIONS) as pool, asyncio.TaskGroup() as group:
            while not stop.is_set():
                await asyncio.sleep(max(0.0, began + number * BATCH / rate - time.perf_counter()))
                group.create_task(one(pool, number))
                number += 1

    async with asyncio.TaskGroup() as loading:
        loading.create_task(load())
        try:
            yield accepted
        finally:
            stop.set()


async def _all_ended(engine: Engine, accepted: Sequence[int]) -> Ends:
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        ends = await _ends(engine)
        if len(ends.lives) >= max(ends.started, accepted[0]):
            return ends
        if time.monotonic() > deadline:
            raise SideFailed(f"{accepted[0]:,} were accepted, {ends.started:,} began, {len(ends.lives):,} have ended")
        await asyncio.sleep(1.0)


async def _ends(engine: Engine) -> Ends:
    found = Ends()
    began: dict[str, int] = {}
    ended: dict[str, ExecutionEnded] = {}
    async for partition, run in engine.runs():
        for event in run.events:
            if isinstance(event, ExecutionStarted):
                began.setdefault(run.execution_id, event.at)
            elif isinstance(event, ExecutionEnded):
                if (first := ended.setdefault(run.execution_id, event)) is not event:
                    found.sent_again += first == event
                    found.changed += first != event
                    continue
                found.by_partition.setdefault(partition, []).append(event.at)
                found.lives.append((began.get(run.execution_id, event.at), event.at))
    found.started = len(began)
    for instants in found.by_partition.values():
        instants.sort()
    return found


def gap_ms(ends: Ends, killed_ms: float) -> float:
    """The longest time without an end on one partition that reaches into the time after the kill."""
    longest = 0.0
    for instants in ends.by_partition.values():
        first = max(0, bisect_left(instants, killed_ms) - 1)
        last = bisect_right(instants, killed_ms + AFTER_MS)
        some = instants[first : last + 1]
        longest = max([longest, *(after - before for before, after in itertools.pairwise(some))])
    return longest


def in_hand_ms(ends: Ends, killed_ms: float) -> float:
    """Until the last execution that was under way at the kill has ended."""
    return max((ended - killed_ms for began, ended in ends.lives if began < killed_ms <= ended), default=0.0)


def bins(ends: Ends, instants: Sequence[float]) -> list[float]:
    """Ends in each bin around a kill, the mean of all kills."""
    counts = [0] * ((BEFORE_MS + AFTER_MS) // BIN_MS)
    every = sorted(ended for _, ended in ends.lives)
    for instant in instants:
        start = instant - BEFORE_MS
        for ended in every[bisect_left(every, start) : bisect_left(every, instant + AFTER_MS)]:
            counts[int((ended - start) // BIN_MS)] += 1
    return [count / max(1, len(instants)) for count in counts]
