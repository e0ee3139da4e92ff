"""The load of a mutant's run: starts, each written down before it is sent, and what a zombie would say meanwhile."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from app.adapters.producer import BatchProducer, ProducerLimits
from app.bench.child import SideFailed
from app.bench.engine import HOST, told
from app.bench.load import AnswerLost, Pool, post
from app.chaos.oplog import OpLog
from app.domain.workflow.commands import Report
from app.domain.workflow.placement import partition_of
from app.ports import OutRecord
from app.workflow_wire import encode_command
from config.topics import WORKFLOW_COMMANDS

WORKFLOW: Final = "mutants"
EFFECT: Final = "store"
ANSWER_S: Final = 3.0
PARTITIONS: Final = 2
_RETRY: Final = {"attempts": 100, "backoff_s": 0.05, "factor": 1.5, "max_s": 0.5}


def definition(effects_url: str) -> dict[str, Any]:
    """A computation, a short wait, then one effect at the ledger."""
    return {
        "id": WORKFLOW,
        "tasks": {
            "near": {"type": "transform.cel", "retry": _RETRY, "with": {"from": "[input.n]", "value": "rows[0] * 2"}},
            "nap": {"type": "wait", "needs": ["near"], "with": {"seconds": 0.4}},
            EFFECT: {
                "type": "sink.http",
                "needs": ["nap", "near"],
                "retry": _RETRY,
                "with": {
                    "url": effects_url,
                    "timeout_s": 5,
                    "body": {
                        "execution": "${execution.id}",
                        "step": EFFECT,
                        "attempt": "${execution.attempt}",
                        "token": "${execution.attempt}",
                        "hash": "${string(near)}",
                    },
                },
            },
        },
    }


async def register(port: int, document: Mapping[str, Any]) -> None:
    """Make the workflow known. Raises `SideFailed`."""
    async with Pool(HOST, port, 1) as pool:
        answer = await pool.request(post(HOST, "/api/v1/workflows", json.dumps(document).encode()))
    if answer.status not in {200, 201}:
        raise SideFailed(f"the workflow was refused: {told(answer)}")


@dataclass(slots=True)
class Load:
    """Starts of one workflow; `twice` asks for each of them again, under its key."""

    log: OpLog
    twice: bool = False
    accepted: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)

    async def run(self, port: int, rate: float, stop: asyncio.Event) -> None:
        """`rate` a second until `stop`, whatever becomes of them."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                key = f"s-{len(self.keys)}"
                self.keys.append(key)
                group.create_task(self.ask(port, key))
                if self.twice:
                    group.create_task(self.ask(port, key))
                due_s += 1 / rate
                await asyncio.sleep(max(0.0, due_s - loop.time()))

    async def ask(self, port: int, key: str) -> None:
        """One start."""
        (op,) = await self.log.intend([{"key": key}])
        body = orjson.dumps({"input": {"op": key, "n": len(key)}})
        wire = post(HOST, f"/api/v1/workflows/{WORKFLOW}/execute", body, (("idempotency-key", key),))
        try:
            async with asyncio.timeout(ANSWER_S), Pool(HOST, port, 1) as pool:
                answer = await pool.request(wire)
        except (TimeoutError, AnswerLost, OSError) as error:
            self.log.outcome(op, "info", {"detail": type(error).__name__})
            return
        if answer.status == 202:
            execution = str(orjson.loads(answer.body)["execution_id"])
            self.accepted.add(execution)
            self.log.outcome(op, "ok", {"execution": execution})
        else:
            self.log.outcome(op, "fail" if answer.status < 500 else "info", {"detail": str(answer.status)})


async def zombie_reports(bootstrap: str, load: Load, for_s: float) -> int:
    """Tell again and again, with a token of before, that `near` has succeeded with something else; how often."""
    count = 0
    until_s = time.monotonic() + for_s
    async with BatchProducer(ProducerLimits(bootstrap_servers=bootstrap, client_id="zombie")) as producer:
        while time.monotonic() < until_s:
            await asyncio.sleep(0.1)
            reports = [
                Report(execution_id=one, task="near", item=None, attempt=1, token=0, result=-1)
                for one in sorted(load.accepted)
            ]
            await producer.publish([_command(report) for report in reports])
            count += len(reports)
    return count


def _command(report: Report) -> OutRecord:
    key = report.execution_id
    partition = partition_of(key, PARTITIONS)
    return OutRecord(
        WORKFLOW_COMMANDS.name, key.encode(), encode_command(report), time.time_ns() // 1_000_000, (), partition
    )
