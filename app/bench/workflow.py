"""`bench workflow`: source, transform and sink as three durable steps, beside Restate and DBOS."""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from app.bench import environments
from app.bench.broker import BenchBroker
from app.bench.child import SideFailed, start
from app.bench.engine import HOST, Engine, start_batch, start_one, told
from app.bench.environments import Command, Say
from app.bench.load import Pool, closed_loop, post
from app.bench.postgres import private_postgres, programs
from app.bench.result import Result, Run
from app.bench.series import machine, series
from app.bench.side import OURS, Effort, Progress, Side
from app.bench.statistics import Latency, latency_of

STEPS = 3
BATCH = 100
BATCHES_UNDER_WAY = 8
PEER_WORKERS = 64
PEER_POOL = 32
ALONE = 300
WARM_UP = 300
PHASE_TIMEOUT_S = 180.0
WORKFLOW = "bench-three"
STEP_MODULE = "app.bench.ours.steps"


def _step(name: str, **more: Any) -> dict[str, Any]:
    args = more.pop("args", {})
    return {
        "type": "transform.python",
        "with": {"function": f"{STEP_MODULE}:{name}", "mode": "async", "args": args},
        **more,
    }


DEFINITION: dict[str, Any] = {
    "id": WORKFLOW,
    "tasks": {
        "source": _step("source", args={"number": "${input.number}"}),
        "transform": _step("transform", needs=["source"]),
        "sink": _step("sink", needs=["transform"]),
    },
}


class Measured(NamedTuple):
    """One run of one side: how many executions ended in which time, and how long each took alone."""

    executions: int
    elapsed_s: float
    alone: Latency
    figures: dict[str, Any]


def _ours(_: Say) -> Command:
    return Command((), "this checkout")


def _dbos(say: Say) -> Command:
    programs()
    return environments.python_peer("dbos", "dbos_workflow.py", say)


SIDES = (
    Side(
        OURS,
        _ours,
        "a start is acknowledged before its 202 and its first task, each result before the task that follows it; a "
        "changelog and an event topic, acks=all, idempotent; state in RocksDB (WAL on, no fsync); started by POST of "
        "batches of 100, alone by POST with ?wait",
    ),
    Side(
        "restate",
        partial(environments.python_peer, "restate", "restate_workflow.py"),
        "one node as installed: replicated log with one replica, RocksDB (WAL on, no fsync), each step journalled; one "
        f"hypercorn worker with uvloop; POST to the ingress, {PEER_WORKERS} under way",
        share=0.1,
        target=10,
    ),
    Side(
        "dbos",
        _dbos,
        "PostgreSQL with fsync and synchronous_commit on, each step committed; workflows awaited in the process, "
        f"{PEER_POOL} under way and {PEER_POOL} connections",
        share=0.05,
    ),
)


async def bench_workflow(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    """Executions a second at saturation, and milliseconds of one at a time."""
    alone: dict[str, list[Latency]] = {}

    async def measure(side: Side, command: Command, run: int) -> Run:
        executions = max(PEER_WORKERS, round(effort.records * side.share))
        seen = partial(_told_of, progress, side.name, executions)
        if side.name == OURS:
            measured = await _measure_ours(broker, executions, seen)
        elif side.name == "restate":
            measured = await _measure_restate(command, executions, say, seen)
        else:
            measured = await _measure_dbos(command, executions)
        alone.setdefault(side.name, []).append(measured.alone)
        rate = measured.executions / measured.elapsed_s
        figures = {
            "executions": measured.executions,
            "tasks_per_s": round(rate * STEPS, 1),
            **{f"alone_{name}_ms": value for name, value in measured.alone.as_dict().items()},
            **measured.figures,
        }
        return Run(run, side.name, rate, figures)

    settings: dict[str, Any] = {
        **machine(),
        "executions": effort.records,
        "steps": STEPS,
        "alone": f"{ALONE} executions one after the other, from the request to the result",
        "measured": "from the first start to the end of the last execution, after a warm-up",
        "golden": "every execution must have succeeded with the expected result",
        **await broker.facts(),
    }
    result = await series("workflow", "executions/s", SIDES, effort, settings, measure, say)
    result.settings["alone_p50_ms"] = {side: _middle(rows) for side, rows in alone.items()}
    return result


def _told_of(progress: Progress, side: str, total: int, done: int) -> None:
    progress(side, done, total)


def _middle(rows: Sequence[Latency]) -> float:
    return round(sorted(row.p50 for row in rows)[len(rows) // 2], 3)


# ---- ours ----


async def _measure_ours(broker: BenchBroker, executions: int, seen: Callable[[int], None]) -> Measured:
    async with Engine(broker) as engine:
        await engine.register(DEFINITION)
        await _batches(engine, WARM_UP)
        await engine.until_ended(WORKFLOW, WARM_UP, PHASE_TIMEOUT_S)
        before_s = _cpu_s(engine)
        began = time.perf_counter()
        sending = asyncio.create_task(_batches(engine, executions, seen))
        try:
            await engine.until_ended(WORKFLOW, WARM_UP + executions, PHASE_TIMEOUT_S)
            elapsed_s = time.perf_counter() - began
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        after_s = _cpu_s(engine)
        # Last, when a JIT compiler has seen its work: one at a time is what a plant does all day.
        alone = await _alone(engine)
        total = WARM_UP + executions + ALONE
        await engine.until_ended(WORKFLOW, total, PHASE_TIMEOUT_S)
        good = await engine.ended(WORKFLOW, "succeeded")
        if good != total:
            raise SideFailed(f"{good:,} of {total:,} executions succeeded")
        spent = {
            f"{role} cpu_us_an_execution": round((cpu_s - before_s[role]) * 1e6 / executions, 1)
            for role, cpu_s in after_s.items()
        }
        return Measured(executions, elapsed_s, alone, {**engine.figures(), **spent})


def _cpu_s(engine: Engine) -> dict[str, float]:
    return {role: child.sample_usage().cpu_s for role, child in engine.children.items()}


async def _batches(engine: Engine, executions: int, seen: Callable[[int], None] = lambda _: None) -> None:
    """Start so many by batches of a hundred, some batches under way at a time."""
    numbers = range(executions)
    wires = [
        start_batch(WORKFLOW, [{"number": n} for n in numbers[first : first + BATCH]])
        for first in range(0, executions, BATCH)
    ]
    async with engine.pool(BATCHES_UNDER_WAY) as pool:

        async def one(number: int) -> None:
            answer = await pool.request(wires[number])
            if answer.status != 202:
                raise SideFailed(f"a batch was refused: {told(answer)}")
            seen(number * BATCH)

        await closed_loop(BATCHES_UNDER_WAY, len(wires), one)


async def _alone(engine: Engine) -> Latency:
    latencies: list[float] = []
    async with engine.pool(1) as pool:

        async def one(number: int) -> None:
            wire = start_one(WORKFLOW, {"number": number}, wait_s=10)
            began = time.perf_counter()
            answer = await pool.request(wire)
            latencies.append((time.perf_counter() - began) * 1000)
            if answer.status != 200 or b'"succeeded"' not in answer.body:
                raise SideFailed(f"no result: {told(answer)}")

        await closed_loop(1, ALONE, one)
    return latency_of(latencies)


# ---- peers ----


async def _measure_restate(command: Command, executions: int, say: Say, seen: Callable[[int], None]) -> Measured:
    specification = {"server": str(environments.restate_server(say))}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        child = await start(command.argv, Path(folder), specification)
        try:
            ready = await child.until("ready", PHASE_TIMEOUT_S)
            port, path = int(ready["port"]), str(ready["path"])
            await _through_ingress(port, path, "warm", WARM_UP, PEER_WORKERS)
            elapsed_s, _ = await _through_ingress(port, path, "all", executions, PEER_WORKERS, seen)
            _, alone = await _through_ingress(port, path, "alone", ALONE, 1)
            usage = child.sample_usage()
        finally:
            await child.stop()
    figures = {"cpu_s": round(usage.cpu_s, 2), "rss_mb": round(usage.rss_mb, 1)}
    return Measured(executions, elapsed_s, latency_of(alone), figures)


async def _through_ingress(
    port: int, path: str, name: str, executions: int, workers: int, seen: Callable[[int], None] = lambda _: None
) -> tuple[float, list[float]]:
    latencies: list[float] = []
    async with Pool(HOST, port, workers) as pool:

        async def one(number: int) -> None:
            wire = post(HOST, path.replace("{id}", f"{name}-{number}"), b'{"number": %d}' % number)
            began = time.perf_counter()
            answer = await pool.request(wire)
            latencies.append((time.perf_counter() - began) * 1000)
            if answer.status != 200 or json.loads(answer.body) != {"stored": 3}:
                raise SideFailed(f"no result: {told(answer)}")

        return await closed_loop(workers, executions, one, seen), latencies


async def _measure_dbos(command: Command, executions: int) -> Measured:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        specification = {
            "database": stack.enter_context(private_postgres()),
            "executions": executions,
            "alone": ALONE,
            "warm_up": WARM_UP,
            "workers": PEER_POOL,
            "pool": PEER_POOL,
        }
        child = await start(command.argv, folder, specification)
        try:
            result = await child.until("result", PHASE_TIMEOUT_S)
            usage = child.sample_usage()
        finally:
            await child.stop()
    figures = {"cpu_s": round(usage.cpu_s, 2), "rss_mb": round(usage.rss_mb, 1)}
    return Measured(executions, float(result["elapsed_s"]), latency_of(result["alone_ms"]), figures)
