"""What happened to an execution, in order: `seq` counts from 0 without a gap, `at` is ms UTC by the owner's clock.

The history is these events and nothing else; `evolve` folds them into the state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.domain.workflow.commands import Parent, TaskError

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled", "timed_out", "skipped"]
FINAL: Final = frozenset({"succeeded", "failed", "cancelled", "timed_out", "skipped"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionStarted:
    """First event of every history. `queued`: it waits for the limiter."""

    seq: int
    at: int
    workflow: str
    version: str
    input: Any
    key: str | None
    priority: int
    asked_at: int
    trigger: Mapping[str, Any]
    queued: bool = False
    parent: Parent | None = None
    notify: str | None = None
    traceparent: str | None = None
    execution_id: str = ""
    type: Literal["execution_started"] = "execution_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionAdmitted:
    """The limiter let it begin."""

    seq: int
    at: int
    type: Literal["execution_admitted"] = "execution_admitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScheduled:
    """An attempt may be carried out from now on (`attempt` counts from 1)."""

    seq: int
    at: int
    task: str
    item: int | None
    attempt: int
    type: Literal["task_scheduled"] = "task_scheduled"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSucceeded:
    """`at - duration_ms` is when the attempt began."""

    seq: int
    at: int
    task: str
    item: int | None
    attempt: int
    result: Any
    duration_ms: float = 0.0
    worker: str = ""
    type: Literal["task_succeeded"] = "task_succeeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """`retry_at` (ms) when it is tried again, None when that was the last attempt."""

    seq: int
    at: int
    task: str
    item: int | None
    attempt: int
    error: TaskError
    retry_at: int | None
    duration_ms: float = 0.0
    worker: str = ""
    type: Literal["task_failed"] = "task_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSkipped:
    """`when` was false, or a task it needs was skipped or failed: `reason` is a sentence."""

    seq: int
    at: int
    task: str
    reason: str
    type: Literal["task_skipped"] = "task_skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapExpanded:
    """The list of a map is known; `items` are the values, in order."""

    seq: int
    at: int
    task: str
    items: tuple[Any, ...]
    type: Literal["map_expanded"] = "map_expanded"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCompleted:
    """Every item of a map has succeeded; the task's result is theirs, in the order of the list."""

    seq: int
    at: int
    task: str
    type: Literal["map_completed"] = "map_completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitStarted:
    """A wait task lasts until `until` (ms)."""

    seq: int
    at: int
    task: str
    item: int | None
    until: int
    type: Literal["wait_started"] = "wait_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested:
    """An approval waits for the signal `name`, until `until` (ms) when it has a limit."""

    seq: int
    at: int
    task: str
    item: int | None
    name: str
    until: int | None
    type: Literal["approval_requested"] = "approval_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted:
    """A sub-workflow was asked to start; `version` None means the latest."""

    seq: int
    at: int
    task: str
    item: int | None
    attempt: int
    child_id: str
    workflow: str
    input: Any
    version: str | None = None
    type: Literal["child_started"] = "child_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalReceived:
    """A signal came, waited for or not."""

    seq: int
    at: int
    name: str
    payload: Any
    command_id: str
    type: Literal["signal_received"] = "signal_received"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPaused:
    """No further task begins."""

    seq: int
    at: int
    command_id: str
    type: Literal["execution_paused"] = "execution_paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResumed:
    """Tasks begin again."""

    seq: int
    at: int
    command_id: str
    type: Literal["execution_resumed"] = "execution_resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRetried:
    """It goes on after its end: exactly the tasks in `tasks` begin anew (those that need them are among them).

    Maps in `kept` keep their list and the items that succeeded. `queued`: it waits for the limiter again.
    """

    seq: int
    at: int
    command_id: str
    tasks: tuple[str, ...]
    kept: tuple[str, ...] = ()
    queued: bool = False
    type: Literal["execution_retried"] = "execution_retried"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompensationStarted:
    """The execution has failed; its `on_failure` task runs before it ends with `error` (or `status`)."""

    seq: int
    at: int
    status: Status
    error: TaskError | None
    task: str | None
    type: Literal["compensation_started"] = "compensation_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionEnded:
    """Last event of a run. `task` is the one that failed; `result` that of the last task(s) of the DAG by name."""

    seq: int
    at: int
    status: Status
    result: Any = None
    error: TaskError | None = None
    task: str | None = None
    reason: str = ""
    command_id: str = ""
    type: Literal["execution_ended"] = "execution_ended"


Event = (
    ExecutionStarted
    | ExecutionAdmitted
    | TaskScheduled
    | TaskSucceeded
    | TaskFailed
    | TaskSkipped
    | MapExpanded
    | MapCompleted
    | WaitStarted
    | ApprovalRequested
    | ChildStarted
    | SignalReceived
    | ExecutionPaused
    | ExecutionResumed
    | ExecutionRetried
    | CompensationStarted
    | ExecutionEnded
)
EVENT_TYPES: Final[Mapping[str, type[Event]]] = {
    cls.__dataclass_fields__["type"].default: cls for cls in Event.__args__
}
