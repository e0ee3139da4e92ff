"""What a task executor is given: one attempt of one task, with all it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrder:
    """One attempt to carry out. It may come more than once: effects are made under `idempotency_key`.

    `params` still holds expressions and secret references; `context` is what expressions see:
    {"input", "needs": {task: result}, "trigger", "execution": {"id", "workflow", "attempt", "task"}, and in a map
    "item" and "index"}. `deadline_ms` is the wall clock at which the engine gives the attempt up.
    """

    execution_id: str
    workflow: str
    version: str
    task: str
    item: int | None
    attempt: int
    token: int
    type: str
    params: Mapping[str, Any]
    context: Mapping[str, Any]
    timeout_s: float | None = None
    heartbeat_s: float | None = None
    deadline_ms: int | None = None
    queue: str = "default"
    priority: int = 0
    traceparent: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt and every delivery of this piece of work."""
        return idempotency_key(self.execution_id, self.task, self.item)


def idempotency_key(execution_id: str, task: str, item: int | None) -> str:
    """Names the effect of a task (of an item of its map) of an execution."""
    return f"{execution_id}/{task}" if item is None else f"{execution_id}/{task}/{item}"
