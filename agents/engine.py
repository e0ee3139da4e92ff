"""The engine of one partition: commands, reports and timers in; events, rows and what must be done outside out.

The order, which is the guarantee:
(1) everything that waits is decided together: what executors reported, records of `workflow.commands`, timers due;
(2) attempts that need not wait begin (`agents.engine_turns` says which), and what they report at once is decided too;
(3) each execution that changed is written once, and `agents.stage` makes the batch durable;
(4) only then, in `settled`, all other attempts begin and are called back; commands for other executions are outputs
    of the batch, so that they are sent with it;
(5) a new owner reads the headers of live executions, fills the limiter from them, and orders what is in hand anew.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from typing import Final

from agents.engine_again import Again
from agents.engine_aside import Broken, put_aside
from agents.engine_batch import Batch
from agents.engine_debounce import judge, mark_key
from agents.engine_entities import EntityCommand, is_entity
from agents.engine_gate import BEGINS, Gate
from agents.engine_intake import Taken, Unreadable, is_start, read
from agents.engine_keeper import EntityKeeper
from agents.engine_outside import Outside
from agents.engine_pace import AT_ONCE, a_few
from agents.engine_spans import EngineSpans
from agents.engine_store import Executions, Live
from agents.engine_sweep import Sweep
from agents.engine_terms import Node, Wanted
from agents.engine_turns import Turns, Undecided, cannot_retry
from agents.engine_watch import Watch
from app import metrics
from app.domain.workflow.commands import (
    Cancel,
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
from app.domain.workflow.effects import Dispatch, Ended, heard, is_current, order_for, outstanding
from app.domain.workflow.limiter import Policy, policy_of
from app.domain.workflow.orders import TaskOrder
from app.domain.workflow.schedule import CLOCK_BACK_MS
from app.domain.workflow.timers import timer_name
from app.ports import InRecord
from tables.executions import Header
from tables.partition import Changes, TablePartition
from tables.timers import Timers

log = logging.getLogger(__name__)

# Past the backlog of `workflow.local_backlog`: so few starts, so often.
SLOW_COMMANDS: Final = 2
SLOW_S: Final = 0.05
PASSIVATE_S: Final = 1.0
ASKED_BY_PEOPLE = Cancel | Pause | Resume | Signal | RetryExecution


class Engine:
    """Implements `agents.stage.LiveLogic` and `agents.engine_terms.Owner`."""

    def __init__(self, tables: TablePartition, node: Node) -> None:
        self.partition = tables.partition
        self.closed = False
        self._tables = tables
        self._node = node
        terms = node.terms()
        now_ms = node.clock.now_ms()
        self._store = Executions(tables, node.graphs)
        self._timers = Timers(tables.range, terms.timer_lookahead_ms, terms.timers_in_memory)
        self._watch = Watch()
        self._gate = Gate(self._row)
        self._outside = Outside(node, self.partition)
        self._turns = Turns(node, self._store, self._timers, self._gate, self._outside)
        self._keeper = EntityKeeper(node, tables, self._row, self._turns, self._outside)
        self._sweep = Sweep(tables, now_ms, self._store.found_broken)
        self._spans = None if node.tracing is None else EngineSpans(node.tracing, self._store, node.graphs)
        self._inbox: deque[Report | Heartbeat] = deque()
        self._taken: list[Taken] = []
        self._slow_until_s = 0.0
        self._passivate_s = node.clock.monotonic_s() + PASSIVATE_S
        self._gauge = metrics.WORKFLOW_ACTIVE.labels(str(self.partition))
        self._early_s = node.clock.monotonic_s() + terms.early_after_s
        self._again = Again(tables)
        self._is_new = True
        self._in_hand: deque[tuple[str, int]] = deque()
        self._lost: deque[str] = deque()
        self._recover(now_ms)

    # ---- agents.stage.LiveLogic ----

    def intake(self, records: Iterator[InRecord]) -> int:
        """Commands to take now: what is begun goes before what is new.

        A transaction full of reports takes no command. A node on which more attempts wait for a slot than is good
        takes no start, and what waits behind one: else the live executions outgrow the memory, and each report reads
        one from disk. Few are taken all the same, so that a cancel behind them still comes.
        """
        terms = self._node.terms()
        room = terms.transaction_commands - len(self._inbox)
        if room > 0 and not self._is_crowded:
            return room
        if self._node.clock.monotonic_s() >= self._slow_until_s:
            return SLOW_COMMANDS
        return sum(1 for _ in takewhile(lambda record: not is_start(record), islice(records, max(0, room))))

    @property
    def _is_crowded(self) -> bool:
        return self._node.tasks.backlog > self._node.terms().local_backlog

    def prepare(self, records: Sequence[InRecord]) -> Awaitable[None] | None:
        """Read the records; a definition that is not known here may be on its way."""
        self._taken = read(records, self._node.terms().limits, self._node.partitions)
        for taken in self._taken:
            said = taken.said
            if isinstance(said, Start) and self._node.graphs.get(said.workflow, said.version) is None:
                return self._node.definitions.caught_up()
        return None

    def take(self, records: Sequence[InRecord], now_ms: int, *, behind: bool) -> Changes:  # noqa: ARG002 - see `prepare`
        """Decide what executors reported, then the records that were prepared, then timers."""
        taken, self._taken = self._taken, []
        self._begin(now_ms)
        for each in taken:
            self._obey(each)
        if any(isinstance(each.said, Start) for each in taken):
            self._slow_until_s = self._node.clock.monotonic_s() + SLOW_S
        return self._decide_due(now_ms)

    def tick(self, now_ms: int) -> Changes | None:
        """Decide what executors reported, and timers."""
        self._begin(now_ms)
        if now_ms >= self._sweep.next_ms:
            terms = self._node.terms()
            self._sweep.step(self._turns.batch, terms.retention_ms, terms.sweep_executions, now_ms)
        now_s = self._node.clock.monotonic_s()
        if now_s >= self._passivate_s:
            self._passivate_s = now_s + PASSIVATE_S
            self._store.passivate(now_s - self._node.terms().passivate_after_s)
        batch = self._decide_due(now_ms)
        if not batch.is_empty or self._store.is_changed:
            return batch
        self._store.trim(self._node.terms())
        self._gauge.set(self._turns.active)
        return None

    def tick_in_s(self) -> float:
        """0 when something waits, else until the next timer."""
        if self._inbox or self._in_hand or self._lost or self._is_new or self._store.has_broken:
            return 0.0
        clock = self._node.clock
        wall_ms = min(self._timers.next_ms(), self._sweep.next_ms, self._gate.next_ms())
        now_s = clock.monotonic_s()
        steady_s = min(self._watch.next_s(), self._passivate_s)
        if now_s < self._slow_until_s and self._is_crowded:
            steady_s = min(steady_s, self._slow_until_s)
        return min((wall_ms - clock.now_ms()) / 1000, steady_s - now_s)

    def early(self, changes: Changes) -> bool:
        """(2), see `agents.engine_turns`: begin the attempts that need not wait, unless this owner may be none."""
        assert isinstance(changes, Batch), "every change of an engine is a batch"
        if not changes.early or not self._tables.is_owned or self._node.clock.monotonic_s() < self._early_s:
            return False
        wanted, changes.early = changes.early, []
        for each in wanted:
            self._node.tasks.offer(self, each)
        return True

    def add_heard(self, changes: Changes, now_ms: int) -> None:
        """(1), once more."""
        assert changes is self._turns.batch, "one batch at a time"
        self._hear_some()
        self._fire(now_ms)
        self._turns.follow_up()

    def conclude(self, changes: Changes, now_ms: int) -> None:
        """(3)"""
        assert isinstance(changes, Batch), "every change of an engine is a batch"
        self._store.conclude(changes, self._node.terms(), now_ms)
        changes.export()
        self._gauge.set(self._turns.active)

    def settled(self, changes: Changes, now_ms: int) -> None:  # noqa: ARG002 - the seam's
        """(4)"""
        assert isinstance(changes, Batch), "every change of an engine is a batch"
        if self.closed:
            return
        for cancelled in changes.cancels:
            self._node.tasks.cancel(*cancelled)
        for queue, recall in changes.recalls:
            self._node.tasks.recall(queue, recall)
        for wanted in (*changes.early, *changes.dispatches):
            self._node.tasks.offer(self, wanted)
        if self._spans is not None:
            self._spans.settled(changes.outputs)

    def close(self) -> None:
        """What runs here is ended and not reported: the next owner orders it."""
        self.closed = True
        self._node.tasks.drop(self)
        for line in (self._inbox, self._in_hand, self._lost):
            line.clear()
        self._store.clear()
        self._gauge.set(0)

    # ---- agents.engine_terms.Owner ----

    def order(self, wanted: Wanted) -> TaskOrder | None:
        """The order of an attempt that is still wanted."""
        live = self._store.get(wanted.execution_id)
        if live is None or live.graph is None or live.state is None or not is_current(live.state, wanted.dispatch):
            return None
        try:
            order = order_for(live.state, live.graph, wanted.dispatch, self._node.clock.now_ms())
        except Exception as error:  # noqa: BLE001 - one execution must not stop a partition for ever
            self._cannot_order(live, wanted.dispatch, error)
            return None
        if wanted.apart:
            order = replace(order, isolated=True)
        return order if self._spans is None else self._spans.marked(order)

    def began(self, order: TaskOrder) -> None:
        """Watch it."""
        if order.timeout_s is not None or order.heartbeat_s is not None:
            place = (order.execution_id, order.task, order.item)
            now_s = self._node.clock.monotonic_s()
            self._watch.begin(place, order.attempt, order.token, order.timeout_s, order.heartbeat_s, now_s)

    def _cannot_order(self, live: Live, dispatch: Dispatch, error: Exception) -> None:
        """The core met a bug: the attempt fails with that."""
        self._turns.say_broken(live, error)
        failure = TaskError(type="Engine", message=f"the order could not be made: {error}", retryable=False)
        task, item, attempt, token = dispatch
        self.hear(Report(execution_id=live.id, task=task, item=item, attempt=attempt, token=token, error=failure))

    def hear(self, report: Report | Heartbeat) -> None:
        """From an executor of this process."""
        self._inbox.append(report)
        self._node.wake(self.partition)

    @property
    def active(self) -> int:
        """Executions that have not ended."""
        return self._turns.active

    @property
    def store(self) -> Executions:
        """The executions in memory."""
        return self._store

    @property
    def timers(self) -> Timers:
        """The timers in memory."""
        return self._timers

    @property
    def gate(self) -> Gate:
        """The limits of this partition."""
        return self._gate

    @property
    def waiting(self) -> int:
        """Reports that are not decided."""
        return len(self._inbox)

    # ---- a batch ----

    def _begin(self, now_ms: int) -> None:
        self._is_new = False
        self._turns.batch = Batch()
        if self._in_hand:
            self._order_some(now_ms)
        was_ms, self._turns.now_ms = self._turns.now_ms, now_ms
        for execution_id in a_few(self._lost, self._node.clock):
            self._give_up(execution_id)
        if now_ms < was_ms - CLOCK_BACK_MS:
            self._keeper.look_again()
        self._timers.refill(now_ms)
        self._hear_some()

    def _hear_some(self) -> None:
        for _ in range(min(len(self._inbox), self._node.terms().transaction_commands)):
            self._hear(self._inbox.popleft())

    def _decide_due(self, now_ms: int) -> Batch:
        """(1), its end."""
        self._fire(now_ms)
        for broken in self._store.take_broken():
            self._put_aside(broken, now_ms)
        self._turns.follow_up()
        return self._turns.batch

    def _put_aside(self, broken: Broken, now_ms: int) -> None:
        self._gate.release(broken.execution_id)
        if put_aside(broken, self._turns.batch, self._tables, self._outside, now_ms):
            self._turns.active -= 1

    def _fire(self, now_ms: int) -> None:
        due = deque(self._timers.due(now_ms, AT_ONCE))
        for timer in a_few(due, self._node.clock):
            metrics.WORKFLOW_TIMER_LAG.observe(max(0, now_ms - timer.due_ms) / 1000)
            self._turns.batch.unset(timer.key)
            if is_entity(timer.owner):
                self._keeper.timer(timer.owner, timer.name, timer.due_ms)
                continue
            live = self._store.get(timer.owner)
            if live is not None:
                live.timers.pop(timer.name, None)
                self._turns.decide(live, TimerFired(execution_id=live.id, name=timer.name, due_ms=timer.due_ms))
        for timer in due:
            if self._row(timer.key) is not None:
                self._timers.set(timer.key)
        for late in self._watch.overdue(self._node.clock.monotonic_s()):
            live = self._store.get(late.execution_id)
            if live is not None:
                name = timer_name("timeout" if late.kind == "timeout" else "heartbeat", *late[1:4])
                self._turns.decide(live, TimerFired(execution_id=live.id, name=name, due_ms=now_ms))

    # ---- commands ----

    def _obey(self, taken: Taken) -> None:
        said = taken.said
        if isinstance(said, Unreadable):
            self._refuse(taken, said.reason, said.detail)
        elif isinstance(said, EntityCommand):
            refused = self._keeper.take(said)
            if refused is not None:
                self._refuse(taken, "refused", refused)
        elif isinstance(said, Start):
            self._start(said, taken.oversize)
        elif isinstance(said, Report | Heartbeat):
            self._hear(said)
        else:
            self._tell(taken, said)

    def _start(self, start: Start, oversize: str | None) -> None:
        """Begin an execution, unless it exists."""
        if self._store.get(start.execution_id) is not None:
            return
        if self._store.ended(start.execution_id) is not None:
            self._repeat(start)
            return
        if self._store.is_broken(start.execution_id):
            return
        if self._is_held_back(start):
            return
        if self._spans is not None:
            start = self._spans.rooted(start)
        graph = self._node.graphs.get(start.workflow, start.version)
        if oversize is not None:
            self._turns.stillborn(start, TaskError(type="PayloadTooLarge", message=oversize, retryable=False))
        elif graph is None:
            of_version = f" in version {start.version!r}" if start.version else ""
            message = f"There is no workflow {start.workflow!r}{of_version}."
            self._turns.stillborn(start, TaskError(type="UnknownWorkflow", message=message, retryable=False))
        else:
            self._turns.start(start, graph)

    def _repeat(self, start: Start) -> None:
        """The start of one that has ended: whoever waits for its end may not have heard of it."""
        if start.parent is None and start.notify is None:
            return
        live = self._store.read_ended(start.execution_id)
        state = live.state if live is not None else None
        if state is None:
            return
        ended = Ended(
            state.status, state.result, state.error, state.failed_task, state.reason, start.parent, start.notify
        )
        self._turns.batch.outputs += self._outside.answers(state, ended, self._turns.now_ms)

    def _is_held_back(self, start: Start) -> bool:
        debounce = start.debounce
        if debounce is None:
            return False
        key = mark_key(start.workflow, debounce.key)
        held_back, row = judge(self._row(key), start)
        if row is not None:
            self._turns.batch.put(key, row)
        return held_back

    def _row(self, key: bytes) -> bytes | None:
        """A row as it will be: what the batch under way has decided goes before what is written."""
        rows = self._turns.batch.rows
        return rows[key] if key in rows else self._tables.get(key)

    def _tell(self, taken: Taken, command: Command) -> None:
        """A command for an execution that should exist."""
        live = self._store.get(command.execution_id)
        if live is None and isinstance(command, RetryExecution):
            live = self._store.read_ended(command.execution_id)
        if live is not None and isinstance(command, RetryExecution) and (why := cannot_retry(live)) is not None:
            self._refuse(taken, "cannot_retry", why)
        elif live is not None:
            try:
                self._turns.decide(live, command)
            except Undecided as error:
                self._refuse(taken, "undecided", str(error))
        elif isinstance(command, ASKED_BY_PEOPLE) and self._store.is_broken(command.execution_id):
            self._refuse(taken, "unreadable", f"The rows of {command.execution_id!r} cannot be read.")
        elif isinstance(command, ASKED_BY_PEOPLE) and self._store.ended(command.execution_id) is None:
            self._refuse(taken, "unknown_execution", f"There is no execution {command.execution_id!r}.")

    def _hear(self, report: Report | Heartbeat) -> None:
        """What an executor says of an attempt, from here or from the topic."""
        live = self._store.get(report.execution_id)
        if live is None or live.state is None or live.graph is None:
            return
        place = (report.execution_id, report.task, report.item)
        if isinstance(report, Report):
            self._watch.end(place, report.token)
            self._turns.decide(live, report)
        elif heard(live.state, report, live.graph, self._turns.now_ms):
            silence_s = live.graph.nodes[report.task].task.heartbeat_s
            now_s = self._node.clock.monotonic_s()
            self._watch.beat(place, report.attempt, report.token, silence_s, now_s)

    def _refuse(self, taken: Taken, reason: str, detail: str) -> None:
        record = taken.record
        log.warning(
            "command at %s-%d offset %d refused: %s",
            record.topic,
            record.partition,
            record.offset,
            detail,
            extra={"action": "command_refused", "reason": reason},
        )
        self._turns.batch.outputs.append(self._outside.dead_command(record, reason, detail, self._turns.now_ms))

    # ---- takeover ----

    def _recover(self, now_ms: int) -> None:
        """(5), its first half: what a scan of the headers tells."""
        for execution_id, header in self._store.headers():
            self._turns.active += 1
            self._turns.arrive(header.arrival)
            self._restore_place(execution_id, header)
            if header.active:
                self._in_hand.append((execution_id, header.next_seq))
        begins = self._tables.range(BEGINS, bytes((BEGINS[0] + 1,)))
        self._gate.rebuild(begins, self._policy_of, now_ms)
        self._turns.now_ms = now_ms
        log.info(
            "engine of partition %d: %d live executions, %d with work in hand",
            self.partition,
            self._turns.active,
            len(self._in_hand),
            extra={"action": "engine_recovered"},
        )

    def _order_some(self, now_ms: int) -> None:
        """(5), its second half: so many at a time that the loop, and the lease, live on."""
        for execution_id, next_seq in a_few(self._in_hand, self._node.clock):
            live = self._store.get(execution_id)
            if live is not None:
                self._order_anew(live, next_seq, now_ms)
        if not self._in_hand:
            self._again.forget(self._turns.batch)
        self._store.trim(self._node.terms())

    def _restore_place(self, execution_id: str, header: Header) -> None:
        graph = self._node.graphs.get(header.workflow, header.version)
        if graph is not None:
            self._gate.restore(execution_id, graph.workflow, header)
        else:
            self._lost.append(execution_id)

    def _give_up(self, execution_id: str) -> None:
        """Nothing can be decided without a definition: it must not wait for ever in silence."""
        live = self._store.get(execution_id)
        if live is not None and live.graph is None:
            self._turns.give_up(live)

    def _policy_of(self, workflow: str) -> Policy | None:
        graph = self._node.graphs.get(workflow, "")
        return None if graph is None else policy_of(graph.workflow)

    def _order_anew(self, live: Live, next_seq: int, now_ms: int) -> None:
        """Order what was begun before event `next_seq`; what was begun since is ordered by what began it."""
        state, graph, batch = live.state, live.graph, self._turns.batch
        if state is None or graph is None:
            return
        apart = self._again.note(live.id, batch, now_ms)
        for effect in outstanding(state, graph):
            if isinstance(effect, Dispatch) and effect.token < next_seq:
                queue = graph.nodes[effect.task].task.queue
                wanted = Wanted(live.id, state.workflow, state.priority, queue, effect, 0, apart)
                batch.dispatches.append(wanted)
