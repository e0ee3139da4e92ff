"""What a task executor is given: one attempt of one task, with all it needs; and how it is called back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrder:
    """One attempt to carry out. It may come more than once: effects are made under `idempotency_key`.

    `params` still holds expressions and secret references; `context` is what expressions see:
    {"input", "needs": {task: result}, "trigger", "execution": {"id", "workflow", "attempt", "task"}, and in a map
    "item" and "index"}. `deadline_ms` is the wall clock at which the engine gives the attempt up.
    `isolated`: the process that had this attempt before has died, perhaps of it; a stranger's code then runs in a
    process of its own.
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
    isolated: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt and every delivery of this piece of work."""
        return idempotency_key(self.execution_id, self.task, self.item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Orders of an execution that nobody waits for any more: all whose token is lower than `recalls_before`.

    Tokens of an execution grow, so that attempts ordered later are not meant, in whatever order records come.
    `task` None means every task; `item` None every item of it.
    """

    execution_id: str
    recalls_before: int
    task: str | None = None
    item: int | None = None

    def covers(self, order: TaskOrder) -> bool:
        """Whether the order is one of them."""
        return (
            order.execution_id == self.execution_id
            and order.token < self.recalls_before
            and (self.task is None or order.task == self.task)
            and (self.item is None or order.item == self.item)
        )


def idempotency_key(execution_id: str, task: str, item: int | None) -> str:
    """Names the effect of a task (of an item of its map) of an execution."""
    return f"{execution_id}/{task}" if item is None else f"{execution_id}/{task}/{item}"
