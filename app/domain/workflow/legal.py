"""Says of a history every way in which it could not have come from the engine's rules.

It keeps its own books and shares nothing with `decide` and `evolve`, so that it can convict them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, assert_never

from app.domain.workflow.definition import APPROVAL, SUB_WORKFLOW, WAIT, Task, Workflow
from app.domain.workflow.events import (
    FINAL,
    ApprovalRequested,
    ChildStarted,
    CompensationStarted,
    Event,
    ExecutionAdmitted,
    ExecutionEnded,
    ExecutionPaused,
    ExecutionResumed,
    ExecutionRetried,
    ExecutionStarted,
    MapCompleted,
    MapExpanded,
    SignalReceived,
    TaskFailed,
    TaskScheduled,
    TaskSkipped,
    TaskSucceeded,
    WaitStarted,
)

Begins = TaskScheduled | WaitStarted | ApprovalRequested | ChildStarted
_BEGUN_AS: Final = {WAIT: WaitStarted, APPROVAL: ApprovalRequested, SUB_WORKFLOW: ChildStarted}


def violations(events: Iterable[Event], definition: Workflow | None = None) -> list[str]:
    """Every rule that a whole history breaks, each as a sentence; none for a legal one.

    Without the definition only what holds for any workflow is judged.
    """
    trial = _Trial(definition)
    for event in events:
        trial.hear(event)
    trial.close()
    return trial.found


@dataclass(slots=True)
class _Piece:
    """A task, or one item of its map, as the history has told it."""

    status: Literal["pending", "running", "backoff", "succeeded", "failed", "skipped"] = "pending"
    attempt: int = 0
    tries: int = 0
    signal: str | None = None
    result: Any = None


@dataclass(slots=True)
class _Fan:
    """A map that is under way."""

    items: list[_Piece]
    done: int = 0
    open: int = 0


@dataclass(slots=True)
class _Trial:
    """One history on its way."""

    definition: Workflow | None
    found: list[str] = field(default_factory=list)
    seq: int = 0
    at: int = 0
    started: bool = False
    admitted: bool = False
    paused: bool = False
    ended: str | None = None
    compensates: str | None = None
    broken: bool = False
    tasks: dict[str, _Piece] = field(default_factory=dict)
    fans: dict[str, _Fan] = field(default_factory=dict)
    signals: dict[str, list[Any]] = field(default_factory=dict)
    commands: set[str] = field(default_factory=set)

    def hear(self, event: Event) -> None:
        """Judge one event, then take note of it."""
        if event.seq != self.seq:
            self.blame(event, f"seq is {self.seq} here")
        self.seq = event.seq + 1
        if event.at < self.at:
            self.blame(event, f"`at` goes back from {self.at} to {event.at}")
        self.at = max(self.at, event.at)
        if not self.started and not isinstance(event, ExecutionStarted):
            self.blame(event, "a history begins with execution_started")
        if self.ended is not None and not isinstance(event, ExecutionRetried):
            self.blame(event, f"it had ended {self.ended}")
        if self.broken and not self.paused and not isinstance(event, ExecutionEnded | CompensationStarted):
            self.blame(event, "a task had failed for good, so the execution ends or compensates")
        self.judge(event)

    def close(self) -> None:
        """Judge where it stopped."""
        if not self.started:
            self.found.append("the history is empty")
        elif self.broken and self.ended is None and not self.paused:
            self.found.append("a task failed for good and the execution neither ended nor compensates")

    def blame(self, event: Event, why: str) -> None:
        """One rule is broken."""
        self.found.append(f"event {event.seq} ({event.type}): {why}")

    def judge(self, event: Event) -> None:
        match event:
            case ExecutionStarted():
                self.start(event)
            case ExecutionAdmitted():
                if self.admitted:
                    self.blame(event, "it did not wait for the limiter")
                self.admitted = True
            case TaskScheduled() | WaitStarted() | ApprovalRequested() | ChildStarted():
                self.begin(event)
            case TaskSucceeded():
                self.succeed(event)
            case TaskFailed():
                self.fail(event)
            case TaskSkipped():
                self.skip(event)
            case MapExpanded():
                self.expand(event)
            case MapCompleted():
                self.complete(event)
            case SignalReceived():
                self.once(event, event.command_id)
                self.signals.setdefault(event.name, []).append(event.payload)
            case ExecutionPaused():
                self.once(event, event.command_id)
                if self.paused:
                    self.blame(event, "it was paused")
                self.paused = True
            case ExecutionResumed():
                self.once(event, event.command_id)
                if not self.paused:
                    self.blame(event, "it was not paused")
                self.paused = False
            case ExecutionRetried():
                self.retry(event)
            case CompensationStarted():
                self.compensate(event)
            case ExecutionEnded():
                self.end(event)
            case _:
                assert_never(event)

    # ---- the execution

    def start(self, event: ExecutionStarted) -> None:
        if self.started:
            self.blame(event, "a history has one start")
        self.started = True
        self.admitted = not event.queued
        definition = self.definition
        if definition is not None and (event.workflow, event.version) != (definition.id, definition.version):
            self.blame(event, f"{event.workflow}@{event.version} is not {definition.id}@{definition.version}")

    def once(self, event: Event, command_id: str) -> None:
        """A command acts once."""
        if command_id in self.commands:
            self.blame(event, f"command {command_id!r} had been applied")
        self.commands.add(command_id)

    def compensate(self, event: CompensationStarted) -> None:
        self.may_begin(event)
        if self.compensates is not None:
            self.blame(event, "it compensates already")
        if event.status not in {"failed", "timed_out"}:
            self.blame(event, f"nothing is compensated after {event.status}")
        if event.status == "failed" and not self.broken:
            self.blame(event, "no task had failed for good")
        if self.definition is not None and self.definition.on_failure is None:
            self.blame(event, "the definition has no on_failure")
        self.compensates = event.status
        self.broken = False
        self.interrupt()

    def interrupt(self) -> None:
        """What was under way is over: nothing more may be heard of it but a new beginning."""
        for piece in self.tasks.values():
            if piece.status in {"running", "backoff"}:
                piece.status = "failed"
        for fan in self.fans.values():
            for piece in fan.items if fan.open else ():
                if piece.status in {"running", "backoff"}:
                    piece.status = "failed"
            fan.open = 0

    def end(self, event: ExecutionEnded) -> None:
        if event.status not in FINAL:
            self.blame(event, f"{event.status} is no end")
        if event.command_id:
            self.once(event, event.command_id)
        if event.status in {"failed", "timed_out"} and event.error is None:
            self.blame(event, "a failure has an error")
        if event.status == "succeeded":
            self.end_well(event)
        elif event.status == "failed" and event.task is None:
            pass  # the engine itself could not go on, at any point: a lost definition, an input that is too large
        elif event.status in {"failed", "timed_out"}:
            if self.compensates is not None and event.status != self.compensates:
                self.blame(event, f"it compensated to end {self.compensates}, not {event.status}")
            if self.compensates is None and event.status == "failed" and not self.broken:
                self.blame(event, "no task had failed for good")
            if self.compensates is None and self.definition is not None and self.definition.on_failure is not None:
                self.blame(event, "its on_failure did not run")
        elif event.status == "skipped" and self.tasks:
            self.blame(event, "what is skipped has begun nothing")
        self.ended = event.status
        self.paused = self.broken = False
        self.interrupt()

    def end_well(self, event: ExecutionEnded) -> None:
        if self.compensates is not None:
            self.blame(event, "what compensates has not succeeded")
        for name, piece in self.tasks.items():
            if piece.status not in {"succeeded", "skipped", "pending"}:
                self.blame(event, f"task {name!r} is {piece.status}")
        if self.definition is not None:
            missing = [name for name in self.definition.tasks if not self.has_finished(name)]
            if missing:
                self.blame(event, f"unfinished: {', '.join(missing)}")

    def retry(self, event: ExecutionRetried) -> None:
        self.once(event, event.command_id)
        if self.ended is None or self.ended == "skipped":
            self.blame(event, "only what has ended, and was not skipped, goes on")
        if not set(event.kept) <= set(event.tasks):
            self.blame(event, "a kept map begins anew")
        if self.definition is not None:
            for name, task in self.definition.tasks.items():
                again = [need for need in task.needs if need in event.tasks]
                if again and name not in event.tasks and self.has_finished(name):
                    self.blame(event, f"task {name!r} needs {again[0]!r}, so it begins anew too")
        for name in event.tasks:
            if name not in self.tasks:
                self.blame(event, f"nothing was known of task {name!r}")
                continue
            self.reset(event, name)
        self.ended = self.compensates = None
        self.admitted = not event.queued

    def reset(self, event: ExecutionRetried, name: str) -> None:
        fan = self.fans.get(name)
        piece = self.tasks[name]
        if name in event.kept:
            if fan is None:
                self.blame(event, f"{name!r} is no map under way")
                return
            for each in fan.items:
                if each.status != "succeeded":
                    each.status, each.tries = "pending", 0
            piece.status = "running"
            return
        if fan is not None:
            piece.attempt = max([piece.attempt, *(each.attempt for each in fan.items)])
            del self.fans[name]
        piece.status, piece.tries, piece.result = "pending", 0, None

    # ---- tasks

    def may_begin(self, event: Event) -> None:
        """Something new begins."""
        if not self.admitted:
            self.blame(event, "it waits for the limiter")
        if self.paused:
            self.blame(event, "it is paused")

    def task_of(self, event: Event, name: str) -> Task | None:
        """The definition of a task, which must be one of the part that is under way."""
        if self.definition is None:
            return None
        compensation = self.definition.on_failure
        if compensation is not None and compensation.name == name:
            if self.compensates is None:
                self.blame(event, f"{name!r} runs only to compensate")
            return compensation
        task = self.definition.tasks.get(name)
        if task is None:
            self.blame(event, f"the definition has no task {name!r}")
        elif self.compensates is not None:
            self.blame(event, f"{name!r} is over while the execution compensates")
        return task

    def has_finished(self, name: str) -> bool:
        piece = self.tasks.get(name)
        return piece is not None and piece.status in {"succeeded", "skipped"}

    def needs_finished(self, event: Event, task: Task | None) -> None:
        for need in () if task is None else task.needs:
            if not self.has_finished(need):
                self.blame(event, f"{need!r}, which {getattr(event, 'task', '')!r} needs, has not finished")

    def piece(self, event: Event, name: str, item: int | None) -> _Piece:
        """The task or item that an event is about; one is made up for an event that is about none."""
        if item is None:
            return self.tasks.setdefault(name, _Piece())
        fan = self.fans.get(name)
        if fan is None or not 0 <= item < len(fan.items):
            self.blame(event, f"{name!r} has no item {item}")
            return _Piece()
        return fan.items[item]

    def begin(self, event: Begins) -> None:
        self.may_begin(event)
        task = self.task_of(event, event.task)
        piece = self.piece(event, event.task, event.item)
        fan = self.fans.get(event.task)
        if event.item is None:
            self.needs_finished(event, task)
            if fan is not None:
                self.blame(event, f"{event.task!r} is a map: its items begin")
        if piece.status not in {"pending", "backoff"}:
            self.blame(event, f"it is {piece.status}")
        attempt = event.attempt if isinstance(event, TaskScheduled | ChildStarted) else piece.attempt + 1
        if attempt != piece.attempt + 1:
            self.blame(event, f"the attempt after {piece.attempt} is not {attempt}")
        if fan is not None and event.item is not None and piece.status == "pending":
            fan.open += 1
        piece.status, piece.attempt = "running", attempt
        piece.tries += 1
        piece.signal = event.name if isinstance(event, ApprovalRequested) else None
        if task is not None:
            self.fits(event, task, piece, fan)

    def fits(self, event: Begins, task: Task, piece: _Piece, fan: _Fan | None) -> None:
        """An attempt is as its definition says."""
        if not isinstance(event, _BEGUN_AS.get(task.type, TaskScheduled)):
            self.blame(event, f"{task.name!r} is of type {task.type}")
        if (task.map is None) != (event.item is None):
            self.blame(event, f"{task.name!r} is {'no' if task.map is None else 'a'} map")
        if piece.tries > task.retry.attempts:
            self.blame(event, f"{task.name!r} has {task.retry.attempts} attempts")
        if fan is not None and task.map is not None and fan.open > max(1, task.map.concurrency):
            self.blame(event, f"at most {task.map.concurrency} items of {task.name!r} run at once")

    def succeed(self, event: TaskSucceeded) -> None:
        self.task_of(event, event.task)
        piece = self.piece(event, event.task, event.item)
        if piece.status != "running" or piece.attempt != event.attempt:
            self.blame(
                event, f"attempt {event.attempt} is not under way: it is {piece.status}, attempt {piece.attempt}"
            )
        if piece.signal is not None:
            waiting = self.signals.get(piece.signal)
            if not waiting:
                self.blame(event, f"no signal {piece.signal!r} has come")
            elif waiting.pop(0) != event.result:
                self.blame(event, f"the oldest signal {piece.signal!r} said something else")
        fan = self.fans.get(event.task)
        if fan is not None and event.item is not None:
            fan.done += 1
            fan.open -= 1
        piece.status, piece.result, piece.signal = "succeeded", event.result, None

    def fail(self, event: TaskFailed) -> None:
        self.task_of(event, event.task)
        piece = self.piece(event, event.task, event.item)
        fan = self.fans.get(event.task)
        has_begun = piece.status == "running" and piece.attempt == event.attempt
        if event.item is None and fan is not None:
            used = max([piece.attempt, *(each.attempt for each in fan.items)])
            has_begun = event.retry_at is None and event.attempt == used + 1
            del self.fans[event.task]
        cannot_begin = (
            piece.status in {"pending", "backoff"} and event.retry_at is None and event.attempt == piece.attempt + 1
        )
        if not has_begun and not cannot_begin:
            self.blame(
                event, f"attempt {event.attempt} is not under way: it is {piece.status}, attempt {piece.attempt}"
            )
        if event.retry_at is not None and event.retry_at < event.at:
            self.blame(event, "the next attempt is before this one's end")
        if event.item is not None and fan is not None and event.retry_at is None and piece.status != "pending":
            fan.open -= 1
        piece.attempt = event.attempt
        piece.signal = None
        piece.status = "failed" if event.retry_at is None else "backoff"
        if event.retry_at is None:
            self.tasks[event.task].status = "failed"
            self.broken = self.compensates is None

    def skip(self, event: TaskSkipped) -> None:
        self.may_begin(event)
        task = self.task_of(event, event.task)
        self.needs_finished(event, task)
        piece = self.piece(event, event.task, None)
        if piece.status != "pending":
            self.blame(event, f"it is {piece.status}")
        if task is not None and task.when is None:
            skipped = [self.tasks[need].status == "skipped" for need in task.needs if need in self.tasks]
            if not skipped or not all(skipped):
                self.blame(event, f"{event.task!r} has no `when`, and not all that it needs was skipped")
        piece.status = "skipped"

    def expand(self, event: MapExpanded) -> None:
        self.may_begin(event)
        task = self.task_of(event, event.task)
        self.needs_finished(event, task)
        if task is not None and task.map is None:
            self.blame(event, f"{event.task!r} is no map")
        piece = self.piece(event, event.task, None)
        if piece.status != "pending":
            self.blame(event, f"it is {piece.status}")
        piece.status = "running"
        self.fans[event.task] = _Fan([_Piece(attempt=piece.attempt) for _ in event.items])

    def complete(self, event: MapCompleted) -> None:
        self.task_of(event, event.task)
        fan = self.fans.pop(event.task, None)
        piece = self.piece(event, event.task, None)
        if fan is None or piece.status != "running":
            self.blame(event, f"{event.task!r} is no map under way")
            return
        if fan.done != len(fan.items):
            self.blame(event, f"{fan.done} of {len(fan.items)} items have succeeded")
        piece.attempt = max([piece.attempt, *(each.attempt for each in fan.items)])
        piece.status = "succeeded"
