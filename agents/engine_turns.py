"""Decides one execution after the other for a batch: events from the core, and each effect put where it belongs.

An attempt begins when the decision that orders it is durable. Two kinds begin before, in this process only (decision
0014). Pure transforms: they touch nothing outside. The first attempts of a start that was refused no place by a
limiter and names its version: the start itself is durable, and a crash brings the same decision, attempt and token.

Durable timers are those that nothing else would bring back: retries, waits, approvals, timeouts of executions and
of what the engine does itself. The time of a running attempt is watched in memory (`agents.engine_watch`).
"""

import logging
from collections import deque
from dataclasses import replace
from typing import Final, assert_never

from agents.engine_batch import Batch
from agents.engine_gate import Gate
from agents.engine_outside import Outside
from agents.engine_store import Executions, Live, Unwritable, is_durable
from agents.engine_terms import Node, Wanted, names_of
from app.domain.workflow.commands import Admit, Cancel, Command, RetryExecution, Start, TaskError
from app.domain.workflow.decide import advance
from app.domain.workflow.effects import (
    CancelChild,
    CancelWork,
    ClearTimer,
    Dispatch,
    Effect,
    Ended,
    SetTimer,
    StartChild,
    effects,
)
from app.domain.workflow.events import Event, ExecutionEnded, ExecutionStarted
from app.domain.workflow.evolve import evolve, fold
from app.domain.workflow.graph import Graph
from app.domain.workflow.limiter import Entry, own_limit
from app.domain.workflow.orders import Recall
from app.domain.workflow.state import Execution
from tables.timers import Timers, timer_key

log = logging.getLogger(__name__)
MESSAGE_LENGTH: Final = 1_000
LOST: Final = TaskError(
    type="DefinitionLost", message="the definition of this execution is no longer registered", retryable=False
)


class Undecided(Exception):
    """A bug was met with a command that leaves its execution as it was; the message says which."""


class Turns:
    """The decisions of one partition; `batch` is replaced with each transaction."""

    def __init__(self, node: Node, store: Executions, timers: Timers, gate: Gate, outside: Outside) -> None:
        self.batch = Batch()
        self.now_ms = 0
        self.active = 0
        self._node = node
        self._store = store
        self._timers = timers
        self._gate = gate
        self._outside = outside
        self._arrivals = 0
        self._follow_up: deque[Command] = deque()

    def arrive(self, arrival: int = 0) -> int:
        """The place in line of the next execution; `arrival` is one that was given out before."""
        self._arrivals = max(self._arrivals + 1, arrival)
        return self._arrivals

    # ---- decisions ----

    def start(self, command: Start, graph: Graph) -> None:
        """A new execution."""
        live = self._store.begin(command.execution_id, graph, self.arrive())
        self.active += 1
        own = own_limit(command.trigger)
        entry = Entry(live.id, command.workflow, command.key, command.priority, live.arrival, own=own)
        verdict = self._gate.ask(entry, graph.workflow, self.batch, self.now_ms)
        early = bool(command.version) and command.debounce is None and self._gate.is_free(entry, graph.workflow)
        self._advance(live, graph, command, queued=verdict.queued, skipped=verdict.skipped, early=early)
        for other in verdict.cancel:
            why = f"{command.execution_id} takes its place"
            self._follow_up.append(Cancel(execution_id=other, command_id=f"{command.execution_id}/place", reason=why))
        self.follow_up()

    def stillborn(self, command: Start, error: TaskError) -> None:
        """An execution that cannot be: it is recorded with the cause, so that whoever asked for it finds it."""
        live = self._store.begin(command.execution_id, None, self.arrive())
        self.active += 1
        too_large = error.type == "PayloadTooLarge"
        started = ExecutionStarted(
            seq=0,
            at=self.now_ms,
            workflow=command.workflow,
            version=command.version,
            input=None if too_large else command.input,
            key=command.key,
            priority=command.priority,
            asked_at=command.at_ms,
            trigger=command.trigger,
            parent=command.parent,
            notify=command.notify,
            traceparent=command.traceparent,
            execution_id=command.execution_id,
        )
        try:
            self._end_by_hand(live, evolve(None, started), [started], error)
        except Unwritable as cause:
            # What it came with is left out: nobody but its sender knows that.
            bare = replace(started, input=None, trigger={}, traceparent=None)
            failure = replace(error, type=cause.type, message=_plain(f"{error.message} ({cause})"))
            self._end_by_hand(live, evolve(None, bare), [bare], failure)

    def decide(self, live: Live, command: Command) -> None:
        """One more command for an execution, and what follows from it for others of this partition.

        Raises `Undecided` for the retry of an execution when a bug is met.
        """
        state, graph = live.state, live.graph
        assert state is not None, "only a start has none"
        if graph is None:
            self.give_up(live)
            return
        if isinstance(command, RetryExecution) and state.is_over:
            self._retry(live, graph, command)
        else:
            self._advance(live, graph, command)
        self.follow_up()

    def give_up(self, live: Live) -> None:
        """There is no definition to decide by."""
        if live.state is not None and not live.state.is_over:
            self._end_by_hand(live, live.state, [], LOST)

    def follow_up(self) -> None:
        """Executions that the limiter lets begin now, and those it takes a place from."""
        while True:
            admitted = self._gate.admit(self.batch, self.now_ms)
            self._follow_up.extend(Admit(execution_id=execution_id) for execution_id in admitted)
            if not self._follow_up:
                return
            command = self._follow_up.popleft()
            live = self._store.get(command.execution_id)
            if live is not None and live.graph is not None:
                self._advance(live, live.graph, command)
            else:
                self._gate.release(command.execution_id)

    def _retry(self, live: Live, graph: Graph, command: RetryExecution) -> None:
        """It asks the limiter for a place again; when the retry comes to nothing, the place is given back."""
        state = live.state
        assert state is not None, "what is tried again has ended"
        own = own_limit(state.trigger)
        entry = Entry(live.id, state.workflow, state.key, state.priority, live.arrival, own=own)
        verdict = self._gate.ask(entry, graph.workflow, self.batch, self.now_ms, is_retry=True)
        begun = False
        try:
            begun = self._advance(live, graph, command, queued=verdict.queued)
        finally:
            if begun:
                self.active += 1
            else:
                self._gate.release(live.id)

    def _advance(
        self,
        live: Live,
        graph: Graph,
        command: Command,
        *,
        queued: bool = False,
        skipped: str | None = None,
        early: bool = False,
    ) -> bool:
        """Decide, and put every effect where it belongs; whether anything came of it. Raises `Undecided`."""
        terms = self._node.terms()
        try:
            state, events = advance(
                live.state,
                command,
                graph,
                self.now_ms,
                self._node.expressions,
                queued=queued,
                skipped=skipped,
                limits=terms.limits,
                place=self._outside.place,
            )
            if state is None or not events:
                return False
            encoded = self._store.encode(live, state, events, terms.record_bytes)
        except Exception as error:  # noqa: BLE001 - one execution must not stop a partition for ever
            self._break_off(live, command, error)
            return True
        live.state = state
        self._record(live, graph, state, events, encoded, effects(state, events, graph), early=early)
        return True

    def _record(
        self,
        live: Live,
        graph: Graph | None,
        state: Execution,
        events: list[Event],
        encoded: bytes,
        made: tuple[Effect, ...],
        *,
        early: bool = False,
    ) -> None:
        self._store.touch(live, events, encoded, self._node.clock.monotonic_s())
        if graph is not None:
            self.batch.count(events, graph)
        asked_ms = state.asked_at if isinstance(events[0], ExecutionStarted) else 0
        for effect in made:
            if isinstance(effect, Dispatch):
                assert graph is not None, "nothing begins without a definition"
                node = graph.nodes[effect.task]
                queue = node.task.queue
                wanted = Wanted(live.id, state.workflow, state.priority, queue, effect, asked_ms)
                may_begin = (early or node.is_pure) and self._node.tasks.is_local(queue)
                (self.batch.early if may_begin else self.batch.dispatches).append(wanted)
                asked_ms = 0
            elif isinstance(effect, CancelWork):
                self._call_back(live, state, effect, events[0].seq)
            else:
                self._outward(live, state, effect)

    def _outward(
        self,
        live: Live,
        state: Execution,
        effect: SetTimer | ClearTimer | StartChild | CancelChild | Ended,
    ) -> None:
        if isinstance(effect, Ended):
            self._ended(live, state, effect)
        elif isinstance(effect, SetTimer):
            self._set_timer(live, effect)
        elif isinstance(effect, ClearTimer):
            self._clear_timer(live, effect.name)
        elif isinstance(effect, StartChild):
            self.batch.outputs.append(self._outside.start_child(effect, state, self.now_ms))
        elif isinstance(effect, CancelChild):
            self.batch.outputs.append(self._outside.cancel_child(effect.child_id, self.now_ms))
        else:
            assert_never(effect)

    def _call_back(self, live: Live, state: Execution, effect: CancelWork, first: int) -> None:
        """What was handed out before event `first` is stopped, here and at workers; what begins with it goes on."""
        self.batch.cancels.append((live.id, effect.task, effect.item, first))
        if live.graph is None:
            return
        nodes = live.graph.nodes
        if effect.task is not None:
            queues = {nodes[effect.task].task.queue}
        else:
            stopped = [piece for piece in state.pieces(("stopped",)) if piece.work.token < first]
            queues = {nodes[piece.task].task.queue for piece in stopped if not nodes[piece.task].is_control}
        recall = Recall(execution_id=live.id, recalls_before=first, task=effect.task, item=effect.item)
        self.batch.recalls += [(queue, recall) for queue in sorted(queues)]

    def _ended(self, live: Live, state: Execution, ended: Ended) -> None:
        self.active -= 1
        batch = self.batch
        place = (state.workflow, ended.status)
        batch.ended[place] = batch.ended.get(place, 0) + 1
        batch.durations.append((state.workflow, (state.at - state.started_at) / 1000))
        batch.outputs += self._outside.told(state, ended, self.now_ms)
        self._gate.release(live.id)
        for name in list(live.timers):
            self._clear_timer(live, name)
        if ended.status in {"failed", "timed_out"}:
            cause = ended.error.message if ended.error is not None else ended.reason
            log.warning(
                "execution %s of %s %s at %s: %s",
                live.id,
                state.workflow,
                ended.status,
                ended.task or "its start",
                cause,
                extra={"action": "execution_failed", **names_of(state)},
            )

    # ---- timers ----

    def _set_timer(self, live: Live, effect: SetTimer) -> None:
        name, due_ms = effect
        if not is_durable(name, live.graph) or live.timers.get(name) == due_ms:
            return
        self._clear_timer(live, name)
        live.timers[name] = due_ms
        self.set_timer(timer_key(due_ms, live.id, name))

    def _clear_timer(self, live: Live, name: str) -> None:
        due_ms = live.timers.pop(name, None)
        if due_ms is not None:
            self.clear_timer(timer_key(due_ms, live.id, name))

    def set_timer(self, key: bytes) -> None:
        """A durable timer."""
        self.batch.set_timer(key)
        self._timers.set(key)

    def clear_timer(self, key: bytes) -> None:
        """It is no longer wanted."""
        self.batch.unset(key)
        self._timers.clear(key)

    # ---- what cannot be decided ----

    def _break_off(self, live: Live, command: Command, error: Exception) -> None:
        """The core met a bug, or its events cannot be written: this execution fails with that, the partition goes on.

        The decision leaves nothing behind. Raises `Undecided` when the execution had ended before.
        """
        self.say_broken(live, error)
        self._store.reload(live, live.events)
        if isinstance(error, Unwritable):
            failure = TaskError(type=error.type, message=_plain(str(error)), retryable=False)
        else:
            message = _plain(f"{command.type} could not be decided: {error}")
            failure = TaskError(type="Engine", message=message, retryable=False)
        if live.state is None:
            assert isinstance(command, Start), "only a start has no state"
            self.active -= 1
            self._gate.release(live.id)
            self.stillborn(command, failure)
        elif not live.state.is_over:
            self._end_by_hand(live, live.state, [], failure)
        elif isinstance(command, RetryExecution):
            raise Undecided(failure.message) from error

    def say_broken(self, live: Live, error: Exception) -> None:
        """Log a bug with the names of the execution that met it."""
        names = {"execution_id": live.id} if live.state is None else names_of(live.state)
        log.error(
            "execution %s cannot go on: %r",
            live.id,
            error,
            exc_info=error,
            extra={"action": "execution_broken", **names},
        )

    def _end_by_hand(self, live: Live, state: Execution, events: list[Event], error: TaskError) -> None:
        ended = ExecutionEnded(seq=state.seq, at=max(self.now_ms, state.at), status="failed", error=error)
        events = [*events, ended]
        encoded = self._store.encode(live, state, events, self._node.terms().record_bytes)
        state = live.state = fold([ended], state) or state
        made = Ended("failed", None, error, None, "", state.parent, state.notify)
        self._record(live, None, state, events, encoded, (CancelWork(None, None), made))


def _plain(text: str) -> str:
    """Text that a record can carry, whatever it says."""
    return text[:MESSAGE_LENGTH].encode(errors="replace").decode()


def cannot_retry(live: Live) -> str | None:
    """Why an execution that never could be cannot be tried again either."""
    state = live.state
    if state is None or not state.is_over or state.tasks:
        return None
    if live.graph is None:
        return f"The definition of {state.execution_id!r} is not registered."
    if state.error is not None and state.error.type == "PayloadTooLarge":
        return f"The input of {state.execution_id!r} was refused: start it anew with a smaller one."
    return None
