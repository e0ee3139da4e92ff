"""What an exception of a task becomes in the history: a name, a sentence, and nothing secret."""

import asyncio
import traceback
from collections.abc import Callable
from typing import Any, Final

import orjson
from pydantic import ValidationError

from app.adapters.tasks.guard import HeldUp
from app.adapters.tasks.payload import NotJson, PayloadGone, TooLarge
from app.adapters.tasks.processes import ProcessDied, ProcessNotStarted
from app.domain.workflow.commands import TaskError
from app.domain.workflow.expressions import ExpressionError
from app.errors import Rejected, TaskFailed, UserError

MESSAGE_CHARACTERS: Final = 2_000
DETAIL_BYTES: Final = 8_192
FRAMES: Final = 6
# Of longer texts no more is looked at: hiding secrets in megabytes would hold up the loop.
LOOKED_AT: Final = 65_536
# At the end of a text that was cut there may be a part of a secret, which nothing finds.
_UNSURE: Final = 1_024

Redact = Callable[[str], str]


def told(error: BaseException, redact: Redact) -> TaskError:
    """What the history holds of an error, whatever the error itself does: an attempt that is not told is stuck."""
    try:
        return redacted(describe(error), redact)
    except Exception as fault:  # noqa: BLE001 - a plug-in may have put anything into its failure
        return _unsayable(error, fault)


def describe(error: BaseException) -> TaskError:
    """The error as it is, secrets included: `redacted` goes over it before anybody sees it."""
    try:
        return _described(error)
    except Exception as fault:  # noqa: BLE001 - a stranger's `__str__` may raise anything
        return _unsayable(error, fault)


def _unsayable(error: BaseException, fault: Exception) -> TaskError:
    message = f"the task failed, and its error cannot be told: {type(fault).__name__}"
    return TaskError(type=_text(type(error).__name__)[:100], message=message)


def _described(error: BaseException) -> TaskError:
    match error:
        case TaskFailed():
            return TaskError(type=error.type, message=error.message, retryable=error.retryable, detail=error.detail)
        case ExpressionError():
            return TaskError(type="ExpressionError", message=str(error), retryable=False)
        case ValidationError():
            faults = "; ".join(_fault(one["loc"], one["msg"]) for one in error.errors(include_input=False))
            return TaskError(type="InvalidParams", message=f"`with` is not valid: {faults}", retryable=False)
        case NotJson():
            detail = {"where": error.where}
            return TaskError(type="ResultNotSerialisable", message=str(error), retryable=False, detail=detail)
        case TooLarge():
            sizes = {"bytes": error.size, "limit_bytes": error.limit}
            return TaskError(type="ResultTooLarge", message=str(error), retryable=False, detail=sizes)
        case PayloadGone():
            return TaskError(type="PayloadGone", message=str(error))
        case ProcessDied():
            return TaskError(type="ProcessDied", message=str(error), detail=error.detail)
        case ProcessNotStarted():
            return TaskError(type="ProcessNotStarted", message=str(error))
        case HeldUp():
            return TaskError(type="HeldUpLoop", message=str(error), detail={"traceback": frames(error)})
        case asyncio.CancelledError():
            return TaskError(type="CancelledError", message="the task cancelled itself")
    name = type(error).__name__
    message = str(error) or f"{name} without a message"
    refused = isinstance(error, (Rejected, UserError))
    return TaskError(type=name, message=message, retryable=not refused, detail={"traceback": frames(error)})


def frames(error: BaseException) -> list[str]:
    """Where it was raised, innermost last: file name, line and function."""
    found = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} in {frame.name}" for frame in found]


def redacted(error: TaskError, redact: Redact) -> TaskError:
    """The error as the history may hold it: nothing secret, not too long, and JSON."""
    message = _redacted_start(error.message, redact)
    if len(message) > MESSAGE_CHARACTERS:
        message = message[:MESSAGE_CHARACTERS] + " …"
    return TaskError(
        type=_text(_redacted_start(error.type, redact))[:100],
        message=_text(message),
        retryable=error.retryable,
        detail=_detail(error.detail, redact),
    )


def _redacted_start(text: str, redact: Redact) -> str:
    if len(text) <= LOOKED_AT:
        return redact(text)
    return redact(text[:LOOKED_AT])[:-_UNSURE]


def _detail(detail: Any, redact: Redact) -> dict[str, Any]:
    """A detail with every string redacted; one that is too long is cut to its text."""
    if not detail:
        return {}
    try:
        whole = orjson.dumps(detail, default=repr, option=orjson.OPT_NON_STR_KEYS)
        if len(whole) > LOOKED_AT:
            start = _redacted_start(whole[: 2 * LOOKED_AT].decode(errors="replace"), redact)
            return {"cut": start.encode()[:DETAIL_BYTES].decode(errors="replace")}
        found = _strings(orjson.loads(whole), redact)
        encoded = orjson.dumps(found)
    except (TypeError, RecursionError, ValueError) as error:
        return {"unreadable": f"the task's detail is not JSON: {_text(redact(str(error)))[:200]}"}
    if len(encoded) > DETAIL_BYTES:
        return {"cut": encoded[:DETAIL_BYTES].decode(errors="replace")}
    return dict(found) if isinstance(found, dict) else {"detail": found}


def _strings(value: Any, redact: Redact) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(key): _strings(item, redact) for key, item in value.items()}
    if isinstance(value, list):
        return [_strings(item, redact) for item in value]
    return value


def _text(text: str) -> str:
    """Without lone surrogates, which no JSON can hold."""
    return text.encode(errors="replace").decode()


def _fault(place: tuple[str | int, ...], message: str) -> str:
    where = ".".join(map(str, place))
    return f"{where}: {message}" if where else message
