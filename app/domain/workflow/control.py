"""What the tasks that the engine carries out itself ask for: how long to wait, which signal, which sub-workflow."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeGuard

from app.domain.workflow.expressions import ExpressionError, Expressions

LONGEST_WAIT_S: Final = 100 * 366 * 86_400  # a century: what is longer is a mistake, such as ms given for seconds


class ChildTerms(NamedTuple):
    """The sub-workflow to start; `version` None means the latest."""

    workflow: str
    version: str | None
    input: Any


def wait_until(params: Mapping[str, Any], names: Mapping[str, Any], expressions: Expressions, now_ms: int) -> int:
    """When a wait is over, ms UTC: `seconds` from now or at `until`. Raises `ExpressionError`.

    Both may be expressions. `until` gives a timestamp, ISO 8601 text (UTC when it names no zone) or ms UTC.
    """
    if (seconds := params.get("seconds")) is not None:
        return now_ms + _ms("seconds", _value(seconds, names, expressions))
    until = params.get("until")
    if until is None:
        raise ExpressionError("a wait has `seconds` or `until`")
    if isinstance(until, str) and (at := _timestamp(until)) is not None:
        return at
    value = _value(until, names, expressions)
    at = _timestamp(value)
    if at is None:
        raise ExpressionError(f"`until` is a timestamp, ISO 8601 text or ms UTC, not {_short(value)}")
    if at - now_ms > LONGEST_WAIT_S * 1000:
        raise ExpressionError(f"`until` is at most 100 years ahead, not {_short(value)}")
    return at


def approval_terms(
    params: Mapping[str, Any], names: Mapping[str, Any], expressions: Expressions, task: str
) -> tuple[str, int | None]:
    """The signal that an approval waits for (default: its name) and how long, ms. Raises `ExpressionError`."""
    signal = expressions.render(params.get("signal", task), names)
    if not isinstance(signal, str) or not signal:
        raise ExpressionError(f"`signal` is the name of a signal, not {_short(signal)}")
    patience = params.get("timeout_s")
    if patience is None:
        return signal, None
    return signal, _ms("timeout_s", _value(patience, names, expressions))


def child_terms(params: Mapping[str, Any], names: Mapping[str, Any], expressions: Expressions) -> ChildTerms:
    """The sub-workflow to start and its input. Raises `ExpressionError`.

    Without `input` it is the item of a map, else null; an `input` of text is an expression, any other is a value
    with `${...}` in it.
    """
    workflow = expressions.render(params.get("id"), names)
    if not isinstance(workflow, str) or not workflow:
        raise ExpressionError(f"`id` is the id of a workflow, not {_short(workflow)}")
    version = expressions.render(params.get("version"), names)
    if version is not None and not isinstance(version, str):
        raise ExpressionError(f"`version` is the version of a workflow, not {_short(version)}")
    if "input" not in params:
        return ChildTerms(workflow, version, names.get("item"))
    return ChildTerms(workflow, version, _value(params["input"], names, expressions))


def _value(source: Any, names: Mapping[str, Any], expressions: Expressions) -> Any:
    """Text is an expression, bare or in `${}`; anything else is a value with `${}` within."""
    if isinstance(source, str) and "${" not in source:
        return expressions.evaluate(source, names)
    return expressions.render(source, names)


def _ms(what: str, value: Any) -> int:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not _is_number(value):
        raise ExpressionError(f"`{what}` is a number of seconds, not {_short(value)}")
    if value > LONGEST_WAIT_S:
        raise ExpressionError(f"`{what}` is at most 100 years, not {_short(value)}")
    return max(0, round(value * 1000))


def _timestamp(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
    return max(0, round(value)) if _is_number(value) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
