"""The executions of one partition in memory: states, loaded from their rows and written back at the end of a batch.

A state is changed in place while a batch is decided. That is safe: a batch that does not become durable ends the
process, and whoever owns the partition next reads the rows.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agents.engine_aside import UNREADABLE, Broken
from agents.engine_terms import Graphs, Terms
from app.domain.workflow.effects import SetTimer, outstanding
from app.domain.workflow.events import Event
from app.domain.workflow.evolve import fold
from app.domain.workflow.graph import Graph
from app.domain.workflow.limiter import own_limit
from app.domain.workflow.state import Execution
from app.domain.workflow.timers import read_timer
from app.ports import OutRecord
from app.workflow_wire import decode_run, encode_events, encode_run, join_run
from config.topics import WORKFLOW_EVENTS
from tables import executions as rows
from tables.executions import Header, History
from tables.partition import Changes, TablePartition

# A run larger than this is cut between two events: one record must fit into a request.
RUN_BYTES: Final = 262_144


class Unwritable(ValueError):
    """Events that no record can carry, or that hold a value that is no JSON. `type` is that of the failure."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_


class Live:
    """An execution in memory. `events` are those of the batch under way, `timers` its durable timers by name.

    `encoded` are the same events, decision by decision; `size` is that of its history, in bytes.
    """

    __slots__ = (
        "arrival",
        "encoded",
        "events",
        "graph",
        "history",
        "id",
        "row",
        "size",
        "state",
        "timers",
        "touched_s",
    )

    def __init__(self, execution_id: str, graph: Graph | None, state: Execution | None, arrival: int) -> None:
        self.id = execution_id
        self.graph = graph
        self.state = state
        self.arrival = arrival
        self.history: History | None = None
        self.row: bytes | None = None  # the prefix under which it is on disk
        self.events: list[Event] = []
        self.encoded: list[bytes] = []
        self.timers: dict[str, int] = {}
        self.size = 0
        self.touched_s = 0.0


class Executions:
    """Loads, keeps and writes the executions of one partition."""

    def __init__(self, tables: TablePartition, graphs: Graphs) -> None:
        self._tables = tables
        self._graphs = graphs
        self._cache: OrderedDict[str, Live] = OrderedDict()
        self._cached_bytes = 0
        self._dirty: dict[str, Live] = {}
        self._broken: dict[str, Broken] = {}
        aside = tables.range(rows.ASIDE, bytes((rows.ASIDE[0] + 1,)))
        self._aside = {rows.id_of(key) for key, _ in aside}

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def cached_bytes(self) -> int:
        """The size of the histories whose executions are in memory."""
        return self._cached_bytes

    def get(self, execution_id: str) -> Live | None:
        """A live execution, or one that ended in the batch under way; None when there is none."""
        live = self._cache.get(execution_id)
        if live is not None:
            self._cache.move_to_end(execution_id)
            return live
        live = self._dirty.get(execution_id)
        if live is not None:
            return live
        row = self._tables.get(rows.live_key(execution_id))
        if row is None:
            return None
        live = self._read(execution_id, rows.LIVE, row)
        if live is not None:
            self._keep(live)
        return live

    def ended(self, execution_id: str) -> Header | None:
        """The header of an execution that has ended and is still known."""
        row = self._tables.get(rows.ended_key(execution_id))
        if row is None:
            return None
        try:
            return rows.header_of(row)
        except UNREADABLE as error:
            self.found_broken(Broken(execution_id, rows.ENDED, row, error))
            return None

    def read_ended(self, execution_id: str) -> Live | None:
        """An execution that has ended, to look at or to go on with (`touch` it then)."""
        row = self._tables.get(rows.ended_key(execution_id))
        return None if row is None else self._read(execution_id, rows.ENDED, row)

    def begin(self, execution_id: str, graph: Graph | None, arrival: int) -> Live:
        """A new execution, whose first decision is about to be made."""
        return Live(execution_id, graph, None, arrival)

    def encode(self, live: Live, state: Execution, events: Sequence[Event], record_bytes: int) -> bytes:
        """What `touch` needs of a decision, made before anything follows from it. Raises `Unwritable`."""
        try:
            encoded = encode_events(events)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise Unwritable("NotSerializable", f"a value is no JSON: {error}") from error
        if len(encoded) > RUN_BYTES:
            largest = max(len(self._run(live.id, state, [event])) for event in events)
            if largest > record_bytes:
                message = f"an event of {largest} bytes is larger than a record may be, {record_bytes}"
                raise Unwritable("PayloadTooLarge", message)
        return encoded

    def touch(self, live: Live, events: Sequence[Event], encoded: bytes, now_s: float) -> None:
        """Its state has taken on `events`."""
        live.events += events
        live.encoded.append(encoded)
        live.touched_s = now_s
        self._dirty[live.id] = live
        self._keep(live)

    @property
    def is_changed(self) -> bool:
        """Whether something is to be written."""
        return bool(self._dirty)

    def headers(self) -> Iterator[tuple[str, Header]]:
        """Every live execution on disk, in the order of ids."""
        for key, row in self._tables.range(rows.LIVE, bytes((rows.LIVE[0] + 1,))):
            execution_id = rows.id_of(key)
            try:
                header = rows.header_of(row)
            except UNREADABLE as error:
                self.found_broken(Broken(execution_id, rows.LIVE, row, error))
                continue
            yield execution_id, header

    # ---- what cannot be read ----

    def is_broken(self, execution_id: str) -> bool:
        """Whether there is an execution of this name whose rows cannot be read."""
        return execution_id in self._broken or execution_id in self._aside

    @property
    def has_broken(self) -> bool:
        """Whether one was found that is not put aside yet."""
        return bool(self._broken)

    def found_broken(self, broken: Broken) -> None:
        """It is to be put aside with the batch that is concluded next."""
        self._broken[broken.execution_id] = broken

    def take_broken(self) -> list[Broken]:
        """Those to be put aside now."""
        found = list(self._broken.values())
        self._aside.update(self._broken)
        self._broken.clear()
        return found

    def conclude(self, changes: Changes, terms: Terms, now_ms: int) -> None:
        """Write what the batch changed: runs of events and rows."""
        for live in self._dirty.values():
            self._write(live, changes, terms, now_ms)
        self._dirty.clear()
        self.trim(terms)

    def passivate(self, before_s: float) -> int:
        """Forget executions to which nothing happened since `before_s`, a few at a time; how many."""
        gone = 0
        while gone < 1_000 and self._cache:
            live = next(iter(self._cache.values()))
            if live.touched_s > before_s:
                break
            self._let_go(live)
            gone += 1
        return gone

    def clear(self) -> None:
        """Forget everything: the rows are another owner's."""
        self._cache.clear()
        self._dirty.clear()
        self._cached_bytes = 0

    def _keep(self, live: Live) -> None:
        if live.id not in self._cache:
            self._cache[live.id] = live
            self._cached_bytes += live.size

    def _let_go(self, live: Live) -> None:
        if self._cache.pop(live.id, None) is not None:
            self._cached_bytes -= live.size

    # ---- rows ----

    def _read(self, execution_id: str, prefix: bytes, row: bytes) -> Live | None:
        try:
            return self._load(execution_id, prefix, row)
        except UNREADABLE as error:
            self.found_broken(Broken(execution_id, prefix, row, error))
            return None

    def _load(self, execution_id: str, prefix: bytes, row: bytes) -> Live:
        history = rows.history_of(row)
        header = history.header
        size = 0

        def events() -> Iterator[Event]:
            nonlocal size
            for run in rows.all_runs(execution_id, history, self._tables.get):
                size += len(run)
                yield from decode_run(run).events

        state = fold(events())
        assert state is not None, "a row holds at least the start"
        graph = self._graphs.get(header.workflow, header.version)
        live = Live(execution_id, graph, state, header.arrival)
        live.history = history
        live.row = prefix
        live.size = size
        if graph is not None:
            live.timers = {
                each.name: each.due_ms
                for each in outstanding(state, graph)
                if isinstance(each, SetTimer) and is_durable(each.name, graph)
            }
        return live

    def events(self, execution_id: str, history: History) -> Iterator[Event]:
        """All events of an execution that are in its rows."""
        for run in rows.all_runs(execution_id, history, self._tables.get):
            yield from decode_run(run).events

    def _write(self, live: Live, changes: Changes, terms: Terms, now_ms: int) -> None:
        state = live.state
        assert state is not None, "an execution that was touched has a state"
        history = live.history
        if history is None:
            history = live.history = History(_header(state, live.arrival), [])
        key = live.id.encode()
        runs = self._runs(live, state)
        live.events, live.encoded = [], []
        grown = sum(len(run) for run, _ in runs)
        live.size += grown
        if live.id in self._cache:
            self._cached_bytes += grown
        for run, count in runs:
            changes.outputs.append(OutRecord(WORKFLOW_EVENTS.name, key, run, now_ms, (), self._tables.partition))
            history.append(run, count)
            header = history.header
            header.next_seq += count
            if history.open_bytes > terms.chunk_bytes or header.open_events >= terms.chunk_events:
                changes.put(*history.seal(live.id, header.next_seq - header.open_events))
        _update(history.header, state)
        prefix = rows.ENDED if state.is_over else rows.LIVE
        if live.row is not None and live.row != prefix:
            changes.delete(live.row + key)
        changes.put(prefix + key, history.to_bytes())
        live.row = prefix
        if prefix is rows.ENDED:
            self._let_go(live)

    def _runs(self, live: Live, state: Execution) -> Sequence[tuple[bytes, int]]:
        """The events of the batch as records, each of about `RUN_BYTES` or with one event."""
        first_seq = live.events[0].seq
        if sum(map(len, live.encoded)) > RUN_BYTES:
            return list(self._pieces(live.id, state, live.events))
        epoch = self._tables.epoch
        return [(join_run(live.id, state.workflow, state.version, epoch, first_seq, live.encoded), len(live.events))]

    def _pieces(self, execution_id: str, state: Execution, events: Sequence[Event]) -> Iterator[tuple[bytes, int]]:
        run = self._run(execution_id, state, events)
        if len(run) <= RUN_BYTES or len(events) == 1:
            yield run, len(events)
            return
        middle = len(events) // 2
        yield from self._pieces(execution_id, state, events[:middle])
        yield from self._pieces(execution_id, state, events[middle:])

    def _run(self, execution_id: str, state: Execution, events: Sequence[Event]) -> bytes:
        return encode_run(execution_id, state.workflow, state.version, self._tables.epoch, events)

    def trim(self, terms: Terms) -> None:
        """Forget the executions used longest ago; their rows say everything. However large it is, one stays."""
        while len(self._cache) > terms.cache_executions or (
            self._cached_bytes > terms.cache_bytes and len(self._cache) > 1
        ):
            self._let_go(next(iter(self._cache.values())))

    def reload(self, live: Live, also: Iterable[Event]) -> None:
        """Its state anew from rows and from the events of the batch: a decision broke off half way."""
        known: list[Event] = [] if live.history is None else list(self.events(live.id, live.history))
        live.state = fold([*known, *also])


def is_durable(timer: str, graph: Graph | None) -> bool:
    """Whether a timer has a row; the time of an attempt that an executor carries out is watched in memory."""
    if timer.startswith("heartbeat/"):
        return False
    if not timer.startswith("timeout/"):
        return True
    name = read_timer(timer)
    return name is not None and graph is not None and graph.nodes[name.task].is_control


def _header(state: Execution, arrival: int) -> Header:
    return Header(
        workflow=state.workflow,
        version=state.version,
        key=state.key,
        status=state.status,
        priority=state.priority,
        admitted=state.admitted,
        active=False,
        arrival=arrival,
        next_seq=0,
        chunks=0,
        open_events=0,
        at=state.at,
        run=state.run,
        notify=state.notify,
        own_limit=own_limit(state.trigger),
    )


def _update(header: Header, state: Execution) -> None:
    header.status = state.status
    header.admitted = state.admitted
    header.active = not state.is_over and state.admitted and _has_work(state)
    header.at = state.at
    header.run = state.run
    header.began_at = state.began_at


def _has_work(state: Execution) -> bool:
    """Whether an executor has something of it in hand: what waits by itself has a row, or a child."""
    for work in state.tasks.values():
        if work.status == "running" and work.due is None and work.signal is None and work.child is None:
            items = work.items
            if items is None or items.open:
                return True
    return False
