"""What a task type is: the one Protocol of built-in types and of plug-ins (entry points `headrace.tasks`).

A type is one object, made once a process by calling what its entry point names without arguments. It holds no
state of an execution: two attempts may run in it at once.

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid")
        celsius: float

    class Fahrenheit:
        name = "acme.fahrenheit"
        params_model = Params
        kind: Kind = "async"
        pure = True

        async def run(self, call: TaskCall[Params]) -> float:
            return call.params.celsius * 9 / 5 + 32
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from app.adapters.tasks.resources import Resources
from app.errors import TaskFailed

__all__ = [
    "AsyncTaskType",
    "Kind",
    "Resources",
    "SyncTaskType",
    "TaskCall",
    "TaskFailed",
    "TaskType",
    "fixed_params",
    "kind_of",
]

Kind = Literal["async", "blocking", "process"]
"""Where a type runs: on the event loop, in a thread, or in a process of its own."""

P = TypeVar("P", bound=BaseModel, covariant=True)


def _nothing() -> None:
    """No one listens to the heartbeats."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCall(Generic[P]):
    """One attempt, with everything resolved.

    `params`: the validated `with`, expressions rendered, secrets in place. `rows`: the input (`with.from`, or the
    result of the only task in `needs`): a list gives its items, null nothing, any other value one row.
    `context`: {"input", "needs", "trigger", "execution", in a map "item" and "index"}.
    `idempotency_key`: the same for every attempt and delivery of this piece of work: make effects under it.
    `deadline_ms`: the wall clock (ms UTC) at which the attempt is given up. `heartbeat()` tells the engine that a
    long attempt is alive; `cancelled()` is true when it should stop: a thread has to look by itself, a coroutine
    is cancelled. `traceparent`: the attempt in its trace, to send along with what the type calls (None: there is no
    trace). `resources` are shared by all tasks of the process; None in a task process.
    """

    params: P
    rows: Sequence[Any] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str = ""
    attempt: int = 1
    deadline_ms: int | None = None
    heartbeat: Callable[[], None] = _nothing
    cancelled: Callable[[], bool] = _never
    resources: Resources | None = None
    traceparent: str | None = None

    @property
    def shared(self) -> Resources:
        """The resources, where the type needs them. Raises `TaskFailed` in a task process."""
        if self.resources is None:
            raise TaskFailed("NoResources", "a task process has no shared connections", retryable=False)
        return self.resources


class TaskType(Protocol):
    """What all types have; one of kind "async" has `run`, the others `run_sync`.

    `name` is what `type:` of a task says, in lower case with a dot. `params_model` validates `with` (without
    `from`). `pure`: the same params and rows give the same result and touch nothing, so that an attempt may run
    twice or before its input is durable. A type may have `kind_of(params) -> Kind`, where the place
    depends on the call, and `check(params, resources)`, which is called on the loop before the attempt (resources may
    be None) and may raise `TaskFailed`. One with `takes_turns` = True calls something of which `resources` lets only
    so many be under way: that it waits for one is no part of the call's time-out; beyond `tasks.waiting` none begins.
    The result must be JSON: None, bool, int, finite float, str, list, dict with text keys.
    An attempt fails by raising: `TaskFailed` says type, message, retryable and detail; any other exception is
    reported by its class name and is retryable.
    """

    @property
    def name(self) -> str: ...
    @property
    def params_model(self) -> type[BaseModel]: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def pure(self) -> bool: ...


@runtime_checkable
class AsyncTaskType(TaskType, Protocol):
    """Runs on the event loop and must never block it; cancellation reaches it as `CancelledError`."""

    async def run(self, call: TaskCall[Any]) -> Any: ...


@runtime_checkable
class SyncTaskType(TaskType, Protocol):
    """Runs in a thread ("blocking") or in a task process ("process"), where it may be killed."""

    def run_sync(self, call: TaskCall[Any]) -> Any: ...


def fixed_params(params_model: type[BaseModel]) -> frozenset[str]:
    """The parameters that may hold no `${expression}`: a value pasted into them could change what they do.

    A model names them in a class variable `fixed`.
    """
    return frozenset(getattr(params_model, "fixed", ()))


def kind_of(task_type: TaskType, params: BaseModel) -> Kind:
    """Where this very call runs."""
    chooser: Callable[[BaseModel], Kind] | None = getattr(task_type, "kind_of", None)
    return task_type.kind if chooser is None else chooser(params)
