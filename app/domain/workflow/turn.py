"""One decision on its way: tasks begin, end, fail and are passed over, and each step is an event."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from app.domain.workflow.commands import TaskError
from app.domain.workflow.context import names_for
from app.domain.workflow.control import approval_terms, child_terms, wait_until
from app.domain.workflow.definition import APPROVAL, WAIT
from app.domain.workflow.events import (
    ApprovalRequested,
    ChildStarted,
    CompensationStarted,
    Event,
    ExecutionEnded,
    MapCompleted,
    MapExpanded,
    Status,
    TaskFailed,
    TaskScheduled,
    TaskSkipped,
    TaskSucceeded,
    WaitStarted,
)
from app.domain.workflow.evolve import evolve
from app.domain.workflow.expressions import ExpressionError, Expressions
from app.domain.workflow.graph import Graph, Node
from app.domain.workflow.retry import retry_at_ms
from app.domain.workflow.state import PENDING, Execution, Work
from app.domain.workflow.weight import weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one execution may be at most. Sizes are bytes of JSON; `signals` of one name may wait unanswered."""

    result_bytes: int = 524_288
    input_bytes: int = 524_288
    map_items: int = 10_000
    signals: int = 1_000
    id_length: int = 200


PAYLOAD: Final = "$payload"  # a result that is a reference to a file (claim check)
LIMITS: Final = Limits()
Placer = Callable[[str, str, str | None, Any], str]
"""The id of a sub-workflow's execution, from (id without placement, workflow, version, input)."""


def as_it_is(child_id: str, _workflow: str, _version: str | None, _input: Any) -> str:
    """The id without placement."""
    return child_id


class Turn:
    """One decision: the events so far, and the state after them."""

    __slots__ = ("events", "expressions", "graph", "limits", "now", "place", "state")

    def __init__(
        self,
        state: Execution,
        graph: Graph,
        now: int,
        expressions: Expressions,
        limits: Limits,
        place: Placer,
    ) -> None:
        self.state = state
        self.graph = graph
        self.now = now
        self.expressions = expressions
        self.limits = limits
        self.place = place
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        """One more event."""
        self.events.append(event)
        evolve(self.state, event)

    def go_through(self) -> None:
        """Look at everything: maps under way, then tasks that may begin."""
        state = self.state
        for name, work in list(state.tasks.items()):
            if work.items is not None and work.status == "running" and self.fill(self.graph.nodes[name]):
                self.finished(self.graph.nodes[name])
            if state.is_over:
                return
        if state.compensates is None:
            self.settle(self.graph.order)

    def go_on(self, node: Node, item: int | None) -> None:
        """What follows when a task, or an item of its map, has succeeded."""
        if item is None or self.fill(node):
            self.finished(node)

    def finished(self, node: Node) -> None:
        """What follows when a whole task has succeeded or was skipped."""
        if self.state.compensates is None:
            self.settle(node.dependents)
        elif node is self.graph.compensation:
            self.end_compensated("")

    def settle(self, names: Iterable[str]) -> None:
        """Begin what may begin of `names`, go on from what finishes at once, and end when all has finished."""
        state = self.state
        if not state.paused:
            waiting = list(names)
            for name in waiting:  # grows while it is read
                if self.is_ready(name) and self.begin(self.graph.nodes[name]):
                    waiting.extend(self.graph.nodes[name].dependents)
                if state.is_over or state.compensates is not None:
                    return
        if state.finished == self.graph.size:
            self.succeed_whole()

    def is_ready(self, name: str) -> bool:
        """Nothing was begun of it, and all that it needs has finished."""
        tasks = self.state.tasks
        work = tasks.get(name)
        if work is not None and work.status != "pending":
            return False
        for need in self.graph.nodes[name].needs:
            work = tasks.get(need)
            if work is None or work.status not in {"succeeded", "skipped"}:
                return False
        return True

    def begin(self, node: Node) -> bool:
        """Begin a task; True when it has finished at once."""
        needs = node.needs
        tasks = self.state.tasks
        if needs and tasks[needs[0]].status == "skipped" and all(tasks[need].status == "skipped" for need in needs):
            return self.skip(node, "every task that it needs was skipped")
        if node.is_plain:
            return self.begin_work(node, None)
        task = node.task
        if task.when is not None:
            try:
                value = self.expressions.evaluate(task.when, self.names(node, None))
            except ExpressionError as error:
                return self.refuse(node, None, "Expression", f"`when`: {error}")
            if value is False:
                return self.skip(node, f"`{task.when}` is false")
            if value is not True:
                return self.refuse(node, None, "Expression", f"`when` is true or false, not {type(value).__name__}")
        return self.begin_work(node, None) if task.map is None else self.expand(node)

    def skip(self, node: Node, reason: str) -> bool:
        """The task is passed over."""
        self.emit(TaskSkipped(seq=self.state.seq, at=self.now, task=node.task.name, reason=reason))
        return True

    def expand(self, node: Node) -> bool:
        """Fan out over a list; True when it was empty or every item finished at once."""
        fan = node.task.map
        assert fan is not None, "only a map expands"
        try:
            values = self.expressions.evaluate(fan.over, self.names(node, None))
        except ExpressionError as error:
            return self.refuse(node, None, "Expression", f"`map.over`: {error}")
        if not isinstance(values, list | tuple):
            return self.refuse(node, None, "MapOver", f"`map.over` gives a list, not {type(values).__name__}")
        if len(values) > self.limits.map_items:
            return self.refuse(
                node, None, "MapTooLarge", f"a map has at most {self.limits.map_items} items, not {len(values)}"
            )
        if weight(values, self.limits.result_bytes) > self.limits.result_bytes:
            return self.refuse(
                node,
                None,
                "PayloadTooLarge",
                f"the items of a map are at most {self.limits.result_bytes} bytes of JSON",
            )
        self.emit(MapExpanded(seq=self.state.seq, at=self.now, task=node.task.name, items=tuple(values)))
        return self.fill(node)

    def fill(self, node: Node) -> bool:
        """Begin as many items of a map as may run at once; True when the map has completed."""
        name = node.task.name
        state = self.state
        fan = node.task.map
        assert fan is not None, "only a map has items"
        while (work := state.tasks[name]).status == "running" and (items := work.items) is not None:
            if items.done == len(items.values):
                return self.collect(node)
            if state.paused or items.open >= max(1, fan.concurrency) or (item := items.pending()) is None:
                return False
            self.begin_work(node, item)
        return False

    def collect(self, node: Node) -> bool:
        """Every item has succeeded: their results become the task's, unless they are too large."""
        items = self.state.tasks[node.task.name].items
        assert items is not None, "a map is expanded before it is complete"
        limit = self.limits.result_bytes
        if weight([work.result for work in items.each()], limit) > limit:
            return self.refuse(
                node, None, "PayloadTooLarge", f"the results of a map are at most {limit} bytes of JSON together"
            )
        self.emit(MapCompleted(seq=self.state.seq, at=self.now, task=node.task.name))
        return True

    def begin_work(self, node: Node, item: int | None) -> bool:
        """Begin an attempt of a task or an item; True when it has succeeded at once."""
        name = node.task.name
        work = self.state.find(name, item) or PENDING
        if not node.is_control:
            self.emit(TaskScheduled(seq=self.state.seq, at=self.now, task=name, item=item, attempt=work.attempt + 1))
            return False
        try:
            if node.task.type == WAIT:
                return self.begin_wait(node, item)
            if node.task.type == APPROVAL:
                return self.begin_approval(node, item)
            return self.begin_child(node, item, work.attempt + 1)
        except ExpressionError as error:
            return self.refuse(node, item, "Expression", str(error))

    def begin_wait(self, node: Node, item: int | None) -> bool:
        """Wait, unless the time has come already."""
        name = node.task.name
        until = wait_until(node.task.params, self.names(node, item), self.expressions, self.now)
        self.emit(WaitStarted(seq=self.state.seq, at=self.now, task=name, item=item, until=until))
        if until > self.now:
            return False
        self.succeeded(name, item, None)
        return True

    def begin_approval(self, node: Node, item: int | None) -> bool:
        """Ask for a signal, unless one waits already."""
        name = node.task.name
        signal, patience = approval_terms(node.task.params, self.names(node, item), self.expressions, name)
        until = None if patience is None else self.now + patience
        self.emit(ApprovalRequested(seq=self.state.seq, at=self.now, task=name, item=item, name=signal, until=until))
        early = self.state.inbox.get(signal)
        if not early:
            return False
        self.succeeded(name, item, early[0])
        return True

    def begin_child(self, node: Node, item: int | None, attempt: int) -> bool:
        """Ask for a sub-workflow to be started."""
        name = node.task.name
        terms = child_terms(node.task.params, self.names(node, item), self.expressions)
        limit = self.limits.input_bytes
        if weight(terms.input, limit) > limit:
            return self.refuse(
                node, item, "PayloadTooLarge", f"the input of a workflow is at most {limit} bytes of JSON"
            )
        child_id = f"{self.state.execution_id}.{name}"
        if item is not None:
            child_id += f".{item}"
        if attempt > 1:
            child_id += f".{attempt}"
        child_id = self.place(child_id, terms.workflow, terms.version, terms.input)
        if len(child_id) > self.limits.id_length:
            return self.refuse(
                node,
                item,
                "NestedTooDeep",
                f"an execution id has at most {self.limits.id_length} characters: {child_id}",
            )
        self.emit(
            ChildStarted(
                seq=self.state.seq,
                at=self.now,
                task=name,
                item=item,
                attempt=attempt,
                child_id=child_id,
                workflow=terms.workflow,
                input=terms.input,
                version=terms.version,
            )
        )
        return False

    # ---- ends

    def succeed(self, node: Node, item: int | None, result: Any) -> None:
        """What the engine carries out itself has succeeded; go on from there."""
        self.succeeded(node.task.name, item, result)
        self.go_on(node, item)

    def succeeded(self, task: str, item: int | None, result: Any) -> None:
        """Only the event."""
        work = self.state.find(task, item)
        assert work is not None, "what succeeds was begun"
        self.emit(
            TaskSucceeded(
                seq=self.state.seq,
                at=self.now,
                task=task,
                item=item,
                attempt=work.attempt,
                result=result,
                duration_ms=float(self.now - work.at),
            )
        )

    def fail(
        self, node: Node, item: int | None, work: Work, error: TaskError, duration_ms: float = 0.0, worker: str = ""
    ) -> None:
        """An attempt failed: it is tried again, or that was the last and breaks the execution off."""
        task = node.task
        seed = f"{self.state.execution_id}/{task.name}/{item}/{work.attempt}"
        retry_at = retry_at_ms(task.retry, error, work.attempt - work.base, self.now, seed)
        self.emit(
            TaskFailed(
                seq=self.state.seq,
                at=self.now,
                task=task.name,
                item=item,
                attempt=work.attempt,
                error=error,
                retry_at=retry_at,
                duration_ms=duration_ms,
                worker=worker,
            )
        )
        if retry_at is None:
            self.break_off("failed", error, task.name)

    def refuse(self, node: Node, item: int | None, kind: str, message: str) -> bool:
        """Work that cannot even begin fails for good; never True, for it has not succeeded."""
        task = node.task.name
        work = self.state.find(task, item) or PENDING
        error = TaskError(type=kind, message=message, retryable=False)
        self.emit(
            TaskFailed(
                seq=self.state.seq,
                at=self.now,
                task=task,
                item=item,
                attempt=work.used + 1,
                error=error,
                retry_at=None,
            )
        )
        self.break_off("failed", error, task)
        return False

    def fall_due(self, node: Node, item: int | None) -> None:
        """The time has come for another attempt, for the end of a wait, or for an approval to give up."""
        work = self.state.find(node.task.name, item)
        if work is None or work.due is None:
            return
        if work.status == "backoff":
            if self.begin_work(node, item):
                self.go_on(node, item)
        elif work.status == "running" and work.signal is not None:
            error = TaskError(
                type="Timeout", message=f"no signal {work.signal!r} came within {_s(work.due - work.at)} s"
            )
            self.fail(node, item, work, error)
        elif work.status == "running":
            self.succeed(node, item, None)

    def break_off(self, status: Status, error: TaskError, task: str | None) -> None:
        """The execution has failed: compensate if the definition says so (after a pause only), and end."""
        state = self.state
        compensation = self.graph.compensation
        if state.compensates is not None:
            self.end_compensated(f"on_failure failed too: {error.message}")
        elif compensation is None:
            self.end(status, error=error, task=task)
        elif not state.paused:
            self.emit(CompensationStarted(seq=state.seq, at=self.now, status=status, error=error, task=task))
            if self.begin(compensation):
                self.end_compensated("")

    def end_compensated(self, reason: str) -> None:
        """The end that was put off for the compensation."""
        state = self.state
        assert state.compensates is not None, "a compensation was under way"
        self.end(state.compensates, error=state.error, task=state.failed_task, reason=reason)

    def time_out(self) -> None:
        """The whole execution took too long."""
        limit = self.graph.timeout_ms or 0
        error = TaskError(type="Timeout", message=f"the execution took longer than {_s(limit)} s", retryable=False)
        self.break_off("timed_out", error, None)

    def succeed_whole(self) -> None:
        """Every task has finished. The result is that of the last task, of several last ones an object by name."""
        tasks = self.state.tasks
        leaves = self.graph.leaves
        if len(leaves) == 1:
            self.end("succeeded", result=tasks[leaves[0]].result)
            return
        result = {name: tasks[name].result for name in leaves}
        limit = self.limits.result_bytes
        if weight(result, limit) <= limit:
            self.end("succeeded", result=result)
        else:
            reason = f"the last tasks' results are over {limit} bytes together and are to be read one by one"
            self.end("succeeded", reason=reason)

    def end(
        self,
        status: Status,
        *,
        result: Any = None,
        error: TaskError | None = None,
        task: str | None = None,
        reason: str = "",
        command_id: str = "",
    ) -> None:
        """The last event of a run."""
        self.emit(
            ExecutionEnded(
                seq=self.state.seq,
                at=self.now,
                status=status,
                result=result,
                error=error,
                task=task,
                reason=reason,
                command_id=command_id,
            )
        )

    def names(self, node: Node, item: int | None) -> dict[str, Any]:
        """What expressions of a task may read. Raises `ExpressionError` for a result that is too large to be here."""
        for name in node.asks:
            result = self.state.tasks.get(name, PENDING).result
            if type(result) is dict and PAYLOAD in result:
                raise ExpressionError(f"the result of {name!r} is in a file, for its size, and only tasks can read it")
        work = self.state.find(node.task.name, item) or PENDING
        return names_for(self.state, self.graph, node, item, work.attempt + 1)


def _s(ms: int) -> str:
    return f"{ms / 1000:g}"
