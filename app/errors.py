"""The tree of our own errors; the docstring of each is its message, its attributes are the facts.

HeadraceError
├── UserError                 exit code 2: one sentence on stderr, never a traceback
│   ├── ConfigError           every problem of a file at once, with file and line
│   └── EnvironmentError_     a port, a disk, a Java, a broker that is not as needed
├── Unavailable               the other side is away; retry with back-off
│   ├── BrokerUnavailable
│   └── SinkUnavailable
├── Rejected                  the other side refuses this very record; dead-letter it
│   └── SinkRejected
├── PublishFailed             records that will never be acknowledged; the batch must not be committed
├── TaskFailed                an attempt of a task ended without a result; its facts go into the history
├── Stalled                   records wait and nothing is processed; the process must be replaced
└── Fenced                    another process owns the partition now; stop writing at once
"""

from collections.abc import Mapping, Sequence
from typing import Any


class HeadraceError(Exception):
    """Headrace cannot go on."""

    exit_code = 1

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])
        self.facts = facts


class UserError(HeadraceError):
    """What was asked cannot be done as it was asked."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration is not valid."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class EnvironmentError_(UserError):  # noqa: N801 - the plain name is a builtin
    """This machine lacks something that is needed."""

    exit_code = 3


class Unavailable(HeadraceError):
    """The other side does not answer."""

    exit_code = 4


class BrokerUnavailable(Unavailable):
    """No Kafka broker answers."""


class SinkUnavailable(Unavailable):
    """The sink does not take records now."""


class Rejected(HeadraceError):
    """The other side refuses this record for good."""


class SinkRejected(Rejected):
    """The sink refuses some rows for good: `reasons` maps the row's index in the batch to the cause."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__("; ".join(f"row {i}: {why}" for i, why in sorted(reasons.items())))
        self.reasons = reasons


class PublishFailed(HeadraceError):
    """Records could not be published: `reason` is the metric label, `count` the number of records."""

    def __init__(self, reason: str, count: int, detail: str = "") -> None:
        super().__init__(f"{count} records were not published: {reason}{': ' + detail if detail else ''}")
        self.reason = reason
        self.count = count


class TaskFailed(HeadraceError):
    """An attempt of a task has failed.

    `type` is a short stable name (docs/tasks.md lists those of the built-in types), which `retry.non_retryable`
    of a workflow may name; `retryable` False means that another attempt would end the same way. `detail` is JSON.
    """

    def __init__(
        self,
        type: str,  # noqa: A002 - the fact's name
        message: str,
        *,
        retryable: bool = True,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.retryable = retryable
        self.detail: dict[str, Any] = dict(detail or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel from task processes to their owner."""
        return _task_failed, (self.type, self.message, self.retryable, self.detail)


def _task_failed(type_: str, message: str, retryable: bool, detail: Mapping[str, Any]) -> TaskFailed:
    return TaskFailed(type_, message, retryable=retryable, detail=detail)


class Fenced(HeadraceError):
    """Another process owns this partition now."""


class Stalled(HeadraceError):
    """Records wait and nothing is processed."""
