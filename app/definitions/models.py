"""The shape of a definition, as its JSON Schema is published: fields, types and bounds."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from app.domain.workflow.definition import CatchUp, Overlap, WhenFull

ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
TASK_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
QUEUE_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_TASKS: Final = 500
DAY_S: Final = 86_400
YEAR_S: Final = 366 * DAY_S

Seconds = Annotated[float, Field(gt=0, le=YEAR_S, allow_inf_nan=False)]
Cel = Annotated[str, Field(min_length=1, max_length=1024)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RetryShape(_Shape):
    """How often a task is tried, and how long between."""

    attempts: int = Field(1, ge=1, le=1000, description="Attempts in all, the first one included.")
    backoff_s: float = Field(0.2, ge=0, le=DAY_S, description="Pause before the second attempt.")
    factor: float = Field(2.0, ge=1, le=100, description="Each further pause is this many times the one before.")
    max_s: float = Field(30.0, ge=0, le=DAY_S, description="Longest pause.")
    jitter: float = Field(0.0, ge=0, le=1, description="Share by which a pause is longer or shorter, by chance.")
    non_retryable: list[str] = Field(
        default_factory=list, max_length=100, description="Types of errors that are not tried again."
    )


class MapShape(_Shape):
    """Fan-out: the task once for each item of a list."""

    over: Cel = Field(description="CEL that gives the list.")
    concurrency: int = Field(10, ge=1, le=1000, description="Items at once.")


class TaskShape(_Shape):
    """One node of the DAG."""

    type: str = Field(min_length=1, max_length=100, description="Task type; wait, approval, workflow.")
    needs: list[str] | str = Field(default_factory=list, description="Tasks that must have ended before.")
    with_: dict[str, Any] | None = Field(
        None, alias="with", description="Parameters of the type; `${…}` is CEL, `${secret:NAME}` a secret."
    )
    when: Cel | None = Field(None, description="CEL; the task is skipped when it is false.")
    map: MapShape | Cel | None = Field(None, description="Run once for each item of a list.")
    retry: RetryShape | None = Field(None, description="Further attempts.")
    timeout_s: Seconds | None = Field(None, description="One attempt is given up after this long.")
    heartbeat_s: Seconds | None = Field(None, description="An attempt that is silent for longer is given up.")
    queue: str = Field("default", pattern=QUEUE_PATTERN, description="Queue of the workers that carry it out.")


class CompensationShape(_Shape):
    """The task that runs once when the execution has failed for good."""

    type: str = Field(min_length=1, max_length=100, description="Task type.")
    with_: dict[str, Any] | None = Field(None, alias="with", description="Parameters; expressions also read `error`.")
    retry: RetryShape | None = Field(None, description="Further attempts.")
    timeout_s: Seconds | None = Field(None, description="One attempt is given up after this long.")
    heartbeat_s: Seconds | None = Field(None, description="An attempt that is silent for longer is given up.")
    queue: str = Field("default", pattern=QUEUE_PATTERN, description="Queue of the workers that carry it out.")


class ConcurrencyShape(_Shape):
    """Executions at once."""

    key: Cel | None = Field(None, description="CEL over input and trigger; executions are counted by its value.")
    limit: int = Field(1, ge=1, le=1_000_000, description="Executions at once with the same key.")
    when_full: WhenFull = Field("queue", description="What becomes of one more.")


class RateShape(_Shape):
    """Executions that begin in a stretch of time."""

    limit: int = Field(ge=1, le=1_000_000, description="Executions that begin in any `per_s` seconds.")
    per_s: Seconds = Field(1.0, description="The stretch.")


class _NoFields(_Shape):
    """Nothing to set."""


class HttpTrigger(_Shape):
    """Start over HTTP and from the command line."""

    http: _NoFields | bool = Field(description="{} or true; false refuses starts over HTTP.")


class ScheduleShape(_Shape):
    """Start by cron."""

    schedule: str = Field(max_length=200, description="Five fields: minute, hour, day, month, day of week.")
    timezone: str = Field("UTC", max_length=100, description="IANA name, such as Europe/Berlin.")
    overlap: Overlap = Field("skip", description="What to do while the one before still runs.")
    catch_up: CatchUp = Field("last", description="Which missed times are made up for.")
    input: dict[str, Any] = Field(default_factory=dict, description="Input of its executions.")


class TopicShape(_Shape):
    """Start by a record of a Kafka topic."""

    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$", description="Topic; its values are JSON.")
    when: Cel | None = Field(None, description="CEL over the record's fields; others start nothing.")
    key: Cel | None = Field(None, description="Field of the record by which starts are debounced.")
    debounce_s: float = Field(0.0, ge=0, le=YEAR_S, description="After a start, ignore the same key for so long.")
    input: dict[str, Cel] = Field(
        default_factory=dict, description="Input by name, CEL over the record; left out: the record itself."
    )


def trigger_kind(value: Any) -> str | None:
    """Which of the three a trigger is."""
    found = [kind for kind in ("http", "schedule", "topic") if isinstance(value, Mapping) and kind in value]
    return found[0] if len(found) == 1 else None


Trigger = Annotated[
    Annotated[HttpTrigger, Tag("http")]
    | Annotated[ScheduleShape, Tag("schedule")]
    | Annotated[TopicShape, Tag("topic")],
    Discriminator(trigger_kind),
]


class WorkflowShape(_Shape):
    """A workflow: what starts it, its limits, and its tasks."""

    id: str = Field(pattern=ID_PATTERN, description="Name of the workflow.")
    description: str = Field("", max_length=10_000, description="What it is for.")
    triggers: list[Trigger] | None = Field(
        None, max_length=50, description="What starts it; left out: HTTP and the command line."
    )
    concurrency: ConcurrencyShape | None = Field(None, description="Executions at once.")
    rate: RateShape | None = Field(None, description="Executions that begin in a stretch of time.")
    priority: int = Field(0, ge=-1_000_000, le=1_000_000, description="Higher goes first when there is a queue.")
    timeout_s: Seconds | None = Field(None, description="The whole execution is given up after this long.")
    tasks: dict[Annotated[str, Field(pattern=TASK_PATTERN)], TaskShape] = Field(
        min_length=1, max_length=MAX_TASKS, description="The tasks by name, a DAG by their needs."
    )
    on_failure: CompensationShape | None = Field(None, description="Runs once when the execution has failed.")


class WaitParams(_Shape):
    """`with` of a wait: one of the two."""

    seconds: float | str | None = Field(None, description="How long; a number or CEL.")
    until: int | float | str | None = Field(None, description="ISO 8601 text, ms since 1970, or CEL.")


class ApprovalParams(_Shape):
    """`with` of an approval."""

    signal: str | None = Field(None, min_length=1, max_length=200, description="Signal waited for; default: the task.")
    timeout_s: float | str | None = Field(None, description="Gives up after so long; a number or CEL.")


class SubWorkflowParams(_Shape):
    """`with` of a sub-workflow."""

    id: str = Field(min_length=1, description="The workflow to start.")
    version: str | None = Field(None, description="Its version; left out: the latest.")
    input: Any = Field(None, description="Its input: CEL as text, or a value with ${…} in it.")


CONTROL_PARAMS: Final[Mapping[str, type[BaseModel]]] = {
    "wait": WaitParams,
    "approval": ApprovalParams,
    "workflow": SubWorkflowParams,
}
