"""What follows from a command: the events, worked out from the state, the definition and the time alone.

The rules:
- A task begins when every task that it needs has succeeded or was skipped; a skipped one reads as null. A task whose
  `when` is false is skipped, and so is one all of whose needs (one at least) were skipped.
- The first attempt that fails for good ends the execution: what else is under way is stopped. With `on_failure` that
  task runs first, also after a timeout of the execution, but not after a cancel. While paused this waits for resume.
- Paused: what runs ends and is recorded, attempts time out, approvals are answered; nothing else begins or falls due.
- An end is final until a retry, which continues attempts where they were: no attempt is ever made under one number
  twice. Retrying keeps what succeeded, also single items of a map; rerunning from a task expands its maps anew.
- Each signal answers one approval of its name, the one that has asked longest; it waits when none asks.
- A command that does not fit the state, or has been applied, changes nothing: no events.
- `at` never goes back, whatever the clock does.
- The token of an attempt is the `seq` of the event that began it.
"""

from typing import assert_never

from app.domain.workflow.commands import (
    Admit,
    Cancel,
    ChildEnded,
    Command,
    Heartbeat,
    Pause,
    Report,
    Resume,
    RetryExecution,
    Signal,
    Start,
    TaskError,
    TimerFired,
)
from app.domain.workflow.events import (
    Event,
    ExecutionAdmitted,
    ExecutionPaused,
    ExecutionResumed,
    ExecutionRetried,
    ExecutionStarted,
    SignalReceived,
    TaskSucceeded,
)
from app.domain.workflow.evolve import evolve
from app.domain.workflow.expressions import Expressions
from app.domain.workflow.graph import Graph
from app.domain.workflow.state import Execution, Work
from app.domain.workflow.timers import Kind, read_timer
from app.domain.workflow.turn import LIMITS, Limits, Placer, Turn, as_it_is


def decide(
    state: Execution | None,
    command: Command,
    graph: Graph,
    now_ms: int,
    expressions: Expressions,
    *,
    queued: bool = False,
    skipped: str | None = None,
    limits: Limits = LIMITS,
    place: Placer = as_it_is,
) -> list[Event]:
    """The events that follow from a command; `state` (None before the start) stays as it is.

    `queued` and `skipped` (a sentence) are what the limiter says to a start or a retry. `graph` is `graph_of` the
    definition of the execution's version.
    """
    draft = None if state is None else state.fork()
    return advance(
        draft, command, graph, now_ms, expressions, queued=queued, skipped=skipped, limits=limits, place=place
    )[1]


def advance(
    state: Execution | None,
    command: Command,
    graph: Graph,
    now_ms: int,
    expressions: Expressions,
    *,
    queued: bool = False,
    skipped: str | None = None,
    limits: Limits = LIMITS,
    place: Placer = as_it_is,
) -> tuple[Execution | None, list[Event]]:
    """`decide` and `evolve` in one pass: the state after the command, and its events.

    `state` is used up. This is what an owner calls; it costs one fold of the events and no copy.
    """
    if state is None:
        if not isinstance(command, Start):
            return None, []
        started = _started(command, graph, now_ms, queued=queued)
        turn = Turn(evolve(None, started), graph, started.at, expressions, limits, place)
        turn.events.append(started)
        if skipped is not None:
            turn.end("skipped", reason=skipped)
        elif not queued:
            turn.settle(graph.roots)
        return turn.state, turn.events
    turn = Turn(state, graph, max(now_ms, state.at), expressions, limits, place)
    match command:
        case Report():
            _report(turn, command)
        case Start() | Heartbeat():
            pass
        case ChildEnded():
            _child_ended(turn, command)
        case TimerFired():
            _timer(turn, command)
        case Signal():
            _signal(turn, command)
        case Admit():
            _admit(turn)
        case Cancel():
            _cancel(turn, command)
        case Pause():
            _pause(turn, command)
        case Resume():
            _resume(turn, command)
        case RetryExecution():
            _retry(turn, command, queued=queued)
        case _:
            assert_never(command)
    return state, turn.events


def _started(command: Start, graph: Graph, now_ms: int, *, queued: bool) -> ExecutionStarted:
    return ExecutionStarted(
        seq=0,
        at=now_ms,
        workflow=command.workflow,
        version=graph.workflow.version,
        input=command.input,
        key=command.key,
        priority=command.priority,
        asked_at=command.at_ms,
        trigger=command.trigger,
        queued=queued,
        parent=command.parent,
        notify=command.notify,
        traceparent=command.traceparent,
        execution_id=command.execution_id,
    )


def _report(turn: Turn, command: Report) -> None:
    """An attempt ended; anything but the current attempt of work that an executor does is stale."""
    state = turn.state
    work = state.find(command.task, command.item)
    if (
        work is None
        or work.status != "running"
        or work.token != command.token
        or work.attempt != command.attempt
        or (node := turn.graph.nodes[command.task]).is_control
        or work.items is not None
    ):
        return
    if command.error is not None:
        turn.fail(node, command.item, work, command.error, command.duration_ms, command.worker)
        return
    turn.emit(
        TaskSucceeded(
            seq=state.seq,
            at=turn.now,
            task=command.task,
            item=command.item,
            attempt=command.attempt,
            result=command.result,
            duration_ms=command.duration_ms,
            worker=command.worker,
        )
    )
    turn.go_on(node, command.item)


def _child_ended(turn: Turn, command: ChildEnded) -> None:
    """A sub-workflow ended: its result is the task's, any other end than success is a failure."""
    work = turn.state.find(command.task, command.item)
    if work is None or work.status != "running" or work.child is None or work.attempt != command.attempt:
        return
    node = turn.graph.nodes[command.task]
    if command.status == "succeeded":
        turn.succeed(node, command.item, command.result)
        return
    why = "" if command.error is None else f": {command.error.message}"
    error = TaskError(
        type="SubWorkflow",
        message=f"sub-workflow {command.child_id!r} ended {command.status}{why}",
        retryable=command.status in {"failed", "timed_out"},
        detail={"execution_id": command.child_id, "status": command.status},
    )
    turn.fail(node, command.item, work, error)


def _timer(turn: Turn, command: TimerFired) -> None:
    """A timer is due. The engine's clock says so: `now` is not asked, so that a jump back loses no timer."""
    timer = read_timer(command.name)
    state = turn.state
    if timer is None or state.is_over or not state.admitted:
        return
    if timer.kind == "execution":
        if timer.attempt == state.run and not state.paused and state.compensates is None:
            turn.time_out()
        return
    work = state.find(timer.task, timer.item)
    if work is None or work.attempt != timer.attempt or work.items is not None:
        return
    node = turn.graph.nodes[timer.task]
    if timer.kind == "timeout" and work.status == "running" and node.timeout_ms is not None:
        limit = node.timeout_ms / 1000
        error = TaskError(type="Timeout", message=f"the attempt took longer than {limit:g} s")
        turn.fail(node, timer.item, work, error)
    elif timer.kind == "heartbeat" and work.status == "running" and node.heartbeat_ms is not None:
        limit = node.heartbeat_ms / 1000
        error = TaskError(type="HeartbeatTimeout", message=f"the attempt was silent for longer than {limit:g} s")
        turn.fail(node, timer.item, work, error)
    elif not state.paused and timer.kind == _awaited(work):
        turn.fall_due(node, timer.item)


def _awaited(work: Work) -> Kind | None:
    """Which timer moves this work on by itself."""
    if work.due is None:
        return None
    if work.status == "backoff":
        return "retry"
    if work.status != "running":
        return None
    return "wait" if work.signal is None else "approval"


def _signal(turn: Turn, command: Signal) -> None:
    """A signal answers the approval that has asked longest under its name, else it waits."""
    state = turn.state
    if state.is_over or command.command_id in state.applied:
        return
    if len(state.inbox.get(command.name, ())) >= turn.limits.signals:
        return
    turn.emit(
        SignalReceived(
            seq=state.seq,
            at=turn.now,
            name=command.name,
            payload=command.payload,
            command_id=command.command_id,
        )
    )
    asked = state.asked.get(command.name)
    if asked:
        task, item = next(iter(asked))
        turn.succeed(turn.graph.nodes[task], item, state.inbox[command.name][0])


def _admit(turn: Turn) -> None:
    """The limiter has a place."""
    state = turn.state
    if state.is_over or state.admitted:
        return
    turn.emit(ExecutionAdmitted(seq=state.seq, at=turn.now))
    turn.go_through()


def _cancel(turn: Turn, command: Cancel) -> None:
    """The end, at once: what runs is asked to stop, and what it still says is ignored."""
    state = turn.state
    if state.is_over or command.command_id in state.applied:
        return
    turn.end("cancelled", reason=command.reason, command_id=command.command_id)


def _pause(turn: Turn, command: Pause) -> None:
    """Nothing further begins."""
    state = turn.state
    if state.is_over or state.paused or command.command_id in state.applied:
        return
    turn.emit(ExecutionPaused(seq=state.seq, at=turn.now, command_id=command.command_id))


def _resume(turn: Turn, command: Resume) -> None:
    """What fell due or failed meanwhile acts now."""
    state = turn.state
    if state.is_over or not state.paused or command.command_id in state.applied:
        return
    turn.emit(ExecutionResumed(seq=state.seq, at=turn.now, command_id=command.command_id))
    if not state.admitted:
        return
    limit = turn.graph.timeout_ms
    if limit is not None and state.compensates is None and turn.now >= (state.began_at or 0) + limit:
        turn.time_out()
        return
    for name, work in state.tasks.items():
        if work.status == "failed" and state.compensates is None:
            error = work.error
            assert error is not None, "what failed has an error"
            turn.break_off("failed", error, name)
            return
    due = [piece for piece in state.live() if piece.work.due is not None and piece.work.due <= turn.now]
    for task, item, _ in due:
        turn.fall_due(turn.graph.nodes[task], item)
        if turn.state.is_over:
            return
    turn.go_through()


def _retry(turn: Turn, command: RetryExecution, *, queued: bool) -> None:
    """Go on after the end: from what is unfinished, or from one task and all that need it."""
    state = turn.state
    start = command.from_task
    if not state.is_over or state.status == "skipped" or command.command_id in state.applied:
        return
    if start is None and state.status == "succeeded":
        return
    graph = turn.graph
    if start is not None and start not in graph.workflow.tasks:
        return
    anew = graph.after(start) if start is not None else set()
    unfinished = {
        name for name, work in state.tasks.items() if work.status in {"failed", "stopped", "running", "backoff"}
    }
    compensation = None if graph.compensation is None else graph.compensation.task.name
    if compensation is not None:
        anew.add(compensation)
    chosen = [name for name in graph.nodes if name in state.tasks and (name in anew or name in unfinished)]
    kept = [name for name in chosen if name not in anew and state.tasks[name].items is not None]
    turn.emit(
        ExecutionRetried(
            seq=state.seq,
            at=turn.now,
            command_id=command.command_id,
            tasks=tuple(chosen),
            kept=tuple(kept),
            queued=queued,
        )
    )
    if not queued:
        turn.go_through()
