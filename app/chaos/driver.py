"""The load: starts at a steady rate whatever becomes of them, each written down before it is sent.

Every start has a key of its own, which is its Idempotency-Key and stands in its input. A request without an answer
leaves its starts open (`info`); half of these are asked for again, under the same keys, at another node.
"""

import asyncio
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from app.bench.child import SideFailed
from app.bench.engine import told
from app.bench.load import Answer, AnswerLost, Connection, post
from app.chaos.oplog import OpLog, Outcome
from app.chaos.proxy import HOST

ANSWER_TIMEOUT_S: Final = 5.0
AGAIN_AFTER_S: Final = 1.0
AGAIN_SHARE: Final = 0.5
# An open loop that is not answered must not fill the memory: what is beyond this is counted and left out.
REQUESTS_MAX: Final = 400
_TICK_S: Final = 0.005


class Lost(Exception):
    """No answer came: the request may or may not have been carried out."""


class Intent(NamedTuple):
    """One start: the key of the request and the number it computes with."""

    key: str
    number: int


@dataclass(slots=True)
class Tally:
    """What the driver has seen so far, in starts; `accepted` are the executions that were acknowledged."""

    planned: int = 0
    asked: int = 0
    again: int = 0
    failed: int = 0
    unknown: int = 0
    left_out: int = 0
    accepted: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, int]:
        return {
            "planned": self.planned,
            "asked": self.asked,
            "asked_again": self.again,
            "accepted": len(self.accepted),
            "refused": self.failed,
            "unknown": self.unknown,
            "left_out": self.left_out,
        }


class Clients:
    """Connections to several APIs, one request under way on each connection; what fails is closed."""

    def __init__(self) -> None:
        self._free: dict[int, list[Connection]] = {}

    async def request(self, port: int, wire: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """The answer. Raises `Lost`."""
        free = self._free.setdefault(port, [])
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while free and connection is None:
                    found = free.pop()
                    connection = found if found.is_open else None
                if connection is None:
                    _, connection = await asyncio.get_running_loop().create_connection(Connection, HOST, port)
                answer = await connection.send(wire)
        except (TimeoutError, AnswerLost, OSError) as error:
            if connection is not None:
                connection.close()
            raise Lost(type(error).__name__) from error
        free.append(connection)
        return answer

    def close(self) -> None:
        for connection in itertools.chain.from_iterable(self._free.values()):
            connection.close()


class Driver:
    """Starts executions at `rate` a second; `factor` may be raised and lowered while it runs.

    `workflows` are those that are started, each with its share of the requests.
    """

    def __init__(
        self, ports: Sequence[int], log: OpLog, workflows: Mapping[str, float], rate: float, batch: int, seed: int
    ) -> None:
        self.tally = Tally()
        self.factor = 1.0
        self.rate = rate
        self._ports = list(ports)
        self._log = log
        self._workflows, self._shares = tuple(workflows), tuple(workflows.values())
        self._batch = batch
        self._chance = random.Random(seed)
        self._prefix = f"{seed}-"
        self._numbers = itertools.count()
        self._clients = Clients()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is under way is waited for."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        try:
            while not stop.is_set():
                while due_s <= loop.time():
                    self._begin()
                    due_s += self._batch / (self.rate * self.factor)
                await asyncio.sleep(_TICK_S)
            while self._tasks:
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            self._clients.close()

    async def register(self, definition: Mapping[str, Any]) -> None:
        """Make a workflow known. Raises `SideFailed` when it is refused."""
        wire = post(HOST, "/api/v1/workflows", json.dumps(definition).encode())
        answer = await self._clients.request(self._ports[0], wire, 30.0)
        if answer.status not in {200, 201}:
            raise SideFailed(f"the workflow was refused: {told(answer)}")

    async def start_now(self, workflow: str, count: int) -> int:
        """Start so many executions of another workflow; how many were answered."""
        numbers = itertools.islice(self._numbers, count)
        intents = [Intent(f"{self._prefix}{number}", number) for number in numbers]
        self.tally.planned += count
        unknown = await self._ask(self._chance.choice(self._ports), intents, workflow)
        return count - len(unknown)

    def _begin(self) -> None:
        intents = [Intent(f"{self._prefix}{number}", number) for number in itertools.islice(self._numbers, self._batch)]
        self.tally.planned += len(intents)
        if len(self._tasks) >= REQUESTS_MAX:
            self.tally.left_out += len(intents)
            return
        task = asyncio.create_task(self._start(intents))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, intents: Sequence[Intent]) -> None:
        port = self._chance.choice(self._ports)
        (workflow,) = self._chance.choices(self._workflows, self._shares)
        unknown = await self._ask(port, intents, workflow)
        again = [intent for intent in unknown if self._chance.random() < AGAIN_SHARE]
        if again:
            await asyncio.sleep(AGAIN_AFTER_S)
            others = [other for other in self._ports if other != port] or [port]
            self.tally.again += len(again)
            await self._ask(self._chance.choice(others), again, workflow)

    async def _ask(self, port: int, intents: Sequence[Intent], workflow: str) -> list[Intent]:
        """One request for all of them; those whose fate is not known."""
        ops = await self._log.intend([{"key": intent.key} for intent in intents])
        self.tally.asked += len(intents)
        starts = [
            {"input": {"op": intent.key, "n": intent.number}, "idempotency_key": intent.key} for intent in intents
        ]
        try:
            path = f"/api/v1/workflows/{workflow}/execute:batch"
            answer = await self._clients.request(port, post(HOST, path, orjson.dumps(starts)))
        except Lost as lost:
            outcomes: list[tuple[Outcome, dict[str, Any]]] = [("info", {"detail": str(lost)})] * len(intents)
        else:
            outcomes = _outcomes(answer, len(intents))
        for op, (outcome, told_of) in zip(ops, outcomes, strict=True):
            self._log.outcome(op, outcome, told_of)
            self._count(outcome, told_of)
        return [intent for intent, (outcome, _) in zip(intents, outcomes, strict=True) if outcome == "info"]

    def _count(self, outcome: Outcome, told_of: Mapping[str, Any]) -> None:
        if outcome == "ok":
            self.tally.accepted.add(told_of["execution"])
        elif outcome == "fail":
            self.tally.failed += 1
        else:
            self.tally.unknown += 1


def _outcomes(answer: Answer, count: int) -> list[tuple[Outcome, dict[str, Any]]]:
    """What became of each start of a batch."""
    if answer.status != 202:
        outcome: Outcome = "fail" if answer.status < 500 else "info"
        return [(outcome, {"detail": str(answer.status)})] * count
    items = orjson.loads(answer.body)["items"]
    assert len(items) == count, "each start is answered"
    return [_outcome(item) for item in items]


def _outcome(item: Mapping[str, Any]) -> tuple[Outcome, dict[str, Any]]:
    code = item["code"]
    if code == 202:
        return "ok", {"execution": item["execution_id"]}
    return "fail" if code < 500 else "info", {"detail": f"{code} {item.get('detail', '')}"}
