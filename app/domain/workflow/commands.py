"""What an execution can be told; each arrives on `workflow.commands` or from within its owner.

A command carries what makes its repetition harmless: a start its execution id, a report its attempt and token,
an order of a person its `command_id`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskError:
    """Why an attempt failed. `type` is a short name (`Timeout`, `HttpStatus`, a Python exception's name)."""

    type: str
    message: str
    retryable: bool = True
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The task (and item of its map) of another execution that waits for this one."""

    execution_id: str
    task: str
    item: int | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Debounce:
    """A start is ignored when another with the same key was accepted less than `seconds` before.

    `at_ms` is the instant that counts, 0 for that of the start. `source` (a partition of a topic) and `offset` say
    which record asked, so that a record that comes again is decided as it was the first time.
    """

    key: str
    seconds: float
    at_ms: int = 0
    source: str = ""
    offset: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Begin an execution. `version` is always pinned by the sender; `key` is the concurrency key's value.

    `at_ms` is the instant it was asked for (wall clock). `trigger` says by what: {"kind": "http" | "schedule" |
    "backfill" | "kafka" | "workflow" | "cli", ...}. `notify` is the entity (schedule or backfill id) told of the end.
    """

    execution_id: str
    workflow: str
    version: str
    input: Any = None
    key: str | None = None
    priority: int = 0
    at_ms: int = 0
    trigger: Mapping[str, Any] = field(default_factory=dict)
    parent: Parent | None = None
    notify: str | None = None
    debounce: Debounce | None = None
    traceparent: str | None = None
    type: Literal["start"] = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How one attempt of a task ended; `error` None means that it succeeded with `result`.

    `token` is the fencing token of the dispatch: the report of an older attempt or dispatch is ignored.
    """

    execution_id: str
    task: str
    item: int | None
    attempt: int
    token: int
    result: Any = None
    error: TaskError | None = None
    started_ms: int = 0
    duration_ms: float = 0.0
    worker: str = ""
    type: Literal["report"] = "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """An attempt that takes long is alive."""

    execution_id: str
    task: str
    item: int | None
    attempt: int
    token: int
    type: Literal["heartbeat"] = "heartbeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnded:
    """A sub-workflow ended; `status` is its final status."""

    execution_id: str
    task: str
    item: int | None
    attempt: int
    child_id: str
    status: str
    result: Any = None
    error: TaskError | None = None
    type: Literal["child_ended"] = "child_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End the execution: running tasks are asked to stop, then what they say is ignored."""

    execution_id: str
    command_id: str
    reason: str = ""
    type: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Begin no further task; running ones end."""

    execution_id: str
    command_id: str
    type: Literal["pause"] = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on after a pause."""

    execution_id: str
    command_id: str
    type: Literal["resume"] = "resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Tell a waiting approval (or one yet to come) `name`; `payload` becomes the task's result."""

    execution_id: str
    command_id: str
    name: str
    payload: Any = None
    type: Literal["signal"] = "signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryExecution:
    """Go on from the failed tasks, or, with `from_task`, run that task and all that need it again."""

    execution_id: str
    command_id: str
    from_task: str | None = None
    type: Literal["retry"] = "retry"


# ---- from within the owner, never on the topic ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """The limiter lets a queued execution begin."""

    execution_id: str
    type: Literal["admit"] = "admit"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """A durable timer is due; `name` is what it was set under, `due_ms` when it was due."""

    execution_id: str
    name: str
    due_ms: int
    type: Literal["timer_fired"] = "timer_fired"


Command = (
    Start | Report | Heartbeat | ChildEnded | Cancel | Pause | Resume | Signal | RetryExecution | Admit | TimerFired
)
