"""`bench failover`: SIGKILL of an engine under load, again and again, and how long no execution of its partitions ends.

Two engines, a node each, share the partitions; executions of two 30 ms tasks are started evenly, so that work is in
hand whenever one dies. The other node notices, has the dead one removed from its group, and takes over from tables
that it kept warm. What is counted are ends of executions as a reader of the histories sees them (`app/bench/ends.py`).
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.ends import AFTER_MS, BEFORE_MS, BIN_MS, Ends, Seen, bins, ends_of, gap_ms, in_hand_ms, reading
from app.bench.engine import PROCESSES, Engine, start_batch
from app.bench.environments import Say
from app.bench.load import Pool
from app.bench.plot import as_text, write_png
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress

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
# With fewer of its starts accepted the load is another one than it says.
ACCEPTED_SHARE: Final = 0.95
# A start that is answered later, or an execution that ends later, counts as a failure of its second.
ANSWER_S: Final = 1.0
ENDED_MS: Final = 1_000
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
class Sent:
    """What became of the starts: `accepted` are the executions, `refused` and `lost` starts, `slow` requests.

    `seconds` says of each accepted one in which second of the load it was asked for; `bad_seconds` are those in which
    one was asked for that was not accepted within `ANSWER_S`.
    """

    asked: int = 0
    accepted: set[str] = field(default_factory=set)
    refused: int = 0
    lost: int = 0
    slow: int = 0
    seconds: dict[str, int] = field(default_factory=dict)
    bad_seconds: set[int] = field(default_factory=set)

    def as_dict(self) -> dict[str, int]:
        return {
            "asked": self.asked,
            "accepted": len(self.accepted),
            "refused": self.refused,
            "lost": self.lost,
            "slow_requests": self.slow,
        }

    def availability(self, ends: Ends) -> dict[str, float]:
        """By the second: one is good when everything asked for in it was accepted in time, and ended in time."""
        late = [one for one, (began, ended) in ends.lives.items() if ended - began > ENDED_MS]
        bad = self.bad_seconds | {self.seconds[one] for one in late if one in self.seconds}
        whole = max([0, *self.seconds.values(), *bad]) + 1
        return {
            "seconds": whole,
            "bad_seconds": len(bad),
            "share": round(1 - len(bad) / whole, 6),
            "ended_late": len(late),
        }


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
    async with watched(broker, processes) as (engine, seen):
        async with loaded(engine, rate) as sent:
            await asyncio.sleep(QUIET_S)
            for number in range(kills):
                progress("killing", number, kills)
                since_s = time.time() - instants[-1] / 1000 if instants else every_s
                await asyncio.sleep(max(QUIET_S, every_s - since_s) * random.uniform(0.5, 1.5))
                instants.append(time.time() * 1000)
                await _hurt(engine, ENGINES[number % len(ENGINES)], hurt)
            await asyncio.sleep(QUIET_S)
            until_ms = time.time() * 1000
        ends = await all_ended(engine, sent, seen)
        ended_by_themselves = engine.ended_by_themselves
    gaps = [gap_ms(seen, since, until) for since, until in itertools.pairwise([*instants, until_ms])]
    recovered = [in_hand_ms(ends, instant) for instant in instants]
    text = _plotted(ends, instants, plot, say)
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
        "availability": sent.availability(ends),
        "ends_sent_again": ends.sent_again,
        "engines_that_ended_by_themselves": ended_by_themselves,
        "gap": "the longest time between two ends that a reader sees on any one partition, from a kill to the next",
        "in_hand": "from the kill until a reader has seen the end of the last execution that was accepted before",
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


def _plotted(ends: Ends, instants: Sequence[float], plot: Path | None, say: Say) -> str:
    """Completions around the kills, as text; the picture too, where it is wanted."""
    bars = bins(ends, instants)
    text = as_text(bars)
    say(f"completions in bins of {BIN_MS} ms, from {BEFORE_MS} ms before to {AFTER_MS} ms after the kill:\n{text}")
    if plot is not None:
        write_png(plot, bars, BEFORE_MS // BIN_MS)
    return text


@contextlib.asynccontextmanager
async def watched(broker: BenchBroker, processes: Mapping[str, str] = PROCESSES) -> AsyncIterator[tuple[Engine, Seen]]:
    """An engine that knows the workflow, and what a reader sees of it."""
    # Longer than a connection of the load is idle: one that is closed as it is used again is no failure of ours.
    settings = {"workflow.retention_s": 3600, "http.keep_alive_s": 600}
    async with Engine(broker, settings, processes) as engine, reading(broker.bootstrap_servers) as seen:
        await engine.register(DEFINITION)
        yield engine, seen


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
        sent.seconds |= dict.fromkeys(found, second)
        slow = time.perf_counter() - due > ANSWER_S
        sent.slow += slow
        if slow or len(found) < BATCH:
            sent.bad_seconds.add(second)

    async def asked(pool: Pool, number: int) -> set[str]:
        """Those of a batch that were accepted."""
        inputs = [{"number": number * BATCH + at} for at in range(BATCH)]
        sent.asked += BATCH
        try:
            answer = await pool.request(start_batch(WORKFLOW, inputs))
        except OSError:
            sent.lost += BATCH
            return set()
        if answer.status != 202:
            sent.refused += BATCH
            return set()
        found = {item["execution_id"] for item in json.loads(answer.body)["items"] if item["code"] == 202}
        sent.accepted |= found
        sent.refused += BATCH - len(found)
        return found

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


async def all_ended(engine: Engine, sent: Sent, seen: Seen) -> Ends:
    """Raises `SideFailed` when an accepted execution was lost or did not succeed, and when it is not what was asked."""
    if len(sent.accepted) < ACCEPTED_SHARE * sent.asked:
        raise SideFailed(
            f"of {sent.asked:,} starts {len(sent.accepted):,} were accepted, {sent.refused:,} refused and "
            f"{sent.lost:,} not answered: gaps under that load say nothing"
        )
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        ends = await ends_of(engine, seen)
        if sent.accepted | ends.started <= ends.ended:
            break
        if time.monotonic() > deadline:
            missing = len((sent.accepted | ends.started) - ends.ended)
            raise SideFailed(f"{missing:,} executions of {len(sent.accepted):,} that were accepted have not ended")
        await asyncio.sleep(1.0)
    if ends.failed or ends.changed:
        raise SideFailed(f"{ends.failed:,} executions did not succeed, {ends.changed:,} ended in two ways")
    return ends
