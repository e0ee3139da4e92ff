"""What the healed cluster says of executions: histories, the rows of the engine's tables, what others have read."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeVar

import orjson

from app.chaos.checker_folder import WitnessLine
from app.chaos.checker_laws import Known, Law, Waited, law, not_asked
from app.domain.workflow.audit import LoggedRun, Merged, merge
from app.domain.workflow.events import (
    Event,
    ExecutionEnded,
    ExecutionResumed,
    ExecutionRetried,
    ExecutionStarted,
    TaskFailed,
    TaskScheduled,
    TaskSucceeded,
    WaitStarted,
)
from app.domain.workflow.evolve import fold
from app.executions_check import Log, Offsets
from app.ports import InRecord
from app.workflow_wire import decode_run
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS, WORKFLOW_STATE
from tables import executions as rows
from tables.changelog import Replay

_ALL_ROWS: Final = 1 << 62
T = TypeVar("T")

Rows = Mapping[bytes, bytes]


def digest(key: bytes | None, value: bytes | None) -> str:
    """The hash of a record, as every reader of a run makes it."""
    return hashlib.blake2b(b"%d:" % len(key or b"") + (key or b"") + b"\0" + (value or b""), digest_size=8).hexdigest()


@dataclass(slots=True)
class Findings:
    """What the log and the tables say; `says_…` are the breaches of the laws that need records."""

    known: dict[str, Known] = field(default_factory=dict)
    compared: int = 0
    says_readers: list[str] = field(default_factory=list)
    rows: int = 0
    says_state: list[str] = field(default_factory=list)
    repeats: int = 0
    forks: int = 0

    def readers(self) -> Law:
        """What was read during the run at an offset is what is there now."""
        return law("readers", self.compared, self.says_readers)

    def state(self) -> Law:
        """The tables say of each execution what its history folds to; no input is committed that they have not."""
        return law("state", self.rows, self.says_state)


async def find_executions(reader: Log, witness: Sequence[WitnessLine] | None, committed: Mapping[int, int]) -> Findings:
    """Read every partition; `committed` are the offsets of the coordinators' group on `workflow.commands`."""
    found = Findings()
    seen = _by_place(witness or (), WORKFLOW_EVENTS.name)
    events = await _bounds(reader, WORKFLOW_EVENTS.name)
    state = await _bounds(reader, WORKFLOW_STATE.name)
    for partition in sorted(events[1]):
        histories = await _histories(reader, partition, events, seen, found)
        replay, table = await _table(reader, partition, state)
        _judge_partition(partition, histories, table, found)
        applied = replay.applied.get(WORKFLOW_COMMANDS.name, -1)
        if committed.get(partition, 0) > applied + 1:
            text = f"partition {partition}: commands up to {committed[partition]} are committed, {applied} is applied"
            found.says_state.append(text)
    found.says_readers += [f"{topic} {partition}:{offset} is gone" for topic, partition, offset in sorted(seen)]
    return found


def readers_of(found: Findings, witness: Sequence[WitnessLine] | None) -> Law:
    """The law of readers, where there was another one."""
    return not_asked("readers") if witness is None else found.readers()


Place = tuple[str, int, int]


def _by_place(witness: Iterable[WitnessLine], topic: str) -> dict[Place, str]:
    return {(line.topic, line.partition, line.offset): line.hash for line in witness if line.topic == topic}


async def _bounds(reader: Log, topic: str) -> tuple[Offsets, Offsets]:
    return await reader.begins(topic), await reader.ends(topic)


async def _histories(
    reader: Log, partition: int, bounds: tuple[Offsets, Offsets], seen: dict[Place, str], found: Findings
) -> dict[str, list[bytes]]:
    """Raw runs by execution; places that another reader has seen are compared, and taken out of `seen`."""
    raw: dict[str, list[bytes]] = defaultdict(list)
    topic = WORKFLOW_EVENTS.name
    start, end = ({partition: side.get(partition, 0)} for side in bounds)
    async with aclosing(reader.read(topic, start, end)) as batches:
        async for batch in batches:
            for record in batch:
                raw[(record.key or b"").decode(errors="replace")].append(record.value or b"")
                compare(record, seen, found)
    return raw


def compare(record: InRecord, seen: dict[Place, str], found: Findings) -> None:
    """One record with what another reader has read there."""
    expected = seen.pop((record.topic, record.partition, record.offset), None) if seen else None
    if expected is None:
        return
    found.compared += 1
    if expected != digest(record.key, record.value):
        text = (
            f"{record.topic} {record.partition}:{record.offset} was {expected} to one reader and is another to the next"
        )
        found.says_readers.append(text)


async def _table(reader: Log, partition: int, bounds: tuple[Offsets, Offsets]) -> tuple[Replay, dict[bytes, bytes]]:
    """The rows of the engine's table as its changelog says, read as a restore reads it."""
    replay = Replay(waiting_rows=_ALL_ROWS)
    table: dict[bytes, bytes] = {}
    start, end = ({partition: side.get(partition, 0)} for side in bounds)
    async with aclosing(reader.read(WORKFLOW_STATE.name, start, end)) as batches:
        async for batch in batches:
            for key, row in replay.feed(batch).items():
                if row is None:
                    table.pop(key, None)
                else:
                    table[key] = row
    return replay, table


def _judge_partition(partition: int, histories: Mapping[str, list[bytes]], table: Rows, found: Findings) -> None:
    for execution_id, raw in histories.items():
        runs = [decode_run(one) for one in raw]
        merged = merge(execution_id, [LoggedRun(run.epoch, run.first_seq, run.events) for run in runs])
        found.repeats += merged.repeats
        found.forks += merged.forks
        known = known_of(runs[0].workflow, merged.events)
        found.known[execution_id] = known
        found.rows += 1
        found.says_state += _against_row(execution_id, merged, table)
    strangers = {rows.id_of(key) for key in table if key[:1] in {rows.LIVE, rows.ENDED}} - set(histories)
    found.says_state += [f"{one} has a row on partition {partition}, and no history" for one in sorted(strangers)]


def _against_row(execution_id: str, merged: Merged, table: Rows) -> Iterable[str]:
    """What the row of an execution says otherwise than its history."""
    loaded = rows.load(execution_id, table.get)
    if loaded is None:
        yield f"{execution_id} has a history of {len(merged.events)} events and no row"
        return
    history, is_live = loaded
    try:
        told = [event for run in rows.all_runs(execution_id, history, table.get) for event in decode_run(run).events]
    except AssertionError as error:
        yield f"{execution_id}: {error}"
        return
    if told != merged.events:
        yield f"{execution_id}: its row tells of {_last(told)}, its history of {_last(merged.events)}"
        return
    try:
        state = fold(told)
    except (AssertionError, LookupError) as error:
        yield f"{execution_id}: its rows fold to no state: {error!r}"
        return
    header = history.header
    folded = None if state is None else (state.status, state.seq, state.is_over)
    if folded != (header.status, header.next_seq, not is_live):
        yield f"{execution_id}: its row says {header.status} at {header.next_seq}, its events fold to {folded}"
    if not is_live and table.get(rows.live_key(execution_id)) is not None:
        yield f"{execution_id} is live and has ended"


def _last(events: Sequence[Event]) -> str:
    return f"{len(events)} events, the last {events[-1].type}" if events else "nothing"


@lru_cache(maxsize=10_000)
def _same(found: frozenset[T]) -> frozenset[T]:
    """One object for all that are equal: a million executions of one workflow mostly are."""
    return found


def known_of(workflow: str, events: Sequence[Event]) -> Known:
    """What the laws must know of a history."""
    first = events[0] if events else None
    last = events[-1] if events else None
    ended = last if isinstance(last, ExecutionEnded) else None
    given = first.input if isinstance(first, ExecutionStarted) else None
    op = given.get("op") if isinstance(given, dict) else None
    return Known(
        workflow,
        op if isinstance(op, str) else None,
        None if ended is None else ended.status,
        None if ended is None else ended.at,
        _same(frozenset((event.task, event.attempt) for event in events if isinstance(event, TaskScheduled))),
        _same(frozenset(event.task for event in events if isinstance(event, TaskSucceeded))),
        tuple(_waited(events)),
    )


def _waited(events: Sequence[Event]) -> Iterable[Waited]:
    """Waits and pauses before another attempt; what ended otherwise than at its time is left out."""
    open_: dict[tuple[str, int | None], tuple[str, int]] = {}
    for event in events:
        if isinstance(event, WaitStarted):
            open_[event.task, event.item] = (f"the wait {event.task}", event.until)
        elif isinstance(event, TaskFailed) and event.retry_at is not None:
            open_[event.task, event.item] = (f"the next attempt of {event.task}", event.retry_at)
        elif isinstance(event, ExecutionResumed | ExecutionRetried):
            open_.clear()  # what a person lets go on begins at once
        elif isinstance(event, TaskSucceeded | TaskScheduled) and (event.task, event.item) in open_:
            yield Waited(*open_.pop((event.task, event.item)), event.at)
    for what, due_ms in open_.values():
        if not isinstance(events[-1], ExecutionEnded):
            yield Waited(what, due_ms, None)


async def refused_commands(reader: Log, topic: str) -> int:
    """How many commands were answered with a dead letter."""
    start, end = await _bounds(reader, topic)
    count = 0
    async with aclosing(reader.read(topic, start, end)) as batches:
        async for batch in batches:
            count += sum(orjson.loads(record.value or b"{}").get("kind") == "command" for record in batch)
    return count
