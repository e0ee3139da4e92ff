"""Proves the promises under kills: load on the whole product, SIGKILL on its parts, then the checker has the word.

    python -m app.bench.chaos [--seconds 120] [--every-s 4] [--rate 20]

The product is `headrace up` with a Kafka of its own in a temporary folder. Executions compute in task processes of the
coordinator and of the worker and insert one row each, made once, into SQLite. Every few seconds the coordinator, a task
process or the worker is killed. At the end every accepted execution must have ended well, with one legal history
and one row.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from app.adapters.clock import SystemClock
from app.adapters.effects import sql_keys
from app.adapters.topic_reader import TopicReader
from app.bench.child import Child, SideFailed, start
from app.bench.engine import HOST, free_port, start_batch, told
from app.bench.load import AnswerLost, Pool, get, post
from app.domain.workflow.legal import violations
from app.executions_check import Checked, Effects, Terms, check_executions, registered, until_committed
from config.kafka import KafkaSettings

ROLES = ("worker", "coordinator", "api-gateway")
VICTIMS = ("coordinator", "task process", "worker")
QUEUE = "far"
WORKFLOW = "chaos"
TABLE, COLUMN = "effects", "work"
BATCH = 5
READY_TIMEOUT_S = 120.0
END_TIMEOUT_S = 120.0
COMMIT_WAIT_S = 60.0
POLL_S = 0.5
TASK_PROCESS = "app.adapters.tasks.child"
# Kills cost attempts; none of them may cost an execution.
RETRY = {"attempts": 100, "backoff_s": 0.05, "factor": 1.5, "max_s": 1}

Say = Callable[[str], None]


def definition(database: Path) -> dict[str, Any]:
    """Two computations side by side, one here and one at the worker, then a row that names the work."""

    def compute(queue: str) -> dict[str, Any]:
        return {
            "type": "transform.python",
            "queue": queue,
            "retry": RETRY,
            "timeout_s": 30,
            "with": {"function": "app.bench.ours.steps:crunch", "mode": "process", "args": {"number": "${input.n}"}},
        }

    return {
        "id": WORKFLOW,
        "tasks": {
            "near": compute("default"),
            "far": compute(QUEUE),
            "store": {
                "type": "sink.sql",
                "needs": ["near", "far"],
                "retry": RETRY,
                "timeout_s": 30,
                "with": {
                    "from": f'{{"{COLUMN}": execution.id + "/store", "near": near, "far": far}}',
                    "url": f"sqlite:///{database}",
                    "table": TABLE,
                    "create": True,
                },
            },
        },
    }


@dataclass(slots=True)
class Report:
    """What was done and what was found."""

    accepted: int = 0
    unanswered: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    checked: Checked = field(default_factory=Checked)
    end_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Every reason for which this is no proof."""
        checked = self.checked
        found = [f"{fault.kind}: {fault.execution_id}: {fault.detail}" for fault in checked.faults[:20]]
        if checked.starts < self.accepted:
            found.append(f"{self.accepted:,} starts were accepted, {checked.starts:,} are on the log")
        if unhappy := {status: n for status, n in checked.statuses.items() if status != "succeeded"}:
            found.append(f"ended otherwise: {unhappy}")
        if checked.effects_due != checked.executions or checked.effects != checked.executions:
            found.append(f"{checked.executions:,} executions, {checked.effects:,} effects")
        if not self.accepted or len(self.kills) < len(VICTIMS):
            found.append(f"nothing is proved by {self.accepted:,} starts and kills of {dict(self.kills)}")
        return found

    def as_dict(self) -> dict[str, Any]:
        checked = self.checked
        return {
            "accepted": self.accepted,
            "unanswered": self.unanswered,
            "kills": dict(self.kills),
            "executions": checked.executions,
            "events": checked.events,
            "effects": checked.effects,
            "repeated_events": checked.repeats,
            "forks": checked.forks,
            "statuses": dict(checked.statuses),
            "s_to_the_last_end": round(self.end_s, 1),
            "problems": self.problems,
        }


class Product:
    """A running `headrace up`; a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self.port, self._health, self._kafka = free_port(), free_port(), free_port()
        self._settings = {
            "http.port": self.port,
            "health.port": self._health,
            "metrics.port": 0,
            "embedded.port": self._kafka,
            "embedded.heap_mib": 384,
            "kafka.partitions": 4,
            "supervisor.demo_workflows": False,
            "supervisor.restart_backoff_ms": 100,
            "supervisor.restart_backoff_max_ms": 500,
            "tasks.queues": json.dumps(["default", QUEUE]),
            "tasks.python_modules": '["app.bench.ours"]',
            "tasks.sqlite_paths": json.dumps([str(folder)]),
            "log.level": "WARNING",
            **settings,
        }
        self._child: Child | None = None

    async def __aenter__(self) -> Self:
        flags = [word for name, value in self._settings.items() for word in ("--set", f"{name}={value}")]
        self._child = await start([sys.executable, "-m", "app", "up", "--roles", ",".join(ROLES), *flags], self._folder)
        try:
            await self.until_ready()
        except BaseException:
            await self._child.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._child is not None
        await self._child.stop()

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._kafka}"

    @property
    def said(self) -> list[str]:
        """The last lines of output."""
        assert self._child is not None
        return list(self._child.heard)

    async def until_ready(self) -> None:
        """Return when every role is ready. Raises `SideFailed`."""
        assert self._child is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            self._child.check()
            with contextlib.suppress(OSError):
                async with Pool(HOST, self._health, 1) as pool:
                    if (await pool.request(get(HOST, "/health/ready"))).status == 200:
                        return
            if time.monotonic() > deadline:
                raise SideFailed(f"not ready in {READY_TIMEOUT_S:g} s: {' | '.join(self.said[-8:])}")
            await asyncio.sleep(POLL_S)

    def victim(self, name: str, chosen: random.Random) -> psutil.Process | None:
        """A process of that kind, if one runs."""
        assert self._child is not None
        found: list[psutil.Process] = []
        for process in psutil.Process(self._child.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                role = line[line.index("--roles") + 1] if "worker" in line and "--roles" in line else None
                if role == name or (name == "task process" and TASK_PROCESS in line):
                    found.append(process)
        return chosen.choice(found) if found else None


async def prove(
    seconds: float,
    every_s: float,
    rate: float,
    say: Say,
    settings: Mapping[str, Any] | None = None,
    seed: int = 1,
) -> Report:
    """Load and kills for so many seconds, the end of everything, and the checker."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as name:
        folder = Path(name)
        database = folder / "effects.db"
        async with Product(folder, settings or {}) as product:
            await _register(product, definition(database))
            say("up; load and kills begin")
            async with _loaded(product, rate, report):
                await _kill(product, seconds, every_s, report, say, random.Random(seed))
            say(f"{report.accepted:,} starts accepted, kills: {dict(report.kills)}; waiting for the last end")
            began = time.monotonic()
            await product.until_ready()
            await _until_ended(product, began, report)
            report.end_s = time.monotonic() - began
            report.checked = await _checked(product, database)
    return report


async def _register(product: Product, document: Mapping[str, Any]) -> None:
    async with Pool(HOST, product.port, 1) as pool:
        answer = await pool.request(post(HOST, "/api/v1/workflows", json.dumps(document).encode()))
    if answer.status not in {200, 201}:
        raise SideFailed(f"the workflow was refused: {told(answer)}")


@asynccontextmanager
async def _loaded(product: Product, rate: float, report: Report) -> AsyncIterator[None]:
    """Batches of starts at a steady rate, until the block ends; what was not answered counts as such."""
    stop = asyncio.Event()

    async def load() -> None:
        number = 0
        async with Pool(HOST, product.port, 2) as pool:
            while not stop.is_set():
                wire = start_batch(WORKFLOW, [{"n": number + one} for one in range(BATCH)])
                number += BATCH
                try:
                    answer = await pool.request(wire)
                    report.accepted += BATCH if answer.status == 202 else 0
                    report.unanswered += BATCH if answer.status != 202 else 0
                except (AnswerLost, OSError):
                    report.unanswered += BATCH
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), BATCH / rate)

    loading = asyncio.create_task(load())
    try:
        yield
    finally:
        stop.set()
        await loading


async def _kill(
    product: Product, seconds: float, every_s: float, report: Report, say: Say, chosen: random.Random
) -> None:
    """One victim after the other, each kind in turn; one that is just being restarted is waited for."""
    deadline = time.monotonic() + seconds
    turn = 0
    while time.monotonic() < deadline or len(report.kills) < len(VICTIMS):
        await asyncio.sleep(every_s * chosen.uniform(0.5, 1.5))
        name = VICTIMS[turn % len(VICTIMS)]
        victim = product.victim(name, chosen)
        if victim is None:
            if time.monotonic() > deadline + READY_TIMEOUT_S:
                raise SideFailed(f"no {name} to kill: {' | '.join(product.said[-8:])}")
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            report.kills[name] += 1
            say(f"killed {name} {victim.pid}")
        turn += 1


async def _until_ended(product: Product, began: float, report: Report) -> None:
    """Return when nothing is under way any more; after `END_TIMEOUT_S` the checker says what is stuck."""
    while time.monotonic() - began < END_TIMEOUT_S:
        checked = await _checked(product)
        if checked.executions >= report.accepted and not checked.statuses["not ended"] and not checked.pending:
            return
        await asyncio.sleep(POLL_S)


async def _checked(product: Product, database: Path | None = None) -> Checked:
    """The checker's word; with the database everything must have ended, and have had its effect."""
    kafka = KafkaSettings(bootstrap_servers=product.bootstrap)
    reader = TopicReader(kafka)
    definitions = await registered(reader)

    def keys() -> AsyncIterator[Sequence[str]]:
        return sql_keys(f"sqlite:///{database}", TABLE, COLUMN)

    async def settled(noted: Mapping[int, int]) -> None:
        await until_committed(kafka, SystemClock(), noted, COMMIT_WAIT_S)

    terms = Terms(
        violations,
        lambda workflow, version: definitions.get((workflow, version)),
        must_have_ended=database is not None,
        # While nothing has ended yet there may be no database.
        effects=None if database is None else Effects("store", keys),
    )
    return await check_executions(reader, terms, settled=settled)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, prove, print JSON; 1 when a promise was not kept."""
    import uvloop  # noqa: PLC0415 - only the program chooses the loop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--every-s", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(re.sub(r"\s+", " ", text), file=sys.stderr, flush=True)

    report = uvloop.run(prove(options.seconds, options.every_s, options.rate, say, seed=options.seed))
    print(json.dumps(report.as_dict(), indent=2))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
