"""Names of an execution's timers: each tells the attempt or run that it is for, so that a late one is known."""

from typing import Final, Literal, NamedTuple

Kind = Literal["execution", "timeout", "heartbeat", "retry", "wait", "approval"]
_KINDS: Final = frozenset({"timeout", "heartbeat", "retry", "wait", "approval"})


class TimerName(NamedTuple):
    """What a timer is for. `attempt` is the run for the timer of the whole execution."""

    kind: Kind
    task: str
    item: int | None
    attempt: int


def execution_timer(run: int) -> str:
    """The timeout of one run of an execution."""
    return f"execution/{run}"


def timer_name(kind: Kind, task: str, item: int | None, attempt: int) -> str:
    """A timer of one attempt; `retry` is named by the attempt that failed."""
    return f"{kind}/{task}/{'' if item is None else item}/{attempt}"


def read_timer(name: str) -> TimerName | None:
    """What a name says, None when it is no timer of an execution."""
    kind, _, rest = name.partition("/")
    parts = rest.rsplit("/", 2)
    try:
        if kind == "execution":
            return TimerName("execution", "", None, int(rest))
        if kind not in _KINDS or len(parts) != 3:
            return None
        item = int(parts[1]) if parts[1] else None
        return TimerName(kind, parts[0], item, int(parts[2]))  # type: ignore[arg-type]  # one of _KINDS
    except ValueError:
        return None
