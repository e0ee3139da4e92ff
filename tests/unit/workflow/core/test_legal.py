"""Laws of the checker of histories: it convicts every seeded fault and acquits what the engine makes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from app.domain.workflow.commands import Pause, Resume, RetryExecution, Signal, TaskError
from app.domain.workflow.definition import Retry
from app.domain.workflow.events import (
    ApprovalRequested,
    CompensationStarted,
    Event,
    ExecutionEnded,
    ExecutionRetried,
    ExecutionStarted,
    MapCompleted,
    SignalReceived,
    TaskFailed,
    TaskScheduled,
    TaskSkipped,
    TaskSucceeded,
)
from app.domain.workflow.legal import violations
from tests.unit.workflow.core.world import BROKEN, ID, Owner, begun, fire, report, task

History = list[Event]


def story() -> Owner:
    """Retry, map, skip, approval, pause, failure with compensation, and a retry that succeeds."""
    owner = begun(
        task("a", retry=Retry(attempts=2)),
        task("m", "a", over="list 2", concurrency=1),
        task("no", "a", when="false"),
        task("ok", "m", "no", type="approval"),
        task("z", "ok"),
        on_failure=task("undo"),
    )
    report(owner, "a", error=BROKEN)
    fire(owner, "retry/a")
    report(owner, "a", 1)
    report(owner, "m", "x")
    report(owner, "m", "y")
    owner.tell(Pause(execution_id=ID, command_id="p"))
    owner.tell(Resume(execution_id=ID, command_id="r"))
    owner.tell(Signal(execution_id=ID, command_id="s", name="ok", payload=True))
    report(owner, "z", error=BROKEN)
    report(owner, "undo")
    owner.tell(RetryExecution(execution_id=ID, command_id="again"))
    report(owner, "z", "end")
    return owner


def numbered(history: History) -> History:
    return [replace(event, seq=seq) for seq, event in enumerate(history)]


def without(kind: type[Event], nth: int = 0) -> Callable[[History], History]:
    """The history with one event of a kind taken out, and numbered anew so that no gap tells."""

    def fault(history: History) -> History:
        (*_, found) = [event for event in history if isinstance(event, kind)][: nth + 1]
        return numbered([event for event in history if event is not found])

    return fault


def twice(kind: type[Event]) -> Callable[[History], History]:
    def fault(history: History) -> History:
        at = next(n for n, event in enumerate(history) if isinstance(event, kind))
        return numbered([*history[: at + 1], *history[at:]])

    return fault


def changed(kind: type[Event], **fields: object) -> Callable[[History], History]:
    def fault(history: History) -> History:
        at = next(n for n, event in enumerate(history) if isinstance(event, kind))
        return [*history[:at], replace(history[at], **fields), *history[at + 1 :]]  # type: ignore[arg-type]

    return fault


def swapped(kind: type[Event]) -> Callable[[History], History]:
    """An event of a kind and the next one have changed places."""

    def fault(history: History) -> History:
        at = next(n for n, event in enumerate(history) if isinstance(event, kind))
        return numbered([*history[:at], history[at + 1], history[at], *history[at + 2 :]])

    return fault


FAULTS: dict[str, Callable[[History], History]] = {
    "a gap": lambda history: [*history[:4], *history[5:]],
    "a repeat": lambda history: [*history[:4], history[3], *history[4:]],
    "no start": lambda history: numbered(history[1:]),
    "time goes back": lambda history: [*history[:5], replace(history[5], at=0), *history[6:]],
    "another version": changed(ExecutionStarted, version="v2"),
    "began while it waited for the limiter": changed(ExecutionStarted, queued=True),
    "two starts": twice(ExecutionStarted),
    "two successes": twice(TaskSucceeded),
    "two beginnings": twice(TaskScheduled),
    "two ends": twice(ExecutionEnded),
    "two skips": twice(TaskSkipped),
    "a map completed twice": twice(MapCompleted),
    "a command twice": twice(SignalReceived),
    "compensated twice": twice(CompensationStarted),
    "an attempt without beginning": without(TaskScheduled),
    "an item without beginning": without(TaskScheduled, 2),
    "a success of another attempt": changed(TaskSucceeded, attempt=7),
    "an attempt number left out": changed(TaskScheduled, attempt=3),
    "an unknown task": changed(TaskScheduled, task="nobody"),
    "an unknown item": changed(MapCompleted, task="z"),
    "a retry before the failure": changed(TaskFailed, retry_at=0),
    "went on after a failure for good": changed(TaskFailed, retry_at=None),
    "an item missing": without(TaskSucceeded, 1),
    "a need missing": without(MapCompleted),
    "a skip missing": without(TaskSkipped),
    "an approval without its signal": without(SignalReceived),
    "an approval that says something else": changed(SignalReceived, payload=False),
    "an approval that nobody asked for": without(ApprovalRequested),
    "no compensation": without(CompensationStarted),
    "an end that is none": changed(ExecutionEnded, status="running"),
    "another end than what was compensated": changed(ExecutionEnded, status="timed_out"),
    "a success after a failure": changed(ExecutionEnded, status="succeeded", error=None),
    "a failure without a cause": changed(ExecutionEnded, error=None),
    "went on after the end": without(ExecutionRetried),
    "retried what was never begun": changed(ExecutionRetried, tasks=("z", "nobody")),
    "retried a need but not what needs it": changed(ExecutionRetried, tasks=("a", "z", "undo")),
    "kept a map that does not begin anew": changed(ExecutionRetried, kept=("m",)),
    "began in another order": swapped(MapCompleted),
    "cut off after a failure": lambda history: history[
        : next(n for n, event in enumerate(history) if isinstance(event, TaskFailed) and event.retry_at is None) + 1
    ],
    "nothing": lambda _: [],
}


def test_what_the_engine_makes_is_legal() -> None:
    owner = story()
    assert isinstance(owner.history[-1], ExecutionEnded)
    assert owner.history[-1].status == "succeeded"
    assert violations(owner.history, owner.definition) == []
    assert violations(owner.history) == []


@pytest.mark.parametrize("name", FAULTS)
def test_seeded_fault_is_found(name: str) -> None:
    owner = story()
    history = FAULTS[name](list(owner.history))
    assert history != owner.history
    assert violations(history, owner.definition) != []


def test_more_items_at_once_than_allowed_are_found() -> None:
    owner = begun(task("m", over="list 3", concurrency=2))
    narrow = replace(owner.definition, tasks={"m": task("m", over="list 3", concurrency=1)})
    assert any("at once" in text for text in violations(owner.history, narrow))


def test_more_attempts_than_allowed_are_found() -> None:
    owner = begun(task("a", retry=Retry(attempts=2)))
    report(owner, "a", error=BROKEN)
    fire(owner, "retry/a")
    strict = replace(owner.definition, tasks={"a": task("a")})
    assert any("1 attempts" in text for text in violations(owner.history, strict))


def test_beginning_in_a_pause_is_found() -> None:
    owner = begun(task("a"), task("b", "a"))
    owner.tell(Pause(execution_id=ID, command_id="p"))
    report(owner, "a")
    began = TaskScheduled(seq=len(owner.history), at=owner.now, task="b", item=None, attempt=1)
    assert any("paused" in text for text in violations([*owner.history, began], owner.definition))


def test_engine_may_give_up_by_itself_at_any_point() -> None:
    owner = begun(task("a"), on_failure=task("undo"))
    error = TaskError(type="DefinitionLost", message="no such version", retryable=False)
    given_up = ExecutionEnded(seq=len(owner.history), at=owner.now, status="failed", error=error)
    assert violations([*owner.history, given_up], owner.definition) == []
