"""Histories of executions as the engine writes them, made by hand."""

from typing import Any

from app.domain.workflow.commands import Start, TaskError
from app.domain.workflow.events import (
    Event,
    ExecutionEnded,
    ExecutionStarted,
    Status,
    TaskFailed,
    TaskScheduled,
    TaskSucceeded,
)
from app.workflow_wire import encode_command, encode_run

T0_MS = 1_763_689_000_000


def start(execution_id: str, workflow: str = "press-overheat", at: int = T0_MS, **fields: Any) -> bytes:
    """A start as it is on `workflow.commands`."""
    return encode_command(
        Start(execution_id=execution_id, workflow=workflow, version="v1", input={"n": 1}, at_ms=at, **fields)
    )


def run(
    execution_id: str, *events: Event, epoch: int = 1, workflow: str = "press-overheat", version: str = "v1"
) -> bytes:
    """A run as it is on `workflow.events`."""
    return encode_run(execution_id, workflow, version, epoch, events)


def started(at: int = T0_MS, *, queued: bool = False, key: str | None = None, given: Any = None) -> ExecutionStarted:
    return ExecutionStarted(
        seq=0,
        at=at + 1,
        workflow="press-overheat",
        version="v1",
        input=given,
        key=key,
        priority=0,
        asked_at=at,
        trigger={"kind": "http"},
        queued=queued,
    )


def scheduled(seq: int, task: str = "one", attempt: int = 1, at: int = T0_MS, item: int | None = None) -> TaskScheduled:
    return TaskScheduled(seq=seq, at=at + seq, task=task, item=item, attempt=attempt)


def succeeded(
    seq: int, task: str = "one", attempt: int = 1, at: int = T0_MS, item: int | None = None, result: Any = None
) -> TaskSucceeded:
    return TaskSucceeded(seq=seq, at=at + seq, task=task, item=item, attempt=attempt, result=result, worker="w1")


def failed(seq: int, task: str = "one", attempt: int = 1, at: int = T0_MS, retry_at: int | None = None) -> TaskFailed:
    error = TaskError(type="HttpStatus", message="the receiver answered 500")
    return TaskFailed(seq=seq, at=at + seq, task=task, item=None, attempt=attempt, error=error, retry_at=retry_at)


def ended(seq: int, status: Status = "succeeded", at: int = T0_MS, result: Any = None) -> ExecutionEnded:
    bad = status == "failed"
    error = TaskError(type="HttpStatus", message="the receiver answered 500") if bad else None
    return ExecutionEnded(seq=seq, at=at + seq, status=status, result=result, error=error, task="one" if bad else None)


def whole(execution_id: str, status: Status = "succeeded", at: int = T0_MS, **fields: Any) -> list[bytes]:
    """The runs of an execution of one task."""
    last: Event = failed(2, at=at) if status == "failed" else succeeded(2, at=at)
    return [
        run(execution_id, started(at, **fields), scheduled(1, at=at)),
        run(execution_id, last, ended(3, status, at, result={"ok": True})),
    ]
