"""The writer of the index of executions: runs of events and starts in, rows out, each batch one transaction."""

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import cramjam
import msgspec

from app.adapters.execution_schema import AT_MAX_MS, SEQ_BITS, SEQ_MASK, TIE_BITS, close_writer, empty, open_writer

STATUSES: Final = ("queued", "running", "paused", "succeeded", "failed", "cancelled", "timed_out", "skipped")
CODES: Final[Mapping[str, int]] = {name: code for code, name in enumerate(STATUSES)}
QUEUED, RUNNING, PAUSED = 0, 1, 2
FINAL_CODES: Final = tuple(range(3, len(STATUSES)))

_COMPRESSED: Final = b"\x01"  # no JSON begins so
_COMPRESS_FROM_BYTES: Final = 512
_ROW_BYTES: Final = 64 << 10  # runs of one execution in one batch share a row up to this
_CACHED: Final = 50_000
_IN_MAX: Final = 500  # SQLite takes some more variables; longer lists gain nothing
_ERROR_CHARS: Final = 500


class Position(NamedTuple):
    """The offset after the last record taken from a partition."""

    topic: str
    partition: int
    next: int


class _Error(msgspec.Struct, gc=False):
    type: str = ""
    message: str = ""


# What SQLite holds; a record with a number beyond it is unreadable, and must not end the feed for ever.
Number = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Seq = Annotated[int, msgspec.Meta(ge=0, le=SEQ_MASK)]


class Head(msgspec.Struct, gc=False):
    """What the index reads of an event, of any type; results and inputs are passed over."""

    type: str
    seq: Seq
    at: Number
    asked_at: Number = 0
    queued: bool = False
    key: str | None = None
    priority: Number = 0
    status: str = ""
    task: str | None = None
    error: _Error | None = None


class _Run(msgspec.Struct, gc=False):
    execution_id: str
    workflow: str
    version: str
    epoch: Number
    first_seq: Seq
    events: Annotated[list[Head], msgspec.Meta(min_length=1)]


class _RawRun(msgspec.Struct, gc=False):
    execution_id: str
    workflow: str
    version: str
    epoch: Number
    first_seq: Seq
    events: list[msgspec.Raw]


class _Start(msgspec.Struct, gc=False):
    """Any command, as far as it tells of a start; one that may be held back is no execution before its first event."""

    type: str
    execution_id: str = ""  # commands of schedules and backfills have none
    workflow: str = ""
    version: str = ""
    key: str | None = None
    priority: Number = 0
    at_ms: Number = 0
    debounce: Any = None


_run: Final = msgspec.json.Decoder(_Run)
_raw_run: Final = msgspec.json.Decoder(_RawRun)
_start: Final = msgspec.json.Decoder(_Start)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_COLUMNS: Final = (
    "n, id, workflow, version, status, key, ord, started, ended, epoch, last_seq, priority, attempts, failures, task,"
    " error"
)


class _Live:
    """One execution's row as it will be written; `stored_status` is None until it has been."""

    __slots__ = (
        "attempts",
        "ended",
        "epoch",
        "error",
        "failures",
        "id",
        "key",
        "last_seq",
        "n",
        "ord",
        "priority",
        "started",
        "status",
        "stored_status",
        "task",
        "version",
        "workflow",
    )

    def __init__(self, row: Sequence[Any], stored_status: int | None) -> None:
        (
            self.n,
            self.id,
            self.workflow,
            self.version,
            self.status,
            self.key,
            self.ord,
            self.started,
            self.ended,
            self.epoch,
            self.last_seq,
            self.priority,
            self.attempts,
            self.failures,
            self.task,
            self.error,
        ) = row
        self.stored_status = stored_status

    def row(self) -> tuple[Any, ...]:
        return (
            self.n, self.id, self.workflow, self.version, self.status, self.key, self.ord, self.started, self.ended,
            self.epoch, self.last_seq, self.priority, self.attempts, self.failures, self.task, self.error,
        )  # fmt: skip

    def changes(self) -> tuple[Any, ...]:
        return (
            self.started, self.ended, self.epoch, self.last_seq, self.attempts, self.failures, self.task, self.error,
            self.n,
        )  # fmt: skip

    def forget(self) -> None:
        """Back to before the first event."""
        self.status, self.started, self.ended, self.task, self.error = QUEUED, None, None, None, None
        self.attempts = self.failures = 0
        self.last_seq = -1


class _Kept(NamedTuple):
    """A run that is to be kept, with the bytes of its record."""

    first_seq: int
    last_seq: int
    epoch: int
    body: bytes


class ExecutionStore:
    """The one writer of a file."""

    def __init__(self, folder: Path, cache_bytes: int = 64 << 20) -> None:
        self._db = open_writer(folder, cache_bytes)
        self._live: OrderedDict[str, _Live] = OrderedDict()
        self._load()
        self.unreadable = 0

    def _load(self) -> None:
        self._live.clear()
        self._workflows = {name: n for n, name in self._db.execute("SELECT n, id FROM workflows")}
        self._next: int = self._db.execute("SELECT coalesce(max(n), 0) + 1 FROM executions").fetchone()[0]
        self.count: int = self._db.execute("SELECT count(*) FROM executions").fetchone()[0]

    def close(self) -> None:
        close_writer(self._db)

    def positions(self) -> dict[tuple[str, int], int]:
        """Where to read on, by topic and partition."""
        return {(topic, part): at for topic, part, at in self._db.execute("SELECT topic, part, next FROM offsets")}

    @property
    def cluster(self) -> str | None:
        """The Kafka cluster whose records these are."""
        found = self._db.execute("SELECT value FROM meta WHERE name = 'cluster'").fetchone()
        return None if found is None else str(found[0])

    def reset(self, cluster: str) -> None:
        """Forget everything: the topics are others under the old names, maybe of another cluster."""
        with self._transaction():
            empty(self._db)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES('cluster', ?)", (cluster,))
        self._load()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it, or nothing, here as in the file."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk ends it by itself
                self._db.execute("ROLLBACK")
            self._load()
            raise

    def apply(self, commands: Sequence[bytes], runs: Sequence[bytes], positions: Iterable[Position]) -> set[str]:
        """Take records in, and the offsets they came from, in one transaction; the ids of what changed."""
        starts = self._starts(commands)
        decoded = self._runs(runs)
        with self._transaction():
            self._fetch({start.execution_id for start in starts} | {run.execution_id for run, _ in decoded})
            changed: dict[str, _Live] = {}
            for start in starts:
                if start.execution_id not in self._live:
                    changed[start.execution_id] = self._from_start(start)
            kept: dict[str, list[_Kept]] = {}
            for run, body in decoded:
                self._take(run, body, kept, changed)
            self._write(changed.values())
            self._write_runs(kept)
            self._db.executemany("INSERT OR REPLACE INTO offsets VALUES(?, ?, ?)", positions)
        while len(self._live) > _CACHED:
            self._live.popitem(last=False)
        return set(changed)

    # ---- reading records ----

    def _starts(self, commands: Sequence[bytes]) -> list[_Start]:
        found = []
        for value in commands:
            try:
                command = _start.decode(value)
            except _UNREADABLE:
                self.unreadable += 1
                continue
            if command.type == "start" and command.workflow and command.debounce is None:
                found.append(command)
        return found

    def _runs(self, runs: Sequence[bytes]) -> list[tuple[_Run, bytes]]:
        found = []
        for value in runs:
            try:
                run = _run.decode(value)
            except _UNREADABLE:
                self.unreadable += 1
                continue
            if run.events and run.first_seq + len(run.events) <= SEQ_MASK:
                found.append((run, value))
        return found

    def _fetch(self, ids: set[str]) -> None:
        """Bring the rows of `ids` that are stored into memory."""
        missing = []
        for execution_id in ids:
            if execution_id in self._live:
                self._live.move_to_end(execution_id)
            else:
                missing.append(execution_id)
        for begin in range(0, len(missing), _IN_MAX):
            chunk = missing[begin : begin + _IN_MAX]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT {_COLUMNS} FROM executions WHERE id IN ({marks})"  # noqa: S608 - question marks
            for row in self._db.execute(query, chunk):
                self._live[row[1]] = _Live(row, row[4])

    # ---- folding ----

    def _workflow(self, name: str) -> int:
        n = self._workflows.get(name)
        if n is None:
            n = self._workflows[name] = len(self._workflows) + 1
            self._db.execute("INSERT INTO workflows VALUES(?, ?)", (n, name))
        return n

    def _new(self, execution_id: str, workflow: str, version: str, key: str | None, at: int, priority: int) -> _Live:
        order = min(max(0, at), AT_MAX_MS) << TIE_BITS | zlib.crc32(execution_id.encode()) & (1 << TIE_BITS) - 1
        row = (
            self._next, execution_id, self._workflow(workflow), version, QUEUED, key, order, None, None, -1, -1,
            priority, 0, 0, None, None,
        )  # fmt: skip
        self._next += 1
        self.count += 1
        live = self._live[execution_id] = _Live(row, None)
        return live

    def _from_start(self, start: _Start) -> _Live:
        return self._new(start.execution_id, start.workflow, start.version, start.key, start.at_ms, start.priority)

    def _take(self, run: _Run, body: bytes, kept: dict[str, list[_Kept]], changed: dict[str, _Live]) -> None:
        """Fold one run in, unless it is a repeat or from an owner that was replaced before."""
        live = self._live.get(run.execution_id)
        if live is None:
            first = run.events[0]
            at = first.asked_at or first.at
            live = self._new(run.execution_id, run.workflow, run.version, first.key, at, first.priority)
        last_seq = run.first_seq + len(run.events) - 1
        if run.epoch < live.epoch or (run.epoch == live.epoch and last_seq <= live.last_seq):
            return
        if run.first_seq <= live.last_seq:
            if run.epoch > live.epoch:
                self._overrule(live, run, kept)
            else:
                body = _cut(body, since_seq=live.last_seq + 1)
        heads = run.events[max(0, live.last_seq + 1 - run.first_seq) :]
        _fold(live, heads)
        live.epoch, live.last_seq = run.epoch, last_seq
        changed[run.execution_id] = live
        _join(kept.setdefault(run.execution_id, []), _Kept(heads[0].seq, last_seq, run.epoch, body))

    def _overrule(self, live: _Live, run: _Run, kept: dict[str, list[_Kept]]) -> None:
        """A newer owner tells another story from `run.first_seq` on: what was known beyond it never happened."""
        stored = self._db.execute(
            "SELECT k, last_seq, epoch, body FROM runs WHERE k BETWEEN ? AND ? ORDER BY k",
            (live.n << SEQ_BITS, live.n << SEQ_BITS | SEQ_MASK),
        ).fetchall()
        rows = [_Kept(k & SEQ_MASK, last_seq, epoch, unpacked(body)) for k, last_seq, epoch, body in stored]
        rows += kept.pop(run.execution_id, [])
        self._db.execute(
            "DELETE FROM runs WHERE k BETWEEN ? AND ?", (live.n << SEQ_BITS, live.n << SEQ_BITS | SEQ_MASK)
        )
        live.forget()
        left = kept[run.execution_id] = []
        for row in rows:
            if row.first_seq >= run.first_seq:
                continue
            body = row.body if row.last_seq < run.first_seq else _cut(row.body, before_seq=run.first_seq)
            last_seq = min(row.last_seq, run.first_seq - 1)
            left.append(row._replace(body=body, last_seq=last_seq))
            for line in body.split(b"\n"):
                _fold(live, _run.decode(line).events)
            live.last_seq = last_seq

    # ---- writing ----

    def _write(self, changed: Iterable[_Live]) -> None:
        new, moved, same = [], [], []
        for live in changed:
            if live.stored_status is None:
                new.append(live.row())
            elif live.stored_status != live.status:
                moved.append((live.status, *live.changes()))
            else:
                same.append(live.changes())
            live.stored_status = live.status
        self._db.executemany("INSERT INTO executions VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", new)
        # Apart, because a column that is named has its indexes written anew, changed or not.
        columns = "started=?, ended=?, epoch=?, last_seq=?, attempts=?, failures=?, task=?, error=? WHERE n=?"
        self._db.executemany(f"UPDATE executions SET status=?, {columns}", moved)  # noqa: S608 - written above
        self._db.executemany(f"UPDATE executions SET {columns}", same)  # noqa: S608 - written above

    def _write_runs(self, kept: Mapping[str, Sequence[_Kept]]) -> None:
        rows = []
        for execution_id, runs in kept.items():
            base = self._live[execution_id].n << SEQ_BITS
            rows += [(base | run.first_seq, run.last_seq, run.epoch, packed(run.body)) for run in runs]
        self._db.executemany("INSERT OR REPLACE INTO runs VALUES(?, ?, ?, ?)", rows)

    # ---- forgetting ----

    def forget(self, before_ms: int, executions_max: int, most: int = 500) -> int:
        """Forget at most `most` executions that ended before, or the oldest ended ones of too many; how many it were.

        A start that no engine has taken until then is forgotten too: it was refused, or its topic is gone.
        """
        old = self._oldest("AND ord < ? AND ended < ?", (before_ms << TIE_BITS, before_ms), most)
        old += self._untaken(before_ms, most - len(old))
        if not old and self.count > executions_max:
            old = self._oldest("", (), min(most, self.count - executions_max))
        if not old:
            return 0
        with self._transaction():
            for n, execution_id in old:
                self._db.execute("DELETE FROM runs WHERE k BETWEEN ? AND ?", (n << SEQ_BITS, n << SEQ_BITS | SEQ_MASK))
                self._db.execute("DELETE FROM executions WHERE n = ?", (n,))
                self._live.pop(execution_id, None)
        self.count -= len(old)
        return len(old)

    def _oldest(self, where: str, values: tuple[int, ...], most: int) -> list[tuple[int, str]]:
        found: list[tuple[int, int, str]] = []
        for code in FINAL_CODES:
            query = f"SELECT ord, n, id FROM executions WHERE status = ? {where} ORDER BY ord LIMIT ?"  # noqa: S608 - ours
            found += self._db.execute(query, (code, *values, most)).fetchall()
        return [(n, execution_id) for _, n, execution_id in sorted(found)[:most]]

    def _untaken(self, before_ms: int, most: int) -> list[tuple[int, str]]:
        query = "SELECT n, id FROM executions WHERE status = ? AND ord < ? AND epoch < 0 ORDER BY ord LIMIT ?"
        return self._db.execute(query, (QUEUED, before_ms << TIE_BITS, most)).fetchall()


def _fold(live: _Live, heads: Iterable[Head]) -> None:
    """What some events make of a row."""
    for head in heads:
        kind = head.type
        if kind == "task_scheduled":
            live.attempts += 1
        elif kind == "task_failed":
            live.failures += 1
        elif kind == "execution_started":
            live.status = QUEUED if head.queued else RUNNING
            live.started = None if head.queued else head.at
        elif kind == "execution_ended":
            live.status = CODES.get(head.status, CODES["failed"])
            live.ended = head.at
            live.task, live.error = head.task, _text(head.error)
        elif kind == "execution_admitted":
            live.started = head.at
            live.status = live.status if live.status == PAUSED else RUNNING
        elif kind == "execution_paused":
            live.status = PAUSED
        elif kind == "execution_resumed":
            live.status = QUEUED if live.started is None else RUNNING
        elif kind == "execution_retried":
            live.status, live.ended, live.task, live.error = QUEUED if head.queued else RUNNING, None, None, None


def _text(error: _Error | None) -> str | None:
    if error is None:
        return None
    return f"{error.type}: {error.message}"[:_ERROR_CHARS]


def _join(runs: list[_Kept], run: _Kept) -> None:
    """Runs that follow one another share a row: a line each."""
    if runs:
        last = runs[-1]
        follows = last.last_seq + 1 == run.first_seq and last.epoch == run.epoch
        if follows and len(last.body) + len(run.body) < _ROW_BYTES:
            runs[-1] = _Kept(last.first_seq, run.last_seq, run.epoch, last.body + b"\n" + run.body)
            return
    runs.append(run)


def _cut(body: bytes, since_seq: int = 0, before_seq: int = SEQ_MASK) -> bytes:
    """Lines of runs with the events of some sequence numbers alone."""
    lines = []
    for line in body.split(b"\n"):
        run = _raw_run.decode(line)
        begin = max(0, since_seq - run.first_seq)
        events = run.events[begin : max(0, before_seq - run.first_seq)]
        if events:
            run.events, run.first_seq = events, run.first_seq + begin
            lines.append(msgspec.json.encode(run))
    return b"\n".join(lines)


def packed(body: bytes) -> bytes:
    """The bytes of a row."""
    if len(body) < _COMPRESS_FROM_BYTES:
        return body
    return _COMPRESSED + bytes(cramjam.lz4.compress_block(body))


def unpacked(stored: bytes) -> bytes:
    """Lines of runs."""
    if stored[:1] == _COMPRESSED:
        return bytes(cramjam.lz4.decompress_block(stored[1:]))
    return stored


def events_of(body: bytes) -> Iterable[tuple[int, msgspec.Raw]]:
    """Sequence number and JSON of every event in lines of runs."""
    for line in body.split(b"\n"):
        run = _raw_run.decode(line)
        yield from enumerate(run.events, run.first_seq)
