"""Holds what the log says of one execution against the promises: one history, without a gap, fork or second end.

`merge` makes the one history out of the runs of the log, as every reader must; `judge` says what is wrong with it.
What is legal within a history is `legal.violations`' to say.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from app.domain.workflow.commands import Start
from app.domain.workflow.definition import Workflow
from app.domain.workflow.events import Event, ExecutionEnded, ExecutionRetried, ExecutionStarted, TaskSucceeded
from app.domain.workflow.evolve import fold
from app.domain.workflow.orders import idempotency_key

FaultKind = Literal[
    "lost start",
    "unknown start",
    "changed start",
    "wrong partition",
    "gap",
    "conflict",
    "stale epoch",
    "retracted end",
    "no beginning",
    "second end",
    "after the end",
    "not ended",
    "illegal",
    "no fold",
    "changed result",
    "unreadable",
    "unknown definition",
    "effect missing",
    "effect twice",
    "effect unknown",
    "nothing",
]
ENDS: Final = "execution_ended"


class Fault(NamedTuple):
    """One promise that was not kept."""

    kind: FaultKind
    execution_id: str
    detail: str


class LoggedRun(NamedTuple):
    """The events of one decision as they stand on the log."""

    epoch: int
    first_seq: int
    events: tuple[Event, ...]


@dataclass(slots=True)
class Merged:
    """The one history, what was wrong with the runs, and how often a takeover repeated or replaced some."""

    events: list[Event] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    repeats: int = 0
    forks: int = 0


def merge(execution_id: str, runs: Iterable[LoggedRun]) -> Merged:
    """The history that readers make of `runs`, which are in the order of the log.

    A repeat is left out; a run of a higher epoch replaces what a lower one said from there on; a lower epoch may
    add nothing once a higher one has spoken.
    """
    merged = Merged()
    epoch = -1
    for run in runs:
        if run.epoch > epoch:
            _replace(execution_id, merged, run)
            epoch = run.epoch
        elif run.epoch == epoch:
            _extend(execution_id, merged, run)
        else:
            _from_the_past(execution_id, merged, run, epoch)
    return merged


def _replace(execution_id: str, merged: Merged, run: LoggedRun) -> None:
    """The first run of a new owner: what differs from there on was never durable to it."""
    known = merged.events
    same = tuple(known[run.first_seq : run.first_seq + len(run.events)]) == run.events[: len(known) - run.first_seq]
    if run.first_seq < len(known) and not same:
        merged.forks += 1
        gone = known[run.first_seq :]
        if any(event.type == ENDS for event in gone):
            text = f"epoch {run.epoch} takes back the end at seq {gone[-1].seq}"
            merged.faults.append(Fault("retracted end", execution_id, text))
        del known[run.first_seq :]
    _extend(execution_id, merged, run)


def _extend(execution_id: str, merged: Merged, run: LoggedRun) -> None:
    known = merged.events
    if run.first_seq > len(known):
        text = f"seq {len(known)} to {run.first_seq - 1} are missing"
        merged.faults.append(Fault("gap", execution_id, text))
    for place, event in enumerate(run.events, start=run.first_seq):
        if event.seq != place:
            text = f"the event {event.type} says seq {event.seq} where {place} is due"
            merged.faults.append(Fault("gap", execution_id, text))
        at = event.seq
        if at < len(known) and known[at].seq == at:
            merged.repeats += 1
            if known[at] != event:
                text = f"epoch {run.epoch} says {event.type} at seq {at}, where it has said {known[at].type}"
                merged.faults.append(Fault("conflict", execution_id, text))
        else:
            known.append(event)


def _from_the_past(execution_id: str, merged: Merged, run: LoggedRun, epoch: int) -> None:
    late = [event for event in run.events if event.seq >= len(merged.events)]
    merged.repeats += len(run.events) - len(late)
    if late:
        text = f"epoch {run.epoch} adds {late[0].type} at seq {late[0].seq} after epoch {epoch} has taken over"
        merged.faults.append(Fault("stale epoch", execution_id, text))
        merged.events.extend(late)


Violations = Callable[[Sequence[Event], Workflow], Iterable[str]]


class Terms(NamedTuple):
    """What is asked of every history."""

    violations: Violations
    must_have_ended: bool = False


def judge(
    execution_id: str, merged: Merged, start: Start | None, definition: Workflow | None, terms: Terms
) -> list[Fault]:
    """Everything that is wrong with one history; `start` is its command where that is still on the log."""
    faults = list(merged.faults)
    events = merged.events
    first = events[0] if events else None
    if not isinstance(first, ExecutionStarted):
        faults.append(Fault("no beginning", execution_id, "its first event is not execution_started"))
    elif start is not None:
        faults += _against_start(execution_id, first, start)
    faults += ends(execution_id, events)
    if terms.must_have_ended and not (events and events[-1].type == ENDS):
        last = f"{events[-1].type} at seq {events[-1].seq}" if events else "nothing"
        faults.append(Fault("not ended", execution_id, f"its last event is {last}"))
    if definition is None:
        if isinstance(first, ExecutionStarted):
            text = f"{first.workflow}@{first.version} is not registered"
            faults.append(Fault("unknown definition", execution_id, text))
    elif not merged.faults:
        # On a history with a hole in it everything that follows would be called illegal.
        faults += [Fault("illegal", execution_id, text) for text in terms.violations(events, definition)]
        faults += against_fold(execution_id, events, definition) if not faults else []
    return faults


def against_fold(execution_id: str, events: Sequence[Event], definition: Workflow) -> list[Fault]:
    """The state that the events fold to is the one they tell of, and the result is that of the last tasks."""
    try:
        state = fold(events)
    except (AssertionError, LookupError) as error:
        return [Fault("no fold", execution_id, f"the events fold to no state: {error!r}")]
    last = events[-1]
    told = last.status if isinstance(last, ExecutionEnded) else None
    if state is None or state.seq != len(events) or (state.status if state.is_over else None) != told:
        folded = "nothing" if state is None else f"{state.status} at seq {state.seq}"
        return [Fault("no fold", execution_id, f"the events fold to {folded}, and end {told} at seq {len(events)}")]
    if not isinstance(last, ExecutionEnded) or last.status != "succeeded" or last.reason:
        return []
    needed = {need for task in definition.tasks.values() for need in task.needs}
    results = {name: state.tasks[name].result for name in definition.tasks if name not in needed}
    due = next(iter(results.values())) if len(results) == 1 else results
    if last.result == due:
        return []
    return [Fault("changed result", execution_id, f"it ended with {_short(last.result)}, its tasks with {_short(due)}")]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _against_start(execution_id: str, first: ExecutionStarted, start: Start) -> list[Fault]:
    changed = [name for name in ("workflow", "version", "input", "key") if getattr(first, name) != getattr(start, name)]
    return [
        Fault(
            "changed start",
            execution_id,
            f"{name} is {_short(getattr(first, name))}, not {_short(getattr(start, name))}",
        )
        for name in changed
    ]


def ends(execution_id: str, events: Sequence[Event]) -> list[Fault]:
    """One terminal event a run: after it nothing follows but a retry, which begins the next run."""
    faults: list[Fault] = []
    ended: ExecutionEnded | None = None
    for event in events:
        if ended is None or isinstance(event, ExecutionRetried):
            ended = event if isinstance(event, ExecutionEnded) else None
        elif isinstance(event, ExecutionEnded):
            text = f"{event.status} at seq {event.seq}, having ended {ended.status} at seq {ended.seq}"
            faults.append(Fault("second end", execution_id, text))
        else:
            text = f"{event.type} at seq {event.seq}, having ended {ended.status} at seq {ended.seq}"
            faults.append(Fault("after the end", execution_id, text))
    return faults


def effects_due(execution_id: str, events: Sequence[Event], task: str) -> list[str]:
    """Idempotency keys of the work of `task` that has succeeded, each once."""
    found = {event.item: None for event in events if isinstance(event, TaskSucceeded) and event.task == task}
    return [idempotency_key(execution_id, task, item) for item in found]


def effects_possible(execution_id: str, events: Sequence[Event], task: str) -> list[str]:
    """Idempotency keys of the work of `task` that was begun, so that its effect may be there without its success."""
    found = {
        getattr(event, "item", None): None
        for event in events
        if event.type in ("task_scheduled", "task_succeeded", "task_failed") and getattr(event, "task", None) == task
    }
    return [idempotency_key(execution_id, task, item) for item in found]
