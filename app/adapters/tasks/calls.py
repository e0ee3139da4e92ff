"""From an order to the call of its task type: expressions rendered, secrets put in place, params validated."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError

from app.adapters.tasks.protocol import Kind, TaskCall, TaskType, kind_of
from app.adapters.tasks.registry import Registry
from app.adapters.tasks.resources import Resources
from app.adapters.tasks.secrets import Redact, Resolution
from app.domain.workflow.commands import TaskError
from app.domain.workflow.expressions import ExpressionError, Expressions
from app.domain.workflow.orders import TaskOrder
from app.errors import HeadraceError, TaskFailed, Unavailable, UserError

FROM: Final = "from"
MESSAGE_CHARS: Final = 2_000
_SHOWN_PROBLEMS: Final = 20


class Prepared(NamedTuple):
    """A call that is ready to run; `params` are those of the call before validation, for a task process."""

    task_type: TaskType
    kind: Kind
    call: TaskCall[Any]
    params: Any


def prepare(
    order: TaskOrder,
    registry: Registry,
    secrets: Resolution,
    resources: Resources,
    *,
    heartbeat: Callable[[], None],
    cancelled: Callable[[], bool],
) -> Prepared:
    """Make the call of an order. Raises `TaskFailed`.

    `secrets` is of this attempt alone: its `redact` cleans whatever is said of the attempt later.
    """
    task_type = registry.get(order.type)
    names = names_of(order.context)
    raw = secrets.take_out({name: value for name, value in order.params.items() if name != FROM})
    try:
        rows = input_rows(order.params, order.context, resources.expressions, names)
        params = secrets.put_back(resources.expressions.render(raw, names))
    except ExpressionError as error:
        raise TaskFailed("ExpressionFailed", str(error), retryable=False) from error
    model = validated(task_type, params)
    check: Callable[[BaseModel, Resources], None] | None = getattr(task_type, "check", None)
    if check is not None:
        check(model, resources)
    call = TaskCall(
        params=model,
        rows=rows,
        context=order.context,
        idempotency_key=order.idempotency_key,
        attempt=order.attempt,
        deadline_ms=order.deadline_ms,
        heartbeat=heartbeat,
        cancelled=cancelled,
        resources=resources,
    )
    return Prepared(task_type, kind_of(task_type, model), call, params)


def names_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """What expressions of params may read: the context, and each result by its task's name."""
    needs = context.get("needs") or {}
    return {**needs, **context}


def input_rows(
    params: Mapping[str, Any], context: Mapping[str, Any], expressions: Expressions, names: Mapping[str, Any]
) -> list[Any]:
    """The rows a transform or sink works on: `from`, else the result of the only task in `needs`.

    Raises `ExpressionError`.
    """
    if FROM in params:
        source = params[FROM]
        if isinstance(source, str) and "${" not in source:
            return as_rows(expressions.evaluate(source, names))
        return as_rows(expressions.render(source, names))
    needs = context.get("needs") or {}
    return as_rows(next(iter(needs.values())) if len(needs) == 1 else (dict(needs) or None))


def as_rows(value: Any) -> list[Any]:
    """A list gives its items, null no row, all else one row."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def validated(task_type: TaskType, params: Any) -> BaseModel:
    """The params as their model. Raises `TaskFailed` with every problem, but no value: it may be a secret."""
    try:
        return task_type.params_model.model_validate(params)
    except ValidationError as error:
        problems = [
            {"field": ".".join(str(part) for part in one["loc"]) or "with", "problem": one["msg"][:300]}
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ][:_SHOWN_PROBLEMS]
        said = "; ".join(f"{one['field']}: {one['problem']}" for one in problems)
        raise TaskFailed(
            "InvalidParams",
            f"the parameters of {task_type.name} are not valid: {said}",
            retryable=False,
            detail={"problems": problems},
        ) from None


def error_of(error: BaseException, redact: Redact) -> TaskError:
    """What the history says of an exception that ended an attempt."""
    if isinstance(error, TaskFailed):
        return TaskError(
            type=error.type,
            message=_short(redact(error.message)),
            retryable=error.retryable,
            detail=_clean(error.detail, redact),
        )
    text = redact(str(error)) or type(error).__name__
    retryable = not isinstance(error, UserError) if isinstance(error, HeadraceError) else True
    name = "Unavailable" if isinstance(error, Unavailable) else type(error).__name__
    return TaskError(type=name, message=_short(text), retryable=retryable)


def _short(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "…"


def _clean(value: Any, redact: Redact) -> Any:
    if isinstance(value, str):
        return _short(redact(value))
    if isinstance(value, Mapping):
        return {str(key): _clean(item, redact) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, redact) for item in value]
    return value
