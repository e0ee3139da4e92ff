"""A log of executions as the engine writes it, made by the real decisions in memory: what proofs are proved on."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from app.domain.workflow.commands import Command, Report, Signal, Start, TaskError, TimerFired
from app.domain.workflow.decide import advance
from app.domain.workflow.definition import Retry, Task, Workflow
from app.domain.workflow.events import Event, TaskFailed, TaskScheduled
from app.domain.workflow.graph import Graph, graph_of
from app.domain.workflow.orders import idempotency_key
from app.domain.workflow.placement import partition_of
from app.domain.workflow.state import Execution
from app.domain.workflow.timers import timer_name
from app.ports import InRecord
from app.workflow_wire import encode_command, encode_run
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER, WORKFLOW_EVENTS

PARTITIONS = 2
NOW_MS = 1_763_689_000_000
THREE = Workflow(
    id="three",
    version="v1",
    tasks={
        "source": Task(name="source", type="transform.cel"),
        "transform": Task(name="transform", type="transform.cel", needs=("source",), retry=Retry(attempts=2)),
        "sink": Task(name="sink", type="sink.sql", needs=("transform",)),
    },
)
ASK = Workflow(
    id="ask",
    version="v1",
    tasks={
        "ask": Task(name="ask", type="approval", params={"signal": "go"}),
        "sink": Task(name="sink", type="sink.sql", needs=("ask",)),
    },
)
DEFINITIONS = {(one.id, one.version): one for one in (THREE, ASK)}
BROKEN = TaskError(type="Broken", message="it broke")
Outcome = Callable[[TaskScheduled], TaskError | None]


class PlainExpressions:
    """Parameters as they are: the definitions here have no expressions."""

    def evaluate(self, source: str, names: Mapping[str, Any]) -> Any:
        return names[source]

    def render(self, params: Any, names: Mapping[str, Any]) -> Any:
        return params


class Record(NamedTuple):
    """A Kafka record in memory."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass
class LoggedRun:
    """One record of `workflow.events`; `raw` stands for what no encoder would write."""

    execution_id: str
    workflow: str
    version: str
    epoch: int
    events: list[Event]
    partition: int
    raw: bytes | None = None

    def encoded(self) -> bytes:
        return self.raw or encode_run(self.execution_id, self.workflow, self.version, self.epoch, self.events)


@dataclass
class Story:
    """What happened: starts as they were accepted, runs as they were logged, effects as they were made."""

    starts: list[Start] = field(default_factory=list)
    runs: list[LoggedRun] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    refused: list[Start] = field(default_factory=list)

    def of(self, execution_id: str) -> list[LoggedRun]:
        return [run for run in self.runs if run.execution_id == execution_id]

    def log(self) -> "MemoryLog":
        log = MemoryLog()
        for start in self.starts:
            log.add(WORKFLOW_COMMANDS.name, _home(start.execution_id), start.execution_id, encode_command(start))
        for start in self.refused:
            at = log.add(WORKFLOW_COMMANDS.name, _home(start.execution_id), start.execution_id, encode_command(start))
            letter: dict[str, Any] = {"kind": "command", "reason": "unknown_workflow", "topic": WORKFLOW_COMMANDS.name}
            letter |= {"partition": _home(start.execution_id), "offset": at}
            log.add(WORKFLOW_DEADLETTER.name, 0, start.execution_id, orjson.dumps(letter))
        for run in self.runs:
            log.add(WORKFLOW_EVENTS.name, run.partition, run.execution_id, run.encoded())
        return log


class MemoryLog:
    """Topics in memory, read as `TopicReader` reads them."""

    def __init__(self) -> None:
        self._records: dict[str, list[list[InRecord]]] = {}

    def add(self, topic: str, partition: int, key: str, value: bytes) -> int:
        """Append; the offset."""
        records = self._of(topic)[partition]
        records.append(Record(topic, partition, len(records), NOW_MS, key.encode(), value))
        return len(records) - 1

    async def begins(self, topic: str) -> dict[int, int]:
        return dict.fromkeys(range(PARTITIONS), 0)

    async def ends(self, topic: str) -> dict[int, int]:
        return {number: len(records) for number, records in enumerate(self._of(topic))}

    async def read(
        self, topic: str, start: Mapping[int, int], end: Mapping[int, int]
    ) -> AsyncGenerator[Sequence[InRecord], None]:
        for number, last in end.items():
            yield self._of(topic)[number][start.get(number, 0) : last]

    def _of(self, topic: str) -> list[list[InRecord]]:
        return self._records.setdefault(topic, [[] for _ in range(PARTITIONS)])


def _home(execution_id: str) -> int:
    return partition_of(execution_id, PARTITIONS)


class Author:
    """Writes the story of executions, one decision a run, by the real core."""

    def __init__(self) -> None:
        self.story = Story()
        self._now = NOW_MS
        self._states: dict[str, Execution] = {}
        self._graphs: dict[str, Graph] = {}

    def starts(
        self, execution_id: str, workflow: Workflow = THREE, outcome: Outcome = lambda _: None, given: Any = None
    ) -> None:
        """Start and go on until nothing moves by itself; `outcome` is the error of an attempt, None for success."""
        given = {"n": 1} if given is None else given
        start = Start(
            execution_id=execution_id, workflow=workflow.id, version=workflow.version, input=given, at_ms=self._now
        )
        self.story.starts.append(start)
        self._graphs[execution_id] = graph_of(workflow)
        self._told(execution_id, start, outcome)

    def told(self, execution_id: str, command: Command, outcome: Outcome = lambda _: None) -> None:
        """Tell an execution something, and go on."""
        self._told(execution_id, command, outcome)

    def _told(self, execution_id: str, command: Command, outcome: Outcome) -> None:
        waiting: list[Command] = [command]
        while waiting:
            self._now += 10
            graph = self._graphs[execution_id]
            state, events = advance(
                self._states.get(execution_id), waiting.pop(0), graph, self._now, PlainExpressions()
            )
            assert state is not None
            self._states[execution_id] = state
            if not events:
                continue
            workflow = graph.workflow
            self.story.runs.append(
                LoggedRun(execution_id, workflow.id, workflow.version, 1, events, _home(execution_id))
            )
            waiting += [found for event in events if (found := self._next(execution_id, event, outcome)) is not None]

    def _next(self, execution_id: str, event: Event, outcome: Outcome) -> Command | None:
        if isinstance(event, TaskScheduled):
            error = outcome(event)
            if event.task == "sink" and error is None:
                self.story.effects.append(idempotency_key(execution_id, event.task, event.item))
            return Report(
                execution_id=execution_id,
                task=event.task,
                item=event.item,
                attempt=event.attempt,
                token=event.seq,
                result=None if error else {"of": event.task},
                error=error,
                duration_ms=5.0,
            )
        if isinstance(event, TaskFailed) and event.retry_at is not None:
            name = timer_name("retry", event.task, event.item, event.attempt)
            self._now = max(self._now, event.retry_at)
            return TimerFired(execution_id=execution_id, name=name, due_ms=event.retry_at)
        return None


def signal(execution_id: str, name: str) -> Signal:
    return Signal(execution_id=execution_id, command_id=f"{execution_id}:{name}", name=name)


def later(event: Event, **changes: Any) -> Event:
    """The same event, changed."""
    return replace(event, **changes)
