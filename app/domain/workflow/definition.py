"""A workflow as it was registered: immutable, and named by its id and the hash of its content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

WhenFull = Literal["queue", "skip", "cancel_running"]
Overlap = Literal["skip", "queue", "cancel_running", "allow"]
CatchUp = Literal["none", "last", "all"]

# Task types that the engine itself carries out; every other type is work for a task executor.
WAIT: Final = "wait"
APPROVAL: Final = "approval"
SUB_WORKFLOW: Final = "workflow"
CONTROL_TYPES: Final = frozenset({WAIT, APPROVAL, SUB_WORKFLOW})
# Types whose attempts touch nothing outside: the same input gives the same result, however often.
PURE_TYPES: Final = frozenset({"transform.cel", "transform.jmespath", "transform.aggregate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a task is tried (`attempts` in all) and how long between: backoff_s * factor^n, at most max_s.

    `jitter` is the share (0 to 1) by which a wait may be longer or shorter. An error whose type is in
    `non_retryable` is not tried again.
    """

    attempts: int = 1
    backoff_s: float = 0.2
    factor: float = 2.0
    max_s: float = 30.0
    jitter: float = 0.0
    non_retryable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOver:
    """Fan-out: `over` is an expression that gives a list; at most `concurrency` items at once, results in its order."""

    over: str
    concurrency: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One node of the DAG. `params` is what the YAML says under `with`, expressions and secrets still unresolved.

    `timeout_s` bounds one attempt; `heartbeat_s` is the longest silence of a task that sends heartbeats.
    """

    name: str
    type: str
    needs: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    when: str | None = None
    map: MapOver | None = None
    retry: Retry = Retry()
    timeout_s: float | None = None
    heartbeat_s: float | None = None
    queue: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """At most `limit` executions of a workflow with the same value of `key` (an expression over `input`) at once."""

    key: str | None = None
    limit: int = 1
    when_full: WhenFull = "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """At most `limit` executions of a workflow begin in any `per_s` seconds; the others wait in line."""

    limit: int
    per_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTrigger:
    """Start by cron (five fields) in a time zone."""

    cron: str
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up: CatchUp = "last"
    input: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicTrigger:
    """Start by a record of a Kafka topic: `when` is an expression over its JSON, `key` the field to debounce by.

    Within `debounce_s` after a start, further records of the same key start nothing. `input` maps names to
    expressions over the record; without it the record itself is the input.
    """

    topic: str
    when: str | None = None
    key: str | None = None
    debounce_s: float = 0.0
    input: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A definition. `version` is the hash of its canonical JSON; `tasks` are in the order they were written.

    `on_failure` runs once, after the execution has failed for good and before it ends.
    """

    id: str
    version: str
    tasks: Mapping[str, Task]
    http: bool = True
    schedules: tuple[ScheduleTrigger, ...] = ()
    topics: tuple[TopicTrigger, ...] = ()
    concurrency: Concurrency | None = None
    rate: Rate | None = None
    priority: int = 0
    timeout_s: float | None = None
    on_failure: Task | None = None
    description: str = ""
