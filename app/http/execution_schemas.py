"""The shapes of answers and requests about executions, with examples."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.http.schemas import Page

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled", "timed_out", "skipped"]
Action = Literal["cancel", "pause", "resume", "retry", "signal"]

_ID = "019a9b2e-7c40-7c3a-9f6b-2f1d7c0a5b11"
_ROW: dict[str, Any] = {
    "execution_id": _ID,
    "workflow": "press-overheat",
    "version": "3f1c9a72b0de",
    "status": "failed",
    "key": "press-0001",
    "priority": 0,
    "created_at": 1763689000000,
    "started_at": 1763689000004,
    "ended_at": 1763689000950,
    "duration_ms": 946,
    "attempts": 5,
    "failures": 3,
    "failed_task": "notify",
    "error": "HttpStatus: the receiver answered 500",
    "events": 14,
}


class ExecutionView(BaseModel):
    """One execution; times in ms UTC."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ROW]})

    execution_id: str
    workflow: str
    version: str
    status: Status
    key: str | None = Field(description="The value of the concurrency key.")
    priority: int
    created_at: int = Field(description="When it was asked for.")
    started_at: int | None
    ended_at: int | None
    duration_ms: int | None
    attempts: int = Field(description="Attempts of tasks that were scheduled.")
    failures: int = Field(description="Attempts of tasks that failed.")
    failed_task: str | None
    error: str | None
    events: int = Field(description="Events of its history so far.")


class ExecutionsPage(Page[ExecutionView]):
    """One page of executions."""

    complete: bool = Field(
        description="False while this node's index is made or cannot be fed: executions may be missing, or shown as"
        " they were."
    )


class TaskView(BaseModel):
    """One task of an execution, as far as it has come."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "task": "notify",
                    "status": "failed",
                    "attempts": 3,
                    "started_at": 1763689000010,
                    "ended_at": 1763689000950,
                    "error": {"type": "HttpStatus", "message": "the receiver answered 500", "retryable": True},
                }
            ]
        },
    )

    task: str
    status: str = Field(description="running, retrying, waiting, succeeded, failed or skipped.")
    attempts: int
    started_at: int
    ended_at: int | None


class ExecutionDetail(ExecutionView):
    """One execution with its input, result and tasks."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_ROW,
                    "input": {"device_id": "press-0001"},
                    "result": None,
                    "trigger": {"kind": "http"},
                    "parent": None,
                    "reason": "",
                    "failure": {"type": "HttpStatus", "message": "the receiver answered 500", "retryable": True},
                    "tasks": [
                        {
                            "task": "notify",
                            "status": "failed",
                            "attempts": 3,
                            "started_at": 1763689000010,
                            "ended_at": 1763689000950,
                        }
                    ],
                }
            ]
        }
    )

    input: Any
    result: Any
    trigger: Any = Field(description="What started it: http, schedule, backfill, kafka, workflow or cli.")
    parent: Any = Field(description="The execution and task that wait for this one.")
    reason: str
    failure: Any = Field(description="Why it failed, with type, message and detail.")
    tasks: list[TaskView]


class EventView(BaseModel):
    """One event of a history; further fields by type (docs/schemas/workflow-events)."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {"type": "task_scheduled", "seq": 1, "at": 1763689000004, "task": "notify", "item": None, "attempt": 1}
            ]
        },
    )

    type: str
    seq: int
    at: int


class HistoryPage(BaseModel):
    """Events in order. `next_after_seq` null means that these are the last so far."""

    execution_id: str
    events: list[EventView]
    next_after_seq: int | None = Field(None, description="Pass it as `after_seq` to get the next page.")


class ToldView(BaseModel):
    """The order is durable on `workflow.commands`; its effect is an event of the history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"execution_id": _ID, "action": "cancel", "command_id": "0b0f4e0a-8f7f-4f43-b1c7-3f2f6f1c9a11"}
            ]
        }
    )

    execution_id: str
    action: Action
    command_id: str


class CancelOrder(BaseModel):
    """Why it is cancelled."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "wrong plant"}]})

    reason: str = Field("", max_length=1000)


class RetryOrder(BaseModel):
    """Where to go on; without a task, from those that failed."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"from_task": "notify"}, {}]})

    from_task: str | None = Field(None, max_length=200)


class BulkOrder(BaseModel):
    """An order to every execution that matches; at least one filter, or `all`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"workflow": "press-overheat", "status": ["failed"], "since": "2026-01-01T00:00:00Z", "dry_run": True},
                {"ids": [_ID], "reason": "wrong plant"},
            ]
        },
    )

    workflow: str | None = None
    status: list[Status] | None = Field(None, description="Without it, those the action can apply to.")
    key: str | None = None
    since: str | int | None = Field(None, description="Created at or after: ms UTC or RFC 3339.")
    until: str | int | None = Field(None, description="Created before: ms UTC or RFC 3339.")
    ids: list[str] | None = Field(None, max_length=1000, description="These executions, and no filter.")
    all: bool = Field(default=False, description="Every execution that the action can apply to.")
    dry_run: bool = Field(default=False, description="Only tell what would be reached.")
    limit: int | None = Field(None, ge=1, description="Most executions reached, oldest last.")
    reason: str = Field("", max_length=1000, description="For cancel.")
    from_task: str | None = Field(None, max_length=200, description="For retry.")
    signal: str | None = Field(None, max_length=200, description="For signal: its name.")
    payload: Any = Field(None, description="For signal.")


class BulkView(BaseModel):
    """What an order by filter reached."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"action": "retry", "matched": 2, "sent": 2, "more": False, "dry_run": False, "execution_ids": [_ID]}
            ]
        }
    )

    action: Action
    matched: int
    sent: int
    more: bool = Field(description="More match than one order may reach; repeat it.")
    dry_run: bool
    execution_ids: list[str] = Field(description="The first hundred.")
