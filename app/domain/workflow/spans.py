"""The spans of an execution, made from its events: one a run, and below it one an attempt of a task.

Ids come from the names of things, so that whoever carries on after a crash gives the same ones, and an executor in
another process knows the id of the attempt it works for. An attempt lasts from the event that began it to the event
that ended it, waiting for a slot included; a run from its start to its end, waiting for the limiter included. An
attempt that was decided at the instant it was ordered lasts as long as its executor measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from app.domain.trace import Span, TraceContext, Value, parse, span_id_of, trace_id_of
from app.domain.workflow.commands import TaskError
from app.domain.workflow.events import (
    ApprovalRequested,
    ChildStarted,
    CompensationStarted,
    Event,
    ExecutionEnded,
    ExecutionRetried,
    ExecutionStarted,
    TaskFailed,
    TaskScheduled,
    TaskSucceeded,
    WaitStarted,
)

TypeOf = Callable[[str], str | None]
"""The type of a task by its name, None when the definition is not known."""

MESSAGE_CHARS: Final = 1_000
_NS: Final = 1_000_000


def run_span_id(execution_id: str, run: int) -> str:
    """The span of an execution's run."""
    return span_id_of(execution_id, "run", run)


def attempt_span_id(execution_id: str, token: int) -> str:
    """The span of an attempt: `token` is the `seq` of the event that began it."""
    return span_id_of(execution_id, "attempt", token)


def new_trace(execution_id: str, at_ms: int) -> TraceContext:
    """The trace of an execution that nobody traced who asked for it (at `at_ms`): its first run is the root."""
    return TraceContext(trace_id_of(execution_id, at_ms), run_span_id(execution_id, 1), is_sampled=False)


def below_attempt(traceparent: str | None, execution_id: str, token: int) -> str | None:
    """The `traceparent` of what an attempt causes; that of the execution when nothing of it is recorded."""
    context = parse(traceparent)
    if context is None or not context.is_sampled:
        return traceparent
    return context.at(attempt_span_id(execution_id, token)).header()


class _Begun(NamedTuple):
    token: int
    at: int
    attempt: int | None


@dataclass(slots=True)
class ExecutionTrace:
    """What is under way of an execution that is recorded; `take` its events in their order, each once."""

    execution_id: str
    workflow: str
    version: str
    above: TraceContext
    trigger: str
    began_at: int
    run: int = 1
    latest_ns: int = 0
    began: dict[tuple[str, int | None], _Begun] = field(default_factory=dict)

    @classmethod
    def of(cls, event: Event) -> "ExecutionTrace | None":
        """From the first event; None when nothing of the execution is recorded."""
        if not isinstance(event, ExecutionStarted):
            return None
        context = parse(event.traceparent)
        if context is None or not context.is_sampled:
            return None
        trigger = str(event.trigger.get("kind", ""))
        return cls(event.execution_id, event.workflow, event.version, context, trigger, event.at)

    def take(self, event: Event, type_of: TypeOf) -> Iterator[Span]:
        """The spans that end with this event."""
        match event:
            case TaskScheduled() | ChildStarted():
                self.began[event.task, event.item] = _Begun(event.seq, event.at, event.attempt)
            case WaitStarted() | ApprovalRequested():
                self.began[event.task, event.item] = _Begun(event.seq, event.at, None)
            case TaskSucceeded() | TaskFailed():
                yield self._attempt(event, type_of)
            case CompensationStarted():
                yield from self._stopped(event.at, type_of)
            case ExecutionRetried():
                self.run += 1
                self.began_at = event.at
            case ExecutionEnded():
                yield from self._stopped(event.at, type_of)
                yield self._run(event)
            case _:
                return

    # ---- spans ----

    def _attempt(self, event: TaskSucceeded | TaskFailed, type_of: TypeOf) -> Span:
        place = (event.task, event.item)
        # An attempt that could not even begin, for its condition or its list failed, has only its end.
        begun = self.began.pop(place, None) or _Begun(event.seq, event.at, None)
        further: dict[str, Value] = {}
        if event.worker:
            further["headrace.worker"] = event.worker
            further["headrace.task.run_ms"] = event.duration_ms
        error = event.error if isinstance(event, TaskFailed) else None
        if isinstance(event, TaskFailed) and event.retry_at is not None:
            further["headrace.task.retry_in_ms"] = max(0, event.retry_at - event.at)
        outcome = "succeeded" if error is None else "failed"
        begun = begun._replace(attempt=event.attempt)
        end_ns = max(event.at * _NS, begun.at * _NS + round(event.duration_ms * _NS))
        return self._of_attempt(place, begun, end_ns, outcome, type_of, further, error)

    def _stopped(self, at: int, type_of: TypeOf) -> Iterator[Span]:
        """What was under way when the execution gave it up."""
        began, self.began = self.began, {}
        for place, begun in began.items():
            yield self._of_attempt(place, begun, max(begun.at, at) * _NS, "stopped", type_of, {}, None)

    def _of_attempt(
        self,
        place: tuple[str, int | None],
        begun: _Begun,
        end_ns: int,
        outcome: str,
        type_of: TypeOf,
        further: dict[str, Value],
        error: TaskError | None,
    ) -> Span:
        task, item = place
        self.latest_ns = max(self.latest_ns, end_ns)
        attributes: dict[str, Value] = {
            **self._names(),
            "headrace.task.name": task,
            "headrace.task.outcome": outcome,
            **further,
        }
        if begun.attempt is not None:
            attributes["headrace.task.attempt"] = begun.attempt
        if (kind := type_of(task)) is not None:
            attributes["headrace.task.type"] = kind
        if item is not None:
            attributes["headrace.task.item"] = item
        return Span(
            context=self.above.at(attempt_span_id(self.execution_id, begun.token)),
            parent_id=run_span_id(self.execution_id, self.run),
            name=f"task {task}",
            kind="internal",
            start_ns=begun.at * _NS,
            end_ns=end_ns,
            attributes=_with_error(attributes, error),
            error=_message(error),
        )

    def _run(self, event: ExecutionEnded) -> Span:
        attributes: dict[str, Value] = {
            **self._names(),
            "headrace.execution.status": event.status,
            "headrace.execution.trigger": self.trigger,
        }
        error = event.error
        if error is None and event.status in {"failed", "timed_out"}:
            error = TaskError(type=event.status, message=event.reason)
        failed = error if event.status in {"failed", "timed_out"} else None
        span_id = run_span_id(self.execution_id, self.run)
        return Span(
            context=self.above.at(span_id),
            parent_id=None if self.above.span_id == span_id else self.above.span_id,
            name=f"workflow {self.workflow}",
            kind="internal",
            start_ns=self.began_at * _NS,
            end_ns=max(self.began_at * _NS, event.at * _NS, self.latest_ns),
            attributes=_with_error(attributes, failed),
            error=_message(failed),
        )

    def _names(self) -> dict[str, Value]:
        return {
            "headrace.workflow.id": self.workflow,
            "headrace.workflow.version": self.version,
            "headrace.execution.id": self.execution_id,
            "headrace.execution.run": self.run,
        }


def _with_error(attributes: dict[str, Value], error: TaskError | None) -> dict[str, Value]:
    if error is not None:
        attributes["error.type"] = error.type
    return attributes


def _message(error: TaskError | None) -> str | None:
    return None if error is None else error.message[:MESSAGE_CHARS]
