"""State after an event: the fold that makes an execution from its history."""

from collections.abc import Iterable
from typing import assert_never

from app.domain.workflow.events import (
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
from app.domain.workflow.state import PENDING, Child, Execution, Items, Work


def fold(events: Iterable[Event], state: Execution | None = None) -> Execution | None:
    """The state after `events`; None after none."""
    for event in events:
        state = evolve(state, event)
    return state


def evolve(state: Execution | None, event: Event) -> Execution:
    """The state after one more event. The state given is used up: what is returned may be it, changed."""
    if state is None:
        assert isinstance(event, ExecutionStarted), "a history begins with its start"
        return _started(event)
    state.seq = event.seq + 1
    state.at = event.at
    match event:
        case TaskSucceeded():
            _succeeded(state, event)
        case TaskScheduled():
            _begun(state, event.task, event.item, Work("running", event.attempt, 0, event.seq, event.at))
        case TaskFailed():
            _failed(state, event)
        case ExecutionEnded():
            _ended(state, event)
        case TaskSkipped():
            state.finished += 1
            used = state.tasks.get(event.task, PENDING).attempt
            state.tasks[event.task] = Work("skipped", used, used)
        case MapExpanded():
            used = state.tasks.get(event.task, PENDING).attempt
            state.tasks[event.task] = Work(
                "running", used, used, event.seq, event.at, items=Items.of(event.items, used)
            )
        case MapCompleted():
            _completed(state, event)
        case WaitStarted():
            attempt = _next_attempt(state, event.task, event.item)
            _begun(state, event.task, event.item, Work("running", attempt, 0, event.seq, event.at, event.until))
        case ApprovalRequested():
            attempt = _next_attempt(state, event.task, event.item)
            work = Work("running", attempt, 0, event.seq, event.at, event.until, signal=event.name)
            _begun(state, event.task, event.item, work)
            state.asked.setdefault(event.name, {})[event.task, event.item] = None
        case ChildStarted():
            child = Child(event.child_id, event.workflow, event.version, event.input)
            work = Work("running", event.attempt, 0, event.seq, event.at, child=child)
            _begun(state, event.task, event.item, work)
        case SignalReceived():
            state.applied.add(event.command_id)
            state.inbox[event.name] = (*state.inbox.get(event.name, ()), event.payload)
        case ExecutionAdmitted():
            state.admitted = True
            state.began_at = event.at
            state.status = "paused" if state.paused else "running"
        case ExecutionPaused():
            state.applied.add(event.command_id)
            state.paused = True
            state.status = "paused" if state.admitted else "queued"
        case ExecutionResumed():
            state.applied.add(event.command_id)
            state.paused = False
            state.status = "running" if state.admitted else "queued"
        case ExecutionRetried():
            _retried(state, event)
        case CompensationStarted():
            state.compensates = event.status
            state.error = event.error
            state.failed_task = event.task
            _stop(state)
        case ExecutionStarted():
            raise AssertionError("a history has one start")
        case _:
            assert_never(event)
    return state


def _started(event: ExecutionStarted) -> Execution:
    return Execution(
        execution_id=event.execution_id,
        workflow=event.workflow,
        version=event.version,
        input=event.input,
        key=event.key,
        priority=event.priority,
        asked_at=event.asked_at,
        started_at=event.at,
        trigger=event.trigger,
        parent=event.parent,
        notify=event.notify,
        traceparent=event.traceparent,
        seq=event.seq + 1,
        at=event.at,
        status="queued" if event.queued else "running",
        admitted=not event.queued,
        began_at=None if event.queued else event.at,
    )


def _next_attempt(state: Execution, task: str, item: int | None) -> int:
    work = state.find(task, item)
    return 1 if work is None else work.attempt + 1


def _begun(state: Execution, task: str, item: int | None, begun: Work) -> None:
    """An attempt began; `begun` lacks only its base."""
    if item is None:
        before = state.tasks.get(task)
        state.tasks[task] = begun if before is None or before.base == 0 else begun._replace(base=before.base)
        return
    parent = state.tasks[task]
    items = parent.items
    assert items is not None, "an item belongs to an expanded map"
    before = items.get(item)
    assert before is not None, "an item is one of its map's"
    if before.base:
        begun = begun._replace(base=before.base)
    opened = 1 if before.status == "pending" else 0
    grown = Items(items.values, items.put(item, begun), items.done, items.open + opened, max(items.next, item + 1))
    state.tasks[task] = parent._replace(items=grown)


def _succeeded(state: Execution, event: TaskSucceeded) -> None:
    item = event.item
    if item is None:
        before = state.tasks[event.task]
        state.tasks[event.task] = Work(
            "succeeded", event.attempt, before.base, before.token, before.at, None, event.result
        )
        state.finished += 1
    else:
        parent = state.tasks[event.task]
        items = parent.items
        assert items is not None, "an item belongs to an expanded map"
        found = items.get(item)
        assert found is not None, "an item is one of its map's"
        before = found
        work = Work("succeeded", event.attempt, before.base, before.token, before.at, None, event.result)
        fewer = Items(items.values, items.put(item, work), items.done + 1, items.open - 1, items.next)
        state.tasks[event.task] = parent._replace(items=fewer)
    if before.signal is not None:
        _answered(state, before.signal, event.task, item)


def _answered(state: Execution, name: str, task: str, item: int | None) -> None:
    """An approval has its signal: the oldest of that name is used up."""
    _unask(state, name, task, item)
    rest = state.inbox[name][1:]
    if rest:
        state.inbox[name] = rest
    else:
        del state.inbox[name]


def _unask(state: Execution, name: str, task: str, item: int | None) -> None:
    waiting = state.asked[name]
    del waiting[task, item]
    if not waiting:
        del state.asked[name]


def _failed(state: Execution, event: TaskFailed) -> None:
    item = event.item
    is_last = event.retry_at is None
    before = state.find(event.task, item) or PENDING
    if before.signal is not None and before.status == "running":
        _unask(state, before.signal, event.task, item)
    work = Work(
        "failed" if is_last else "backoff",
        event.attempt,
        before.base,
        before.token,
        before.at,
        event.retry_at,
        None,
        event.error,
        None,
        before.child,
    )
    if item is None:
        state.tasks[event.task] = work
        return
    parent = state.tasks[event.task]
    items = parent.items
    assert items is not None, "an item belongs to an expanded map"
    closed = 1 if is_last and before.status != "pending" else 0
    reached = max(items.next, item + 1)
    changed = Items(items.values, items.put(item, work), items.done, items.open - closed, reached)
    parent = parent._replace(items=changed)
    state.tasks[event.task] = parent._replace(status="failed", error=event.error) if is_last else parent


def _completed(state: Execution, event: MapCompleted) -> None:
    """The items have done their duty; what is kept is their results and the highest attempt."""
    parent = state.tasks[event.task]
    items = parent.items
    assert items is not None, "a map is expanded before it is complete"
    used = parent.used
    results = [work.result for work in items.each()]
    state.tasks[event.task] = Work("succeeded", used, parent.base, parent.token, parent.at, None, results)
    state.finished += 1


def _ended(state: Execution, event: ExecutionEnded) -> None:
    if event.command_id:
        state.applied.add(event.command_id)
    state.status = event.status
    state.ended_at = event.at
    state.result = event.result
    state.error = event.error
    state.failed_task = event.task
    state.reason = event.reason
    state.paused = False
    if event.status != "succeeded":  # after a success nothing is under way
        _stop(state)


def _stop(state: Execution) -> None:
    """What was under way is given up; the work keeps its attempt, token and times."""
    state.asked.clear()
    for task, work in state.tasks.items():
        if work.status not in {"running", "backoff"} and (work.items is None or work.items.open == 0):
            continue
        items = work.items
        if items is not None and items.open:
            chunks = tuple(tuple(_stopped(each) for each in chunk) for chunk in items.chunks)
            items = Items(items.values, chunks, items.done, 0, items.next)
        status = work.status if work.status == "failed" else "stopped"
        state.tasks[task] = work._replace(status=status, items=items)


def _stopped(work: Work) -> Work:
    return work._replace(status="stopped") if work.status in {"running", "backoff"} else work


def _retried(state: Execution, event: ExecutionRetried) -> None:
    state.applied.add(event.command_id)
    state.run += 1
    state.admitted = not event.queued
    state.began_at = None if event.queued else event.at
    state.status = "queued" if event.queued else "running"
    state.paused = False
    state.compensates = state.error = state.failed_task = state.result = state.ended_at = None
    state.reason = ""
    for task in event.tasks:
        work = state.tasks.get(task)
        if work is None:
            continue
        if work.status in {"succeeded", "skipped"}:
            state.finished -= 1
        if task in event.kept and work.items is not None:
            state.tasks[task] = work._replace(status="running", error=None, items=_again(work.items))
        else:
            used = work.used
            state.tasks[task] = Work("pending", used, used)


def _again(items: Items) -> Items:
    """Items that did not succeed are pending anew, with their attempts used up."""
    chunks = tuple(
        tuple(work if work.status == "succeeded" else Work("pending", work.attempt, work.attempt) for work in chunk)
        for chunk in items.chunks
    )
    return Items(items.values, chunks, items.done, 0, 0)
