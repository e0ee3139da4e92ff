"""Holds the executions on Kafka against the promises: one legal history of each accepted start, each effect once.

(1) The ends of the commands are noted. (2) The coordinator must have committed them: what a command led to is durable
before that. (3) Histories are read as far as they then go, and the commands again, so that no history lacks its start.
(4) Each partition's executions are judged; (5) effects that belong to none are told.

Memory: the raw events of one partition at a time; where these are more than the limit, the partition is read again
for each share of its executions.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import ceil
from typing import Literal, NamedTuple, Protocol

import orjson

from app.adapters.topics_admin import committed_offsets
from app.definition_wire import decode_definition, id_of_key, workflow_of
from app.domain.workflow import audit
from app.domain.workflow.audit import Fault, LoggedRun
from app.domain.workflow.commands import Start
from app.domain.workflow.definition import Workflow
from app.domain.workflow.events import Event, ExecutionEnded, ExecutionStarted
from app.domain.workflow.placement import partition_of
from app.effects_book import EffectsBook
from app.errors import Unavailable, UserError
from app.ports import Clock, InRecord
from app.workflow_wire import command_type, decode_command, decode_run
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER, WORKFLOW_DEFINITIONS, WORKFLOW_EVENTS

GROUP_SUFFIX = "workflow"  # the coordinators' consumer group, after the client's id
KEPT_FAULTS = 10_000
# Measured: an execution's id, its list of runs and the objects round their bytes, beside the bytes themselves.
RUN_OVERHEAD_BYTES = 250
_SAMPLED_RECORDS = 500
_POLL_S = 0.2

Offsets = Mapping[int, int]
Progress = Callable[[str, int, int], None]


class Log(Protocol):
    """What is asked of the topics."""

    async def begins(self, topic: str) -> dict[int, int]: ...
    async def ends(self, topic: str) -> dict[int, int]: ...
    def read(self, topic: str, start: Offsets, end: Offsets) -> AsyncGenerator[Sequence[InRecord], None]: ...


class Topics(NamedTuple):
    """Where things are."""

    commands: str = WORKFLOW_COMMANDS.name
    events: str = WORKFLOW_EVENTS.name
    deadletter: str = WORKFLOW_DEADLETTER.name


class Effects(NamedTuple):
    """Effects as they are found in the world: batches of what names the work behind each of them.

    `task` made them. `by` says whether they name the piece of work (its idempotency key) or the execution only.
    """

    task: str
    keys: Callable[[], AsyncIterator[Sequence[str]]]
    by: Literal["key", "execution"] = "key"


class Terms(NamedTuple):
    """What is asked."""

    violations: audit.Violations
    definition: Callable[[str, str], Workflow | None]
    must_have_ended: bool = False
    effects: Effects | None = None
    memory_bytes: int = 1 << 30


@dataclass(slots=True)
class Checked:
    """What was found; `faults` holds the first of them, `counts` all by kind."""

    executions: int = 0
    starts: int = 0
    repeated_starts: int = 0
    refused: int = 0
    debounced: int = 0
    pending: int = 0
    events: int = 0
    repeats: int = 0
    forks: int = 0
    cut: int = 0
    effects: int = 0
    effects_due: int = 0
    passes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        return not self.counts

    def add(self, faults: Sequence[Fault]) -> None:
        self.counts.update(fault.kind for fault in faults)
        self.faults += faults[: max(0, KEPT_FAULTS - len(self.faults))]


class _Bounds(NamedTuple):
    """From where to where each topic is read; commands before `settled` must have had their effect."""

    commands: tuple[Offsets, Offsets]
    settled: Offsets
    events: tuple[Offsets, Offsets]


async def check_executions(
    log: Log,
    terms: Terms,
    *,
    settled: Callable[[Offsets], Awaitable[None]],
    progress: Progress = lambda _what, _done, _total: None,
    topics: Topics = Topics(),  # noqa: B008 - an immutable record
) -> Checked:
    """Everything that is wrong, numbered as the module; `settled` returns when the commands up to there are committed.

    Nothing at all to check is wrong too.
    """
    noted = await log.ends(topics.commands)  # 1
    await settled(noted)  # 2
    events = (await log.begins(topics.events), await log.ends(topics.events))  # 3
    commands = (await log.begins(topics.commands), await log.ends(topics.commands))
    refused = await _refused(log, topics)
    checked = Checked()
    with EffectsBook() as book:
        if terms.effects is not None:
            async for batch in terms.effects.keys():
                book.add(batch)
        for partition in sorted(events[1]):  # 4
            one = _Partition(log, terms, topics, _Bounds(commands, noted, events), partition, refused, book)
            await one.check(checked, progress)
        if terms.effects is not None:  # 5
            _leftover(checked, book)
    if not checked.executions:
        checked.add([Fault("nothing", "", "there is no execution on the log")])
    elif terms.effects is not None and not checked.effects_due:
        text = f"no execution has a finished task {terms.effects.task}"
        checked.add([Fault("nothing", "", text)])
    return checked


def _leftover(checked: Checked, book: EffectsBook) -> None:
    checked.effects = book.total
    if checked.cut:
        return  # their histories may be among those that retention has deleted
    unseen = book.unseen(KEPT_FAULTS)
    checked.add([Fault("effect unknown", key, "no execution on the log has made it") for key in unseen])


async def _refused(log: Log, topics: Topics) -> frozenset[tuple[int, int]]:
    """Partition and offset of the commands that were answered with a dead letter."""
    found: set[tuple[int, int]] = set()
    start, end = await log.begins(topics.deadletter), await log.ends(topics.deadletter)
    async with aclosing(log.read(topics.deadletter, start, end)) as batches:
        async for batch in batches:
            for record in batch:
                letter = orjson.loads(record.value or b"{}")
                if letter.get("kind") == "command" and letter.get("topic") == topics.commands:
                    found.add((letter["partition"], letter["offset"]))
    return frozenset(found)


async def until_committed(kafka: KafkaSettings, clock: Clock, noted: Offsets, wait_s: float) -> None:
    """Return when the coordinators have committed the commands up to `noted`.

    Raises `Unavailable` when they do not in time, `UserError` when none ever ran.
    """
    group = f"{kafka.client_id}-{GROUP_SUFFIX}"
    deadline_s = clock.monotonic_s() + wait_s
    while any(noted.values()):  # of an empty topic nothing can be committed
        found = await committed_offsets(kafka.bootstrap_servers, group, kafka)
        committed = found.get(WORKFLOW_COMMANDS.name, {})
        left = sum(max(0, end - committed.get(at, 0)) for at, end in noted.items())
        if not left:
            return
        if clock.monotonic_s() > deadline_s:
            if not committed:
                raise UserError(
                    f"The group {group} has committed nothing of {WORKFLOW_COMMANDS.name}: a coordinator must have "
                    "run (`headrace worker --roles coordinator`, or `headrace up`)."
                )
            raise Unavailable(
                f"The coordinator has {left:,} records of {WORKFLOW_COMMANDS.name} to go after {wait_s:g} s; start "
                "one, or wait longer with --wait-s."
            )
        await asyncio.sleep(_POLL_S)


async def registered(log: Log, topic: str = WORKFLOW_DEFINITIONS.name) -> dict[tuple[str, str], Workflow]:
    """Every version of every workflow that the topic tells; like the engine, it passes over what cannot be read."""
    found: dict[tuple[str, str], Workflow] = {}
    async with aclosing(log.read(topic, await log.begins(topic), await log.ends(topic))) as batches:
        async for batch in batches:
            for record in batch:
                where = id_of_key(_text(record.key))
                if where is not None and where[0] == "workflow" and record.value is not None:
                    # Executions of one that cannot be read are blamed for it: "unknown definition".
                    with suppress(ValueError):
                        found[where[1], where[2]] = workflow_of(decode_definition(record.value))
    return found


class _Found(NamedTuple):
    """What the log has of one execution: raw runs in order, and its first start."""

    runs: list[bytes]
    start: list[tuple[int, bytes]]


class _Partition:
    """The executions of one partition, in as many shares as the memory asks for."""

    def __init__(
        self,
        log: Log,
        terms: Terms,
        topics: Topics,
        bounds: _Bounds,
        partition: int,
        refused: frozenset[tuple[int, int]],
        book: EffectsBook,
    ) -> None:
        self._log = log
        self._terms = terms
        self._topics = topics
        self._bounds = bounds
        self._partition = partition
        self._partitions = len(bounds.events[1])
        self._refused = refused
        self._book = book
        # Where retention has deleted something, a history without its beginning is nobody's fault.
        self._cut_events = bounds.events[0].get(partition, 0) > 0
        self._cut_commands = bounds.commands[0].get(partition, 0) > 0

    async def check(self, checked: Checked, progress: Progress) -> None:
        shares = await self._shares()
        for share in range(shares):
            checked.passes += 1
            what = f"partition {self._partition}" if shares == 1 else f"partition {self._partition} ({share + 1})"
            found = await self._gather(share, shares, checked, partial(progress, what))
            for execution_id, one in found.items():
                self._judge(execution_id, one, checked)

    async def _shares(self) -> int:
        """In how many shares, from the number of records and the size of the first ones."""
        start, end = (side.get(self._partition, 0) for side in self._bounds.events)
        if end <= start:
            return 1
        sampled = size = 0
        async with aclosing(self._read(self._topics.events, self._bounds.events)) as batches:
            async for batch in batches:
                for record in islice(batch, _SAMPLED_RECORDS):
                    sampled += 1
                    size += len(record.value or b"") + RUN_OVERHEAD_BYTES
                break
        # The start of an execution is kept beside its runs; it is about as long as one of them.
        return max(1, ceil((end - start) * size / max(1, sampled) * 1.5 / self._terms.memory_bytes))

    def _read(self, topic: str, bounds: tuple[Offsets, Offsets]) -> AsyncGenerator[Sequence[InRecord], None]:
        at = self._partition
        start, end = ({at: side.get(at, 0)} for side in bounds)
        return self._log.read(topic, start, end)

    async def _gather(
        self, share: int, shares: int, checked: Checked, progress: Callable[[int, int], None]
    ) -> dict[str, _Found]:
        found: dict[str, _Found] = {}
        bounds, at = self._bounds, self._partition
        total = sum(end.get(at, 0) - start.get(at, 0) for start, end in (bounds.commands, bounds.events))
        done = 0
        for topic, where in ((self._topics.commands, bounds.commands), (self._topics.events, bounds.events)):
            is_command = topic == self._topics.commands
            async with aclosing(self._read(topic, where)) as batches:
                async for batch in batches:
                    done += len(batch)
                    progress(done, total)
                    for record in batch:
                        if shares == 1 or zlib.crc32(record.key or b"") % shares == share:
                            (self._take_command if is_command else self._take_run)(record, found, checked)
        return found

    def _take_command(self, record: InRecord, found: dict[str, _Found], checked: Checked) -> None:
        """Keep a start that was not refused; what else is on the topic is the engine's business."""
        if (record.partition, record.offset) in self._refused:
            checked.refused += 1
            return
        try:
            if command_type(record.value) != Start.__dataclass_fields__["type"].default:
                return
        except ValueError as error:
            if record.offset < self._bounds.settled.get(record.partition, 0):
                text = f"commands {record.partition}:{record.offset} is neither readable nor a dead letter: {error}"
                checked.add([Fault("unreadable", _text(record.key), text)])
            return
        one = found.setdefault(_text(record.key), _Found([], []))
        if one.start:
            checked.repeated_starts += 1
        else:
            one.start.append((record.offset, record.value or b""))

    def _take_run(self, record: InRecord, found: dict[str, _Found], _: Checked) -> None:
        found.setdefault(_text(record.key), _Found([], [])).runs.append(record.value or b"")

    def _judge(self, execution_id: str, found: _Found, checked: Checked) -> None:
        start, offset, faults = self._start_of(execution_id, found)
        if not found.runs:
            self._without_history(execution_id, start, offset, faults, checked)
            return
        checked.executions += 1
        checked.starts += start is not None
        runs: list[LoggedRun] = []
        for raw in found.runs:
            try:
                run = decode_run(raw)
            except ValueError as error:
                faults.append(Fault("unreadable", execution_id, str(error)))
                continue
            if run.execution_id != execution_id:
                text = f"its record holds events of {run.execution_id}"
                faults.append(Fault("unreadable", execution_id, text))
            runs.append(LoggedRun(run.epoch, run.first_seq, run.events))
        if self._cut_events and runs and runs[0].first_seq > 0:
            checked.cut += 1
            return
        merged = audit.merge(execution_id, runs)
        terms = audit.Terms(self._terms.violations, self._terms.must_have_ended)
        faults += audit.judge(execution_id, merged, start, self._definition(merged.events), terms)
        faults += self._placement(execution_id, start, merged.events)
        faults += self._effects(execution_id, merged.events, checked)
        checked.events += len(merged.events)
        checked.repeats += merged.repeats
        checked.forks += merged.forks
        last = merged.events[-1] if merged.events else None
        checked.statuses[last.status if isinstance(last, ExecutionEnded) else "not ended"] += 1
        checked.add(faults)

    def _start_of(self, execution_id: str, found: _Found) -> tuple[Start | None, int, list[Fault]]:
        if not found.start:
            return None, 0, []
        offset, raw = found.start[0]
        try:
            command = decode_command(raw)
        except ValueError as error:
            text = f"its start is neither readable nor a dead letter: {error}"
            return None, offset, [Fault("unreadable", execution_id, text)]
        assert isinstance(command, Start)
        if command.execution_id != execution_id:
            text = f"its key names {execution_id}, its value {command.execution_id}"
            return command, offset, [Fault("unreadable", execution_id, text)]
        return command, offset, []

    def _without_history(
        self, execution_id: str, start: Start | None, offset: int, faults: list[Fault], checked: Checked
    ) -> None:
        """A start alone: lost, unless it came after the noted end, was one too many, or is older than the events."""
        if start is None:
            checked.add(faults)
        elif start.debounce is not None:
            checked.debounced += 1
        elif offset >= self._bounds.settled.get(self._partition, 0):
            checked.pending += 1
        elif self._cut_events:
            checked.cut += 1
        else:
            text = f"accepted at commands {self._partition}:{offset}, and there is no event of it"
            checked.starts += 1
            checked.add([*faults, Fault("lost start", execution_id, text)])

    def _definition(self, events: Sequence[Event]) -> Workflow | None:
        first = events[0] if events else None
        return self._terms.definition(first.workflow, first.version) if isinstance(first, ExecutionStarted) else None

    def _placement(self, execution_id: str, start: Start | None, events: Sequence[Event]) -> list[Fault]:
        faults: list[Fault] = []
        placed = partition_of(execution_id, self._partitions)
        if placed != self._partition:
            text = f"its events are on partition {self._partition}, it lives on {placed}"
            faults.append(Fault("wrong partition", execution_id, text))
        first = events[0] if events else None
        if start is None and not self._cut_commands and isinstance(first, ExecutionStarted) and first.parent is None:
            faults.append(Fault("unknown start", execution_id, "no command on the log has started it"))
        return faults

    def _effects(self, execution_id: str, events: Sequence[Event], checked: Checked) -> list[Fault]:
        """Work that has succeeded has had its effect once; work that was begun, at most once."""
        wanted = self._terms.effects
        if wanted is None:
            return []
        due = audit.effects_due(execution_id, events, wanted.task)
        possible = audit.effects_possible(execution_id, events, wanted.task)
        if wanted.by == "execution":
            due, possible = ([execution_id] if keys else [] for keys in (due, possible))
        checked.effects_due += len(due)
        faults: list[Fault] = []
        for key in {**dict.fromkeys(due), **dict.fromkeys(possible)}:
            count = self._book.take(key)
            if count > 1:
                faults.append(Fault("effect twice", execution_id, f"{key} is there {count:,} times"))
            elif not count and key in due:
                faults.append(Fault("effect missing", execution_id, f"{key} has succeeded and is not there"))
        return faults


def _text(key: bytes | None) -> str:
    return (key or b"").decode(errors="replace")
