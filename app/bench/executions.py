"""`bench executions`: a million finished and many waiting executions, what they weigh, and how fast they are found."""

import asyncio
import json
import random
import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from app.adapters.producer import BatchProducer, ProducerLimits
from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.engine import HOST, Engine, start_one, told
from app.bench.environments import Say
from app.bench.load import Pool, get
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress
from app.bench.statistics import Latency, latency_of
from app.domain.workflow.commands import Start
from app.domain.workflow.placement import partition_of
from app.ports import OutRecord
from app.workflow_wire import encode_command
from config.topics import WORKFLOW_COMMANDS

FINISHED = 1_000_000
WAITING_SHARE = 0.1
SEND_EACH = 2_000
UNDER_WAY = 4
QUESTIONS = 300
LONG_EVENTS = 20_000
PAGE = 500
DONE, WAITS, LONG = "bench-done", "bench-waits", "bench-long"
DEFINITIONS: tuple[dict[str, Any], ...] = (
    {"id": DONE, "tasks": {"double": {"type": "transform.cel", "with": {"from": "input", "map": "row.n * 2"}}}},
    {"id": WAITS, "tasks": {"ask": {"type": "approval", "with": {"signal": "go"}}}},
    {
        "id": LONG,
        "tasks": {
            "each": {
                "type": "transform.cel",
                "map": {"over": "input.items", "concurrency": 100},
                "with": {"from": "item", "map": "row + 1"},
            }
        },
    },
)
PROMISES = {"coordinator_rss_mb": 600, "list_p95_ms": 50, "open_p95_ms": 50, "long_over_short_per_event": 2}


async def bench_executions(broker: BenchBroker, finished: int, say: Say, progress: Progress) -> Result:
    """Fill, weigh, ask; then one history of 20,000 events beside one of a tenth of that."""
    waiting = max(1, round(finished * WAITING_SHARE))
    async with Engine(broker) as engine:
        for definition in DEFINITIONS:
            await engine.register(definition)
        filled = await _fill(broker, engine, finished, waiting, progress)
        say(f"{finished:,} finished and {waiting:,} waiting in {filled['seconds']:.0f} s")
        # What it is at rest, and the most it was on the way.
        rss = engine.figures()
        found = await _questions(engine, filled["ids"], waiting)
        say(f"list p95 {found['list'].p95:g} ms, open p95 {found['open'].p95:g} ms")
        long = await _histories(engine)
        say(f"a history of {long['events']:,} events took {long['seconds']:.1f} s")
    ours: dict[str, float] = {
        "coordinator_rss_mb": rss["coordinator rss_mb"],
        "api_rss_mb": rss["api-gateway rss_mb"],
        "list_p95_ms": round(found["list"].p95, 3),
        "open_p95_ms": round(found["open"].p95, 3),
        "history_page_p95_ms": round(long["page"].p95, 3),
        "long_over_short_per_event": long["over_short"],
    }
    figures = {
        "fill_executions_per_s": round((finished + waiting) / filled["seconds"], 1),
        "long_history_events": long["events"],
        "long_history_s": round(long["seconds"], 2),
        **{f"{name}_{key}_ms": value for name in ("list", "open") for key, value in found[name].as_dict().items()},
    }
    settings = {
        **machine(),
        "finished": finished,
        "waiting": waiting,
        "questions": QUESTIONS,
        "measured": "memory of the processes at their largest; lists newest first by status, workflow and page, and "
        "opening executions at random, one request at a time; a history read in pages",
        "durability": {OURS: "as `bench workflow`"},
        "promises": PROMISES,
        **await broker.facts(),
    }
    return Result("executions", "MB and ms", ours, {}, settings, (Run(0, OURS, ours, figures),))


async def _fill(broker: BenchBroker, engine: Engine, finished: int, waiting: int, progress: Progress) -> dict[str, Any]:
    """Starts straight on the topic of commands, as the API would send them, never far ahead of the engine."""
    versions = {name: await _version(engine, name) for name in (DONE, WAITS)}
    limits = ProducerLimits(bootstrap_servers=broker.bootstrap_servers)
    chosen = random.Random(7)
    ids: list[str] = []
    began = time.perf_counter()
    sent = 0
    total = finished + waiting
    async with BatchProducer(limits) as producer:
        partitions = await producer.partitions(WORKFLOW_COMMANDS.name)
        while sent < total:
            first = sent
            records: list[OutRecord] = []
            while sent < total and len(records) < SEND_EACH:
                # Spread evenly, so that neither kind is the newest.
                waits = sent * waiting // total != (sent + 1) * waiting // total
                name = WAITS if waits else DONE
                execution_id = str(uuid.UUID(int=chosen.getrandbits(128), version=4))
                if chosen.random() < QUESTIONS * 10 / total:
                    ids.append(execution_id)
                records.append(_record(execution_id, name, versions[name], sent, partitions))
                sent += 1
            await producer.publish(records)
            ahead = first - await engine.ended(DONE)
            while ahead > SEND_EACH * UNDER_WAY + waiting:
                await asyncio.sleep(0.05)
                ahead = first - await engine.ended(DONE)
            progress("filling", sent, total)
    await engine.until_ended(DONE, finished, 300 + finished / 200)
    return {"seconds": time.perf_counter() - began, "ids": ids}


def _record(execution_id: str, workflow: str, version: str, number: int, partitions: int) -> OutRecord:
    now_ms = int(time.time() * 1000)
    start = Start(
        execution_id=execution_id,
        workflow=workflow,
        version=version,
        input={"n": number},
        at_ms=now_ms,
        trigger={"kind": "cli"},
    )
    where = partition_of(execution_id, partitions)
    return OutRecord(WORKFLOW_COMMANDS.name, execution_id.encode(), encode_command(start), now_ms, (), where)


async def _version(engine: Engine, workflow: str) -> str:
    async with engine.pool(1) as pool:
        answer = await pool.request(get(HOST, f"/api/v1/workflows/{workflow}"))
    if answer.status != 200:
        raise SideFailed(f"the workflow cannot be read: {told(answer)}")
    return str(json.loads(answer.body)["version"])


async def _questions(engine: Engine, ids: Sequence[str], waiting: int) -> dict[str, Latency]:
    """Lists and single executions; the API must have read all of it first."""
    chosen = random.Random(11)
    lists: list[float] = []
    opened: list[float] = []
    async with engine.pool(1) as pool:
        await _caught_up(pool, waiting)
        paths = (
            "/api/v1/executions?limit=50",
            f"/api/v1/executions?limit=50&workflow={WAITS}&status=running",
            f"/api/v1/executions?limit=50&workflow={DONE}&status=succeeded",
        )
        for number in range(QUESTIONS):
            body = await _timed(pool, paths[number % len(paths)], lists)
            cursor = body.get("next_cursor")
            if cursor:
                await _timed(pool, f"{paths[number % len(paths)]}&cursor={quote(str(cursor))}", lists)
            await _timed(pool, f"/api/v1/executions/{chosen.choice(ids)}", opened)
    return {"list": latency_of(lists), "open": latency_of(opened)}


async def _caught_up(pool: Pool, waiting: int) -> None:
    """Return when the API lists a waiting execution and its newest one has ended: it has read the events."""
    deadline = time.monotonic() + 120
    path = f"/api/v1/executions?limit=1&workflow={WAITS}&status=running"
    while waiting and not json.loads((await pool.request(get(HOST, path))).body).get("items"):
        if time.monotonic() > deadline:
            raise SideFailed("the API lists no waiting execution")
        await asyncio.sleep(0.1)


async def _timed(pool: Pool, path: str, into: list[float]) -> dict[str, Any]:
    wire = get(HOST, path)
    began = time.perf_counter()
    answer = await pool.request(wire)
    into.append((time.perf_counter() - began) * 1000)
    if answer.status != 200:
        raise SideFailed(f"{path}: {told(answer)}")
    body: dict[str, Any] = json.loads(answer.body)
    return body


async def _histories(engine: Engine) -> dict[str, Any]:
    """Time an event of a long history beside one of a short one, and read the long one in pages."""
    short_s, _, short_events = await _one_history(engine, LONG_EVENTS // 20)
    long_s, execution_id, long_events = await _one_history(engine, LONG_EVENTS // 2)
    pages = await _pages(engine, execution_id, long_events)
    over_short = round((long_s / long_events) / (short_s / short_events), 2)
    return {"events": long_events, "seconds": long_s, "page": latency_of(pages), "over_short": over_short}


async def _pages(engine: Engine, execution_id: str, events: int) -> list[float]:
    """Milliseconds of each page of a history, read from its beginning to its end."""
    pages: list[float] = []
    seen = 0
    path = f"/api/v1/executions/{execution_id}/history?limit={PAGE}"
    deadline = time.monotonic() + 60
    async with engine.pool(1) as pool:
        while seen < events:
            body = await _timed(pool, path if not seen else f"{path}&after_seq={seen - 1}", pages)
            seen += len(body["events"])
            if not body["events"]:  # the index is not there yet
                pages.pop()
                await asyncio.sleep(0.1)
                if time.monotonic() > deadline:
                    raise SideFailed(f"{seen:,} of {events:,} events can be read in pages")
    return pages


async def _one_history(engine: Engine, items: int) -> tuple[float, str, int]:
    """Start one with so many items; seconds to its end, its id, and its number of events."""
    before, since = await engine.ended(LONG), await engine.ends()
    began = time.perf_counter()
    async with engine.pool(1) as pool:
        answer = await pool.request(start_one(LONG, {"items": list(range(items))}))
    if answer.status != 202:
        raise SideFailed(f"the start was refused: {told(answer)}")
    await engine.until_ended(LONG, before + 1, 300)
    elapsed_s = time.perf_counter() - began
    execution_id = str(json.loads(answer.body)["execution_id"])
    events = (await engine.histories(since))[execution_id]
    return elapsed_s, execution_id, len(events)
