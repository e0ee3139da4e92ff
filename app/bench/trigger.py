"""`bench trigger`: HTTP starts at a given rate, open loop, to the 202 and the first task; and the most there can be."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.engine import Engine, start_batch, start_one, told
from app.bench.environments import Say
from app.bench.load import Paced, closed_loop, open_loop
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress
from app.bench.statistics import Latency, latency_of
from app.bench.workflow import DEFINITION, WORKFLOW
from app.domain.workflow.events import Event, TaskSucceeded

RATES = (100, 200, 500, 1000, 2000)
SECONDS = 10
CONNECTIONS = 64
CLOSED_CONNECTIONS = 32
BATCH = 100
BATCH_CONNECTIONS = 8
WARM_UP = 500
PHASE_TIMEOUT_S = 120.0
FIRST_TASK = "source"
PROMISES = {"first_task_p99_ms_at_200": 10, "single_starts_per_s": 2000, "batch_starts_per_s": 10_000}


async def bench_trigger(
    broker: BenchBroker, seconds: int, say: Say, progress: Progress, rates: Sequence[int] = RATES
) -> Result:
    """Each rate for so many seconds, then as many starts as the API takes, one a request and a hundred a request."""
    runs: list[Run] = []
    async with Engine(broker) as engine:
        await engine.register(DEFINITION)
        done = await _closed(engine, WARM_UP, single=True)
        await engine.until_ended(WORKFLOW, int(done["starts"]), PHASE_TIMEOUT_S)
        total = int(done["starts"])
        for number, rate in enumerate(rates):
            progress(f"{rate}/s", number, len(rates))
            value, figures, started = await _open(engine, rate, seconds)
            total += started
            await engine.until_ended(WORKFLOW, total, PHASE_TIMEOUT_S)
            say(f"{rate}/s: accepted p99 {value['accepted_p99_ms']} ms, first task p99 {value['first_task_p99_ms']} ms")
            runs.append(Run(number, OURS, {"rate": float(rate), **value}, figures))
        single = await _closed(engine, seconds * 2_000, single=True)
        total += int(single["starts"])
        await engine.until_ended(WORKFLOW, total, PHASE_TIMEOUT_S)
        batched = await _closed(engine, seconds * 10_000, single=False)
        total += int(batched["starts"])
        await engine.until_ended(WORKFLOW, total, PHASE_TIMEOUT_S)
        figures = engine.figures()
    say(f"most: {single['per_s']:,.0f} single starts/s, {batched['per_s']:,.0f} starts/s by {BATCH}")
    ours = {
        "single_starts_per_s": round(single["per_s"], 1),
        "batch_starts_per_s": round(batched["per_s"], 1),
        **{
            f"first_task_p99_ms_at_{rate}": _value(run, "first_task_p99_ms")
            for rate, run in zip(rates, runs, strict=True)
        },
    }
    settings = {
        **machine(),
        "seconds": seconds,
        "rates": list(rates),
        "loop": "open: latency counts from the instant a start was due, whatever became of those before; connections "
        f"{CONNECTIONS}; the maximum closed loop, {CLOSED_CONNECTIONS} connections, batches over {BATCH_CONNECTIONS}",
        "first_task": "when the first task's attempt began by the history (its end less its duration, ms), same clock",
        "durability": {OURS: "202 when the start is acknowledged by all in-sync replicas"},
        "promises": PROMISES,
        "processes": figures,
        **await broker.facts(),
    }
    return Result("trigger", "ms and starts/s", ours, {}, settings, tuple(runs))


def _value(run: Run, name: str) -> float:
    assert isinstance(run.value, dict)
    return run.value[name]


async def _open(engine: Engine, rate: int, seconds: int) -> tuple[dict[str, float], dict[str, Any], int]:
    """One rate: percentiles to the 202 and to the first task, and how many were started."""
    before, since = await engine.ended(WORKFLOW), await engine.ends()
    async with engine.pool(CONNECTIONS) as pool:
        paced = await open_loop(rate, seconds, pool, lambda number: start_one(WORKFLOW, {"number": number}))
    refused = [one for one in paced if one.answer is None or one.answer.status != 202]
    accepted = {
        json.loads(one.answer.body)["execution_id"]: one for one in paced if one.answer and one.answer.status == 202
    }
    if not accepted:
        reason = told(refused[0].answer) if refused and refused[0].answer else "no answer"
        raise SideFailed(f"no start was accepted: {reason}")
    await engine.until_ended(WORKFLOW, before + len(accepted), PHASE_TIMEOUT_S)
    to_first = first_task_ms(accepted, await engine.histories(since))
    if len(to_first) != len(accepted):
        raise SideFailed(f"{len(accepted):,} starts were accepted, {len(to_first):,} have begun a task")
    to_202 = latency_of([(one.answered_s - one.due_s) * 1000 for one in accepted.values()])
    value = {**_named("accepted", to_202), **_named("first_task", latency_of(to_first))}
    return value, {"starts": len(paced), "refused": len(refused)}, len(accepted)


def _named(name: str, latency: Latency) -> dict[str, float]:
    return {f"{name}_{key}_ms": value for key, value in latency.as_dict().items()}


def first_task_ms(due: Mapping[str, Paced], histories: Mapping[str, Iterable[Event]]) -> list[float]:
    """From the instant a start was due to when its first task's attempt began, for those that have one."""
    found: list[float] = []
    for execution_id, one in due.items():
        for event in histories.get(execution_id, ()):
            if isinstance(event, TaskSucceeded) and event.task == FIRST_TASK:
                found.append(event.at - event.duration_ms - one.due_s * 1000)
                break
    return found


async def _closed(engine: Engine, starts: int, *, single: bool) -> dict[str, float]:
    """As many starts a second as the API takes."""
    connections = CLOSED_CONNECTIONS if single else BATCH_CONNECTIONS
    requests = starts if single else starts // BATCH
    batch = start_batch(WORKFLOW, [{"number": number} for number in range(BATCH)])
    async with engine.pool(connections) as pool:

        async def one(number: int) -> None:
            answer = await pool.request(start_one(WORKFLOW, {"number": number}) if single else batch)
            if answer.status != 202:
                raise SideFailed(f"a start was refused: {told(answer)}")

        began = time.perf_counter()
        await closed_loop(connections, requests, one)
        elapsed_s = time.perf_counter() - began
    done = requests if single else requests * BATCH
    return {"starts": done, "per_s": done / elapsed_s}
