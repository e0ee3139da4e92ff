"""The shapes of answers and requests about schedules and backfills, with examples."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.domain.workflow.backfill import CONCURRENCY_MAX
from app.domain.workflow.cadence import COUNT_MAX, MAX_EVERY_MS
from app.domain.workflow.definition import CatchUp, Overlap

_EVERY_MAX_S: Final = MAX_EVERY_MS / 1000
_NIGHTLY: Final[dict[str, Any]] = {
    "workflow": "press-report",
    "cron": "0 3 * * *",
    "timezone": "Europe/Berlin",
    "input": {"site": "north"},
    "overlap": "skip",
    "catch_up": "last",
}
_SCHEDULE: Final[dict[str, Any]] = {
    "id": "nightly",
    **_NIGHTLY,
    "version": None,
    "every_s": None,
    "catch_up_limit": 1000,
    "paused": False,
    "source": "person",
    "next_at": 1763776800000,
    "running": [],
    "waiting": 0,
    "started": 12,
    "skipped": 1,
    "missed": 0,
    "failed": 0,
    "last_execution_id": "nightly-20251121T020000Z",
    "last_due_at": 1763690400000,
    "last_status": "succeeded",
    "error": None,
    "updated_at": 1763690401250,
}
_RANGE: Final[dict[str, Any]] = {
    "id": "november",
    "workflow": "press-report",
    "cron": "0 3 * * *",
    "timezone": "Europe/Berlin",
    "from": "2025-11-01T00:00:00Z",
    "to": "2025-11-30T23:59:59Z",
    "concurrency": 4,
}
_BACKFILL: Final[dict[str, Any]] = {
    **_RANGE,
    "version": None,
    "every_s": None,
    "input": {},
    "from": 1761955200000,
    "to": 1764547199000,
    "status": "running",
    "total": 30,
    "started": 12,
    "succeeded": 8,
    "failed": 0,
    "skipped": 0,
    "failed_due_at": [],
    "running": ["backfill.november-20251109T020000Z"],
    "running_count": 4,
    "taken_until": 1762999200000,
    "created_at": 1764600000000,
    "ended_at": None,
    "error": None,
    "updated_at": 1764600004000,
}


class ScheduleOrder(BaseModel):
    """What a schedule is to do: exactly one of `cron` and `every_s`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_NIGHTLY]})

    workflow: str = Field(max_length=128)
    version: str | None = Field(None, description="Without it the latest at each start.", max_length=64)
    cron: str | None = Field(None, description="Five fields, or @hourly and its like.", max_length=200)
    every_s: float | None = Field(None, description="Every so many seconds, counted from 1970.", ge=1, le=_EVERY_MAX_S)
    timezone: str = Field("UTC", description="IANA zone of the cron expression.", max_length=64)
    input: dict[str, Any] = Field(default_factory=dict)
    overlap: Overlap = Field("skip", description="When a run is still going on.")
    catch_up: CatchUp = Field("last", description="What of the missed times is started.")
    catch_up_limit: int = Field(COUNT_MAX, description="Most that `catch_up: all` starts.", ge=1, le=COUNT_MAX)
    paused: bool | None = Field(None, description="Without it a pause stays as it is.")


class ScheduleView(BaseModel):
    """A schedule as its owner last told; times in ms UTC."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_SCHEDULE]})

    id: str
    workflow: str
    version: str | None
    cron: str | None
    every_s: float | None
    timezone: str
    input: dict[str, Any]
    overlap: Overlap
    catch_up: CatchUp
    catch_up_limit: int
    paused: bool
    source: Literal["definition", "person"] = Field(description="Whose it is: a workflow's definition, or a person's.")
    next_at: int | None = Field(description="When it is due next.")
    running: list[str] = Field(description="Executions that go on, at most 20 of them.")
    waiting: int = Field(description="Due times in line behind them.")
    started: int
    skipped: int = Field(description="Due times left out because a run was going on.")
    missed: int = Field(description="Due times that passed while nobody looked and were not caught up.")
    failed: int = Field(description="Due times at which nothing could be started; `error` says why.")
    last_execution_id: str | None
    last_due_at: int | None
    last_status: str | None = Field(description="How the last run ended, null while it goes on.")
    error: str | None
    updated_at: int


class ScheduleTold(BaseModel):
    """The order is durable; `applied` says whether its effect was seen within a second."""

    id: str
    command_id: str
    applied: bool
    schedule: ScheduleView | None


class BackfillOrder(BaseModel):
    """A range of due times: of a cron expression, of an interval, or of a schedule."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        json_schema_extra={"examples": [_RANGE, {"schedule": "nightly", "from": 1761955200000, "to": 1764547199000}]},
    )

    id: str | None = Field(None, description="A name that was not used before; without it one is made.", max_length=100)
    schedule: str | None = Field(
        None, description="Take workflow, version, times and input from this schedule where they are not given."
    )
    workflow: str | None = Field(None, max_length=128)
    version: str | None = Field(None, max_length=64)
    cron: str | None = Field(None, max_length=200)
    every_s: float | None = Field(None, ge=1, le=_EVERY_MAX_S)
    timezone: str | None = Field(None, max_length=64)
    begin: int | str = Field(alias="from", description="First instant: ms UTC, or RFC 3339.")
    end: int | str = Field(alias="to", description="Last instant, which belongs to the range.")
    input: dict[str, Any] | None = None
    concurrency: int = Field(10, description="Executions at once.", ge=1, le=CONCURRENCY_MAX)


class BackfillView(BaseModel):
    """A backfill as its owner last told; times in ms UTC."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, json_schema_extra={"examples": [_BACKFILL]})

    id: str
    workflow: str
    version: str | None
    cron: str | None
    every_s: float | None
    timezone: str
    input: dict[str, Any]
    begin: int = Field(alias="from")
    end: int = Field(alias="to")
    concurrency: int
    status: Literal["running", "cancelled", "done"]
    total: int
    started: int
    succeeded: int
    failed: int
    skipped: int = Field(0, description="Passed over, because the limit of their workflow was reached.")
    failed_due_at: list[int] = Field(description="The due times of the first that failed, at most 100.")
    running: list[str] = Field(description="Executions that go on, at most 20 of them.")
    running_count: int
    taken_until: int = Field(description="Everything up to here has been started.")
    created_at: int
    ended_at: int | None
    error: str | None
    updated_at: int


class BackfillTold(BaseModel):
    """The order is durable; `applied` says whether its effect was seen within a second."""

    id: str
    command_id: str
    applied: bool
    backfill: BackfillView | None


class CancelBackfill(BaseModel):
    """How a backfill is cancelled."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"running": False}]})

    running: bool = Field(default=True, description="Cancel the executions that go on, too.")
