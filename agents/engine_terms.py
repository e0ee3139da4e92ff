"""What the engine of every partition on this node goes by, and the definitions made ready for decisions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from agents.engine_entities import MakeEntities
from app.domain.workflow.commands import Heartbeat, Report
from app.domain.workflow.definition import Workflow
from app.domain.workflow.effects import Dispatch
from app.domain.workflow.expressions import Expressions
from app.domain.workflow.graph import Graph, graph_of
from app.domain.workflow.orders import Recall, TaskOrder
from app.domain.workflow.state import Execution
from app.domain.workflow.turn import LIMITS, Limits
from app.ports import Clock, Definitions, Tracing

GRAPHS_KEPT: Final = 1_000
LOCAL_QUEUE: Final = "default"


class Terms(NamedTuple):
    """The bounds of the engine; replaced whole when settings change. `cache_executions` and `cache_bytes` are for one
    partition.

    A record larger than `record_bytes` cannot be sent. Nothing begins early (decision 0014) within `early_after_s` of
    a takeover: what ended the owner before must be durable when it begins again.
    """

    limits: Limits = LIMITS
    record_bytes: int = 1_000_000
    transaction_commands: int = 500
    local_tasks: bool = True
    local_backlog: int = 5_000
    cache_executions: int = 20_000
    cache_bytes: int = 268_435_456
    passivate_after_s: float = 7_200
    chunk_bytes: int = 8_192
    chunk_events: int = 200
    retention_ms: int = 86_400_000
    sweep_executions: int = 500
    early_after_s: float = 5.0
    timer_lookahead_ms: int = 60_000
    timers_in_memory: int = 10_000


class Wanted(NamedTuple):
    """An attempt that may begin. `asked_ms` is 0 but for the first one of an execution.

    `apart`: owners have ended with it in hand (`agents.engine_again`).
    """

    execution_id: str
    workflow: str
    priority: int
    queue: str
    dispatch: Dispatch
    asked_ms: int
    apart: bool = False


def names_of(state: Execution) -> dict[str, str]:
    """What every log line of an execution carries."""
    parts = (state.traceparent or "").split("-")
    trace_id = parts[1] if len(parts) > 1 else ""
    return {"workflow_id": state.workflow, "execution_id": state.execution_id, "trace_id": trace_id}


class Owner(Protocol):
    """The engine of one partition, as those see it who carry out its tasks."""

    @property
    def closed(self) -> bool:
        """Whether its partition is another owner's by now."""

    def order(self, wanted: Wanted) -> TaskOrder | None:
        """What to carry out, handed out now; None when it is no longer wanted."""

    def began(self, order: TaskOrder) -> None:
        """An executor of this process has it: from now its time counts."""

    def hear(self, report: Report | Heartbeat) -> None:
        """Take a `Report` or a `Heartbeat` from an executor of this process."""


class Graphs:
    """Definitions made ready, once a version; immutable, so that they can be forgotten at any time."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._ready: dict[tuple[str, str], Graph] = {}

    def get(self, workflow: str, version: str) -> Graph | None:
        """The graph of a version, of the latest one for an empty `version`; None when it is not known here."""
        graph = self._ready.get((workflow, version))
        if graph is not None:
            return graph
        definition = self._definitions.get(workflow, version) if version else self._definitions.latest(workflow)
        return None if definition is None else self._make(definition)

    def _make(self, definition: Workflow) -> Graph:
        name = (definition.id, definition.version)
        graph = self._ready.get(name)
        if graph is None:
            if len(self._ready) >= GRAPHS_KEPT:
                self._ready.clear()
            graph = self._ready[name] = graph_of(definition)
        return graph


class Tasks(Protocol):
    """What carries attempts out (`agents.engine_dispatch`)."""

    @property
    def backlog(self) -> int:
        """Attempts that wait for a slot of this process."""

    def is_local(self, queue: str) -> bool: ...
    def offer(self, owner: Owner, wanted: Wanted) -> None: ...
    def cancel(self, execution_id: str, task: str | None, item: int | None, before: int) -> None: ...
    def recall(self, queue: str, recall: Recall) -> None: ...
    def drop(self, owner: Owner) -> None: ...


@dataclass(frozen=True, slots=True)
class Node:
    """What the engines of all partitions on this node share. `partitions` is that of `workflow.commands`."""

    terms: Callable[[], Terms]
    definitions: Definitions
    graphs: Graphs
    expressions: Expressions
    tasks: Tasks
    clock: Clock
    partitions: int
    wake: Callable[[int], None]
    make_entities: MakeEntities | None = None
    tracing: Tracing | None = None
