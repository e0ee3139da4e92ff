"""What an execution's owner must do outside once events are durable, and do again after a takeover."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from app.domain.workflow.commands import Heartbeat, Parent, TaskError
from app.domain.workflow.context import context_for
from app.domain.workflow.definition import APPROVAL, WAIT
from app.domain.workflow.events import (
    ApprovalRequested,
    ChildStarted,
    CompensationStarted,
    Event,
    ExecutionAdmitted,
    ExecutionEnded,
    ExecutionResumed,
    ExecutionRetried,
    ExecutionStarted,
    Status,
    TaskFailed,
    TaskScheduled,
    TaskSucceeded,
    WaitStarted,
)
from app.domain.workflow.graph import Graph, Node
from app.domain.workflow.orders import TaskOrder
from app.domain.workflow.state import Child, Execution, Piece
from app.domain.workflow.timers import execution_timer, timer_name

TIMEOUTS: Final = frozenset({"Timeout", "HeartbeatTimeout"})


class Dispatch(NamedTuple):
    """Have an attempt carried out; `order_for` makes the order."""

    task: str
    item: int | None
    attempt: int
    token: int


class SetTimer(NamedTuple):
    """Tell the execution `TimerFired(name)` at `due_ms`; a timer of that name that is set already is moved."""

    name: str
    due_ms: int


class ClearTimer(NamedTuple):
    """Forget a timer; it need not be set."""

    name: str


class StartChild(NamedTuple):
    """Start a sub-workflow. A repeat is harmless: its id is the same. `version` None means the latest.

    When it cannot be started (unknown workflow or version) the answer is a `ChildEnded` that failed.
    """

    child_id: str
    workflow: str
    version: str | None
    input: Any
    parent: Parent


class CancelChild(NamedTuple):
    """Cancel a sub-workflow that nobody waits for any more."""

    child_id: str


class CancelWork(NamedTuple):
    """Stop what runs for a task or an item of it (`task` None: for the whole execution)."""

    task: str | None
    item: int | None


class Ended(NamedTuple):
    """A run ended: the limiter has a place, a parent or entity waits to be told, failures are dead letters."""

    status: Status
    result: Any
    error: TaskError | None
    task: str | None
    reason: str
    parent: Parent | None
    notify: str | None


Effect = Dispatch | SetTimer | ClearTimer | StartChild | CancelChild | CancelWork | Ended


def effects(state: Execution, events: Sequence[Event], graph: Graph) -> tuple[Effect, ...]:
    """What follows from `events`, the last ones of `state`, in the order in which it is to be done."""
    made: list[Effect] = []
    nodes = graph.nodes
    first = events[0].seq if events else 0
    is_whole = not state.is_over and state.compensates is None  # else what began may have been stopped at once
    for event in events:
        if isinstance(event, TaskSucceeded):
            if (node := nodes[event.task]).has_timers:
                made += _settled(event.task, event.item, event.attempt, node)
        elif isinstance(event, TaskScheduled):
            dispatch = Dispatch(event.task, event.item, event.attempt, event.seq)
            if is_whole or is_current(state, dispatch):
                made.append(dispatch)
                if event.attempt > 1:  # a resume may have begun it before its timer fell due
                    made.append(ClearTimer(timer_name("retry", event.task, event.item, event.attempt - 1)))
                if (node := nodes[event.task]).has_timers:
                    made += _attempt_timers(event.task, event.item, event.attempt, event.at, node)
        elif isinstance(event, ExecutionEnded):
            made += _end(state, event, graph, first)
        elif isinstance(event, TaskFailed):
            made += _failed(state, event, nodes[event.task])
        elif isinstance(event, WaitStarted | ApprovalRequested | ChildStarted):
            made += _begun(state, event, nodes[event.task])
        elif isinstance(event, ExecutionStarted | ExecutionAdmitted | ExecutionRetried):
            if graph.timeout_ms is not None and not getattr(event, "queued", False):
                made.append(SetTimer(execution_timer(state.run), event.at + graph.timeout_ms))
        elif isinstance(event, ExecutionResumed):
            # A timer that was due during the pause has been used up, and the clock may have gone back since. Who has
            # loaded the execution since takes it for set: it is cleared, so that its row is written.
            timers = [effect for effect in outstanding(state, graph) if isinstance(effect, SetTimer)]
            made += [ClearTimer(timer.name) for timer in timers]
            made += timers
        elif isinstance(event, CompensationStarted):
            made += _stopped(state, graph, first)
    return tuple(made)


def outstanding(state: Execution, graph: Graph) -> tuple[Effect, ...]:
    """Everything that is to be in hand now: what a new owner orders anew, and the timers that its table holds."""
    if state.is_over or not state.admitted:
        return ()
    made: list[Effect] = []
    if graph.timeout_ms is not None and state.compensates is None:
        made.append(SetTimer(execution_timer(state.run), (state.began_at or 0) + graph.timeout_ms))
    for piece in state.live():
        made += _in_hand(state, piece, graph)
    return tuple(made)


def heard(state: Execution, beat: Heartbeat, graph: Graph, now_ms: int) -> tuple[Effect, ...]:
    """What follows from a heartbeat: the longest silence counts anew. It is no event, the history stays short."""
    work = state.find(beat.task, beat.item)
    if work is None or work.status != "running" or (work.attempt, work.token) != (beat.attempt, beat.token):
        return ()
    limit = graph.nodes[beat.task].heartbeat_ms
    if limit is None:
        return ()
    return (SetTimer(timer_name("heartbeat", beat.task, beat.item, beat.attempt), now_ms + limit),)


def order_for(state: Execution, graph: Graph, dispatch: Dispatch, now_ms: int | None = None) -> TaskOrder:
    """The order of an attempt that is under way.

    `now_ms` is when it is handed out: from then its time counts (without it, from when it was scheduled).
    """
    node = graph.nodes[dispatch.task]
    task = node.task
    deadline = None
    if node.timeout_ms is not None:
        work = state.find(dispatch.task, dispatch.item)
        begun = now_ms if now_ms is not None else state.at if work is None else work.at
        deadline = begun + node.timeout_ms
    return TaskOrder(
        execution_id=state.execution_id,
        workflow=state.workflow,
        version=state.version,
        task=dispatch.task,
        item=dispatch.item,
        attempt=dispatch.attempt,
        token=dispatch.token,
        type=task.type,
        params=task.params,
        context=context_for(state, graph, dispatch.task, dispatch.item, dispatch.attempt),
        timeout_s=task.timeout_s,
        heartbeat_s=task.heartbeat_s,
        deadline_ms=deadline,
        queue=task.queue,
        priority=state.priority,
        traceparent=state.traceparent,
    )


def is_current(state: Execution, dispatch: Dispatch) -> bool:
    """An order made earlier is still wanted: its attempt is under way."""
    work = state.find(dispatch.task, dispatch.item)
    return work is not None and work.status == "running" and work.token == dispatch.token


def _attempt_timers(task: str, item: int | None, attempt: int, at: int, node: Node) -> Sequence[Effect]:
    made: list[Effect] = []
    if node.timeout_ms is not None:
        made.append(SetTimer(timer_name("timeout", task, item, attempt), at + node.timeout_ms))
    if node.heartbeat_ms is not None and not node.is_control:
        made.append(SetTimer(timer_name("heartbeat", task, item, attempt), at + node.heartbeat_ms))
    return made


def _settled(task: str, item: int | None, attempt: int, node: Node) -> Sequence[Effect]:
    """The timers of an attempt that is over."""
    made: list[Effect] = []
    if attempt > 1:  # a resume may have begun it before its timer fell due, and it may have ended at once
        made.append(ClearTimer(timer_name("retry", task, item, attempt - 1)))
    if node.timeout_ms is not None:
        made.append(ClearTimer(timer_name("timeout", task, item, attempt)))
    if node.heartbeat_ms is not None and not node.is_control:
        made.append(ClearTimer(timer_name("heartbeat", task, item, attempt)))
    if node.task.type == APPROVAL:
        made.append(ClearTimer(timer_name("approval", task, item, attempt)))
    elif node.task.type == WAIT:
        made.append(ClearTimer(timer_name("wait", task, item, attempt)))
    return made


def _failed(state: Execution, event: TaskFailed, node: Node) -> Iterator[Effect]:
    task, item, attempt = event.task, event.item, event.attempt
    work = state.find(task, item)
    if not node.is_control and event.error.type in TIMEOUTS:
        yield CancelWork(task, item)
    if work is not None and work.child is not None and event.error.type in TIMEOUTS:
        yield CancelChild(work.child.id)
    yield from _settled(task, item, attempt, node)
    if event.retry_at is not None:
        yield SetTimer(timer_name("retry", task, item, attempt), event.retry_at)


def _begun(state: Execution, event: WaitStarted | ApprovalRequested | ChildStarted, node: Node) -> Iterator[Effect]:
    """Nothing for what has succeeded in the same breath."""
    task, item = event.task, event.item
    work = state.find(task, item)
    if work is None or work.token != event.seq or work.status != "running":
        return
    if work.attempt > 1:
        yield ClearTimer(timer_name("retry", task, item, work.attempt - 1))
    yield from _attempt_timers(task, item, work.attempt, event.at, node)
    if work.child is not None:
        yield _start(state, Piece(task, item, work), work.child)
    elif work.due is not None:
        yield SetTimer(timer_name("approval" if work.signal else "wait", task, item, work.attempt), work.due)


def _start(state: Execution, piece: Piece, child: Child) -> StartChild:
    parent = Parent(execution_id=state.execution_id, task=piece.task, item=piece.item, attempt=piece.work.attempt)
    return StartChild(child.id, child.workflow, child.version, child.input, parent)


def _in_hand(state: Execution, piece: Piece, graph: Graph) -> Iterator[Effect]:
    task, item, work = piece
    node = graph.nodes[task]
    if work.status == "backoff":
        if work.due is not None:
            yield SetTimer(timer_name("retry", task, item, work.attempt), work.due)
        return
    if work.child is not None:
        yield _start(state, piece, work.child)
    elif work.due is not None:
        yield SetTimer(timer_name("approval" if work.signal else "wait", task, item, work.attempt), work.due)
    elif not node.is_control:
        yield Dispatch(task, item, work.attempt, work.token)
    yield from _attempt_timers(task, item, work.attempt, work.at, node)


def _end(state: Execution, event: ExecutionEnded, graph: Graph, first: int) -> Iterator[Effect]:
    if event.status != "succeeded":
        # What compensates has called back everything else before.
        only = graph.compensation if state.compensates is not None else None
        yield from _stopped(state, graph, first, only)
    elif graph.timeout_ms is not None:
        yield ClearTimer(execution_timer(state.run))
    yield Ended(event.status, event.result, event.error, event.task, event.reason, state.parent, state.notify)


def _stopped(state: Execution, graph: Graph, first: int, only: Node | None = None) -> Iterator[Effect]:
    """What was under way when the execution ended or began to compensate is called back.

    What began within these events, from seq `first` on, was never handed out.
    """
    if graph.timeout_ms is not None:
        yield ClearTimer(execution_timer(state.run))
    stopped = state.pieces(("stopped",))
    pieces = [
        piece for piece in stopped if piece.work.token < first and (only is None or graph.nodes[piece.task] is only)
    ]
    if any(not graph.nodes[piece.task].is_control for piece in pieces):
        yield CancelWork(None, None)
    for task, item, work in pieces:
        if work.error is not None:  # between two attempts
            yield ClearTimer(timer_name("retry", task, item, work.attempt))
            continue
        if work.child is not None:
            yield CancelChild(work.child.id)
        yield from _settled(task, item, work.attempt, graph.nodes[task])
