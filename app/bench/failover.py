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
from typing import Any, Final, Literal

from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.engine import Engine, start_batch
from app.bench.environments import Say
from app.bench.load import Pool
from app.bench.plot import as_text, write_png
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress
from app.domain.workflow.events import ExecutionEnded, ExecutionStarted

Signal = Literal["SIGKILL", "SIGSTOP", "SIGTERM"]
NAMES: Final[dict[Signal, str]] = {
    "SIGKILL": "failover",
    "SIGSTOP": "failover-stop",
    "SIGTERM": "failover-restart",
}
RATE: Final = 500
KILLS: Final = 20
BATCH: Final = 5
CONNECTIONS: Final = 32
ENGINES: Final = ("coordinator-1", "coordinator-2")
WORKFLOW: Final = "bench-failover"
QUIET_S: Final = 2.0
AFTER_MS: Final = 1_500
# With fewer of its starts accepted the load is another one than it says.
ACCEPTED_SHARE: Final = 0.95
# A start that is answered later counts as a failure of its second.
ANSWER_S: Final = 1.0
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

    The instants are those that the deciding engine wrote down; an execution's begins when the API accepted it.
    `sent_again` are ends that a new owner sent once more, not knowing that they were out; `changed` those that then
    said something else, which no end may; `failed` those that did not succeed. `started` and `ended` are ids.
    """

    by_partition: dict[int, list[int]] = field(default_factory=dict)
    lives: list[tuple[int, int]] = field(default_factory=list)
    sent_again: int = 0
    changed: int = 0
    failed: int = 0
    started: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Sent:
    """What became of the starts: `accepted` are the executions, `refused` and `lost` starts, `slow` requests.

    `bad_seconds` are those of the load in which one was asked for that was not accepted within `ANSWER_S`.
    """

    asked: int = 0
    accepted: set[str] = field(default_factory=set)
    refused: int = 0
    lost: int = 0
    slow: int = 0
    seconds: set[int] = field(default_factory=set)
    bad_seconds: set[int] = field(default_factory=set)

    def as_dict(self) -> dict[str, int]:
        return {
            "asked": self.asked,
            "accepted": len(self.accepted),
            "refused": self.refused,
            "lost": self.lost,
            "slow_requests": self.slow,
        }

    def availability(self) -> dict[str, float]:
        """By the second: one is good when everything asked for in it was accepted in time."""
        share = 1 - len(self.bad_seconds) / max(1, len(self.seconds))
        return {"seconds": len(self.seconds), "bad_seconds": len(self.bad_seconds), "share": round(share, 6)}


async def bench_failover(
    broker: BenchBroker,
    kills: int,
    say: Say,
    progress: Progress,
    rate: int = RATE,
    plot: Path | None = None,
    *,
    hurt: Signal = "SIGKILL",
    every_s: float = 0.0,
) -> Result:
    """Kill `kills` engines by turns under `rate` executions a second; gaps, and the bins of a plot around the kills.

    By SIGSTOP they are frozen for `AFTER_MS` and then go on: what they still send is a zombie's. By SIGTERM they stop
    in order, as in a rolling restart. Kills are `every_s` apart, or as soon as the last one is ready again and a while
    has gone.
    """
    instants: list[float] = []
    processes = {**dict.fromkeys(ENGINES, "coordinator"), "api-gateway": "api-gateway"}
    # Longer than a connection of the load is idle: one that is closed as it is used again is no failure of ours.
    settings = {"workflow.retention_s": 3600, "http.keep_alive_s": 600}
    async with Engine(broker, settings, processes) as engine:
        await engine.register(DEFINITION)
        async with loaded(engine, rate) as sent:
            await asyncio.sleep(QUIET_S)
            for number in range(kills):
                progress("killing", number, kills)
                since_s = time.time() - instants[-1] / 1000 if instants else every_s
                await asyncio.sleep(max(QUIET_S, every_s - since_s) * random.uniform(0.5, 1.5))
                instants.append(time.time() * 1000)
                await _hurt(engine, ENGINES[number % len(ENGINES)], hurt)
            await asyncio.sleep(QUIET_S)
        ends = await all_ended(engine, sent)
        ended_by_themselves = engine.ended_by_themselves
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
        "signal": hurt,
        "kills": kills,
        "rate": rate,
        "executions": len(ends.ended),
        "starts": sent.as_dict(),
        "availability": sent.availability(),
        "ends_sent_again": ends.sent_again,
        "engines_that_ended_by_themselves": ended_by_themselves,
        "gap": "the longest time between two ends on any one partition that a kill falls into or that follows it",
        "in_hand": "from the kill to the end of the last execution that had been accepted before",
        "plot": text,
        "promises": PROMISES,
        "durability": {OURS: "as `bench workflow`; standby_replicas 1"},
        **await broker.facts(),
    }
    runs = tuple(
        Run(number, OURS, {"gap_ms": gap, "in_hand_ms": hand})
        for number, (gap, hand) in enumerate(zip(gaps, recovered, strict=True))
    )
    return Result(NAMES[hurt], "ms", value, {}, about, runs)


async def _hurt(engine: Engine, name: str, hurt: Signal) -> None:
    """Take an engine away for `AFTER_MS`, and wait until it is ready again."""
    if hurt == "SIGSTOP":
        engine.freeze(name)
        await asyncio.sleep(AFTER_MS / 1000)
        await engine.thaw(name)
        return
    await (engine.kill(name) if hurt == "SIGKILL" else engine.stop(name))
    await asyncio.sleep(AFTER_MS / 1000)
    await engine.start_again(name)


@contextlib.asynccontextmanager
async def loaded(engine: Engine, rate: int) -> AsyncIterator[Sent]:
    """Start executions evenly until the block ends."""
    sent = Sent()
    stop = asyncio.Event()

    began = time.perf_counter()

    async def one(pool: Pool, number: int) -> None:
        due = began + number * BATCH / rate
        second = int(due - began)
        found = await asked(pool, number)
        sent.seconds.add(second)
        slow = time.perf_counter() - due > ANSWER_S
        sent.slow += slow
        if slow or found < BATCH:
            sent.bad_seconds.add(second)

    async def asked(pool: Pool, number: int) -> int:
        """How many of a batch were accepted."""
        inputs = [{"number": number * BATCH + at} for at in range(BATCH)]
        sent.asked += BATCH
        try:
            answer = await pool.request(start_batch(WORKFLOW, inputs))
        except OSError:
            sent.lost += BATCH
            return 0
        if answer.status != 202:
            sent.refused += BATCH
            return 0
        found = {item["execution_id"] for item in json.loads(answer.body)["items"] if item["code"] == 202}
        sent.accepted |= found
        sent.refused += BATCH - len(found)
        return len(found)

    async def load() -> None:
        number = 0
        async with engine.pool(CONNECTIONS) as pool, asyncio.TaskGroup() as group:
            while not stop.is_set():
                await asyncio.sleep(max(0.0, began + number * BATCH / rate - time.perf_counter()))
                group.create_task(one(pool, number))
                number += 1

    async with asyncio.TaskGroup() as loading:
        loading.create_task(load())
        try:
            yield sent
        finally:
            stop.set()


async def all_ended(engine: Engine, sent: Sent) -> Ends:
    """Raises `SideFailed` when an accepted execution was lost or did not succeed, and when it is not what was asked."""
    if len(sent.accepted) < ACCEPTED_SHARE * sent.asked:
        raise SideFailed(
            f"of {sent.asked:,} starts {len(sent.accepted):,} were accepted, {sent.refused:,} refused and "
            f"{sent.lost:,} not answered: gaps under that load say nothing"
        )
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        ends = await _ends(engine)
        if sent.accepted | ends.started <= ends.ended:
            break
        if time.monotonic() > deadline:
            missing = len((sent.accepted | ends.started) - ends.ended)
            raise SideFailed(f"{missing:,} executions of {len(sent.accepted):,} that were accepted have not ended")
        await asyncio.sleep(1.0)
    if ends.failed or ends.changed:
        raise SideFailed(f"{ends.failed:,} executions did not succeed, {ends.changed:,} ended in two ways")
    return ends


async def _ends(engine: Engine) -> Ends:
    found = Ends()
    asked: dict[str, int] = {}
    ended: dict[str, ExecutionEnded] = {}
    async for partition, run in engine.runs():
        for event in run.events:
            if isinstance(event, ExecutionStarted):
                asked.setdefault(run.execution_id, event.asked_at or event.at)
            elif isinstance(event, ExecutionEnded):
                if (first := ended.setdefault(run.execution_id, event)) is not event:
                    found.sent_again += first == event
                    found.changed += first != event
                    continue
                found.failed += event.status != "succeeded"
                found.by_partition.setdefault(partition, []).append(event.at)
                found.lives.append((asked.get(run.execution_id, event.at), event.at))
    found.started, found.ended = set(asked), set(ended)
    for instants in found.by_partition.values():
        instants.sort()
    return found


def gap_ms(ends: Ends, killed_ms: float, after_ms: float = AFTER_MS) -> float:
    """The longest time without an end on one partition that reaches into the time after the kill.

    A partition on which nothing ended any more counts with all of that time.
    """
    longest = 0.0
    until_ms = killed_ms + after_ms
    for instants in ends.by_partition.values():
        first = max(0, bisect_left(instants, killed_ms) - 1)
        some: list[float] = [*instants[first : bisect_right(instants, until_ms) + 1]]
        if some[-1] <= until_ms:
            some.append(until_ms)
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
