"""Questions to the index of executions, each answered from its SQLite file on a thread of its own."""

import heapq
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import orjson

from app.adapters.execution_schema import AT_MAX_MS, ORDER_MAX, SEQ_BITS, SEQ_MASK, TIE_BITS, open_reader
from app.adapters.execution_store import CODES, FINAL_CODES, STATUSES, events_of, unpacked
from app.errors import Unavailable

T = TypeVar("T")

_ROW: Final = (
    "e.n, e.id, w.id, e.version, e.status, e.key, e.ord, e.started, e.ended, e.last_seq, e.priority, e.attempts,"
    " e.failures, e.task, e.error"
)
_FROM: Final = "FROM executions e JOIN workflows w ON w.n = e.workflow"
_PAGE_BYTES: Final = 4 << 20  # a result may have half a megabyte


class Row(NamedTuple):
    """One execution as lists show it; `order` is its place among all, the same on every node. Times in ms UTC."""

    n: int
    id: str
    workflow: str
    version: str
    status: str
    key: str | None
    order: int
    started: int | None
    ended: int | None
    last_seq: int
    priority: int
    attempts: int
    failures: int
    task: str | None
    error: str | None

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return CODES[self.status] in FINAL_CODES

    def document(self) -> dict[str, Any]:
        """What the API shows of it."""
        at = self.order >> TIE_BITS
        return {
            "execution_id": self.id,
            "workflow": self.workflow,
            "version": self.version,
            "status": self.status,
            "key": self.key,
            "priority": self.priority,
            "created_at": at,
            "started_at": self.started,
            "ended_at": self.ended,
            "duration_ms": None if self.ended is None else max(0, self.ended - (self.started or at)),
            "attempts": self.attempts,
            "failures": self.failures,
            "failed_task": self.task,
            "error": self.error,
            "events": self.last_seq + 1,
        }


class Page(NamedTuple):
    """Some events of a history as JSON, in order, some megabytes at most; `more`: these are not the last known."""

    events: list[bytes]
    last_seq: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which executions; None asks for all. `since` and `until` are ms of `created_at`, the end exclusive."""

    workflow: str | None = None
    statuses: Sequence[str] = ()
    key: str | None = None
    since: int | None = None
    until: int | None = None


class ExecutionReader:
    """Connections are a thread's own, and opened anew after `reopen`. Raises `Unavailable` when there is no file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._local = threading.local()
        self._generation = 0

    def reopen(self) -> None:
        """The file may be another one now."""
        self._generation += 1

    def _db(self) -> sqlite3.Connection:
        opened: tuple[int, sqlite3.Connection] | None = getattr(self._local, "opened", None)
        if opened is None or opened[0] != self._generation:
            if opened is not None:
                opened[1].close()
                self._local.opened = None
            opened = self._local.opened = (self._generation, open_reader(self._folder))
        return opened[1]

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """The answer of `question`, from one state of the file."""
        try:
            db = self._db()
            db.execute("BEGIN")
            try:
                return question(db)
            finally:
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise Unavailable(f"The index of executions cannot be read: {error}.") from error

    def close(self) -> None:
        """Close the connection of this thread."""
        opened = getattr(self._local, "opened", None)
        if opened is not None:
            opened[1].close()
            self._local.opened = None

    # ---- questions ----

    def get(self, execution_id: str) -> Row | None:
        return self.ask(lambda db: _get(db, execution_id))

    def first(self, execution_id: str) -> Row | None:
        """The execution of an id, or of that id with a partition behind it."""
        query = f"SELECT {_ROW} {_FROM} WHERE e.id = ? OR (e.id > ? AND e.id < ?) LIMIT 1"
        values = (execution_id, f"{execution_id}-p", f"{execution_id}-q")
        return self.ask(lambda db: _one(db, query, values))

    def ended(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that have ended."""
        marks, codes = ",".join("?" * len(ids)), ",".join(map(str, FINAL_CODES))
        query = f"SELECT id FROM executions WHERE id IN ({marks}) AND status IN ({codes})"  # noqa: S608 - question marks
        return self.ask(lambda db: {found for (found,) in db.execute(query, ids)})

    def page(self, wanted: Wanted, after: tuple[int, str] | None, limit: int) -> list[Row]:
        """The newest executions that are wanted, below the place `after` (order, id)."""
        return self.ask(lambda db: _page(db, wanted, after, limit))

    def history(self, execution_id: str, after_seq: int, limit: int) -> Page | None:
        """Events with a higher number than `after_seq`; None for an unknown execution."""

        def question(db: sqlite3.Connection) -> Page | None:
            row = _get(db, execution_id)
            return None if row is None else _history(db, row, after_seq, limit)

        return self.ask(question)

    def detail(self, execution_id: str) -> dict[str, Any] | None:
        """An execution with its input, result and tasks; None for an unknown one."""

        def question(db: sqlite3.Connection) -> dict[str, Any] | None:
            row = _get(db, execution_id)
            return None if row is None else {**row.document(), **_folded(db, row)}

        return self.ask(question)

    def outcome(self, execution_id: str) -> dict[str, Any] | None:
        """The same of an execution that has ended; None while it has not."""

        def question(db: sqlite3.Connection) -> dict[str, Any] | None:
            row = _get(db, execution_id)
            return {**row.document(), **_folded(db, row)} if row is not None and row.final else None

        return self.ask(question)

    def counts(self) -> dict[str, int]:
        """How many executions there are of each status that has not ended."""
        query = "SELECT status, count(*) FROM executions WHERE status < ? GROUP BY status"
        return self.ask(lambda db: {STATUSES[code]: count for code, count in db.execute(query, (min(FINAL_CODES),))})


def _get(db: sqlite3.Connection, execution_id: str) -> Row | None:
    return _one(db, f"SELECT {_ROW} {_FROM} WHERE e.id = ?", (execution_id,))


def _one(db: sqlite3.Connection, query: str, values: Sequence[Any]) -> Row | None:
    found = db.execute(query, values).fetchone()
    return None if found is None else _row(found)


def _row(found: Sequence[Any]) -> Row:
    n, execution_id, workflow, version, code, *rest = found
    return Row(n, execution_id, workflow, version, STATUSES[code], *rest)


def _page(db: sqlite3.Connection, wanted: Wanted, after: tuple[int, str] | None, limit: int) -> list[Row]:
    """Each status is a range of an index, so that several are merged and none is searched."""
    end = min(_end(wanted.until), _end(None) if after is None else after[0] + 1)  # one bound: the planner takes one
    where, values = ["e.ord >= ?", "e.ord < ?"], [_order(wanted.since or 0), end]
    names: list[Any] = []
    if after is not None:
        where.append("(e.ord, e.id) < (?, ?)")
    codes: Sequence[int | None] = [CODES[name] for name in wanted.statuses] or [None]
    if wanted.key is not None or wanted.workflow is not None:
        codes = [code for code in codes if code is not None] or list(range(len(STATUSES)))
    for column, value in (("e.key", wanted.key), ("e.workflow", _workflow(db, wanted.workflow))):
        if value is not None:
            where.append(f"{column} = ?")
            names.append(value)
    tail = [*values, *(after or ()), *names]
    index = "by_key" if wanted.key is not None else "by_workflow" if wanted.workflow is not None else None
    rows: list[Iterator[Row]] = []
    for code in codes:
        by = index or ("by_ord" if code is None else "by_status")
        status = "" if code is None else "e.status = ? AND "
        query = (
            f"SELECT {_ROW} FROM executions e INDEXED BY {by} CROSS JOIN workflows w ON w.n = e.workflow"  # noqa: S608 - ours
            f" WHERE {status}{' AND '.join(where)} ORDER BY e.ord DESC, e.id DESC LIMIT ?"
        )
        found = db.execute(query, [*([] if code is None else [code]), *tail, limit])
        rows.append(map(_row, found.fetchall()))
    merged = heapq.merge(*rows, key=lambda row: (row.order, row.id), reverse=True)
    return [row for row, _ in zip(merged, range(limit), strict=False)]


def _end(until: int | None) -> int:
    return ORDER_MAX if until is None else _order(until)


def _order(at_ms: int) -> int:
    """The least place of what was asked for at this time; all that is too far ahead is at the end."""
    return min(max(0, at_ms), AT_MAX_MS + 1) << TIE_BITS


def _workflow(db: sqlite3.Connection, name: str | None) -> int | None:
    if name is None:
        return None
    found = db.execute("SELECT n FROM workflows WHERE id = ?", (name,)).fetchone()
    return 0 if found is None else int(found[0])


def _bodies(db: sqlite3.Connection, row: Row, after_seq: int = -1) -> Iterator[bytes]:
    """Lines of runs from the one that holds the event after `after_seq` on."""
    base = row.n << SEQ_BITS
    wanted = base | min(max(0, after_seq + 1), SEQ_MASK)
    begin = db.execute("SELECT max(k) FROM runs WHERE k BETWEEN ? AND ?", (base, wanted)).fetchone()[0]
    query = "SELECT body FROM runs WHERE k BETWEEN ? AND ? ORDER BY k"
    for (body,) in db.execute(query, (wanted if begin is None else begin, base | SEQ_MASK)):
        yield unpacked(body)


def _history(db: sqlite3.Connection, row: Row, after_seq: int, limit: int) -> Page:
    events: list[bytes] = []
    last, size = after_seq, 0
    for body in _bodies(db, row, after_seq):
        for seq, raw in events_of(body):
            if seq <= after_seq:
                continue
            if len(events) == limit or size > _PAGE_BYTES:
                return Page(events, last, more=True)
            events.append(bytes(raw))
            size += len(events[-1])
            last = seq
    return Page(events, last, more=False)


# ---- the detail of one execution ----


class _Event(msgspec.Struct, gc=False):
    """What the detail shows of events; `input`, `result` and `trigger` are left as JSON."""

    type: str
    seq: int
    at: int
    task: str | None = None
    item: int | None = None
    attempt: int = 0
    until: int | None = None
    retry_at: int | None = None
    duration_ms: float = 0.0
    worker: str = ""
    name: str = ""
    child_id: str = ""
    reason: str = ""
    error: Any = None
    tasks: list[str] = msgspec.field(default_factory=list)
    items: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()
    trigger: msgspec.Raw = msgspec.Raw()
    parent: Any = None


class _Events(msgspec.Struct, gc=False):
    events: list[_Event]


_events: Final = msgspec.json.Decoder(_Events)


def _folded(db: sqlite3.Connection, row: Row) -> dict[str, Any]:
    """Input, result, trigger and tasks, from the whole history."""
    found: dict[str, Any] = {
        "input": None,
        "result": None,
        "trigger": None,
        "parent": None,
        "reason": "",
        "failure": None,
        "tasks": {},
    }
    for body in _bodies(db, row):
        for line in body.split(b"\n"):
            for event in _events.decode(line).events:
                _show(found, event)
    found["tasks"] = list(found["tasks"].values())
    return found


def _json(raw: msgspec.Raw) -> Any:
    return orjson.loads(text) if (text := bytes(raw)) else None


def _show(found: dict[str, Any], event: _Event) -> None:
    kind = event.type
    if kind == "execution_started":
        found |= {"input": _json(event.input), "trigger": _json(event.trigger), "parent": event.parent}
    elif kind == "execution_ended":
        found |= {"result": _json(event.result), "reason": event.reason, "failure": event.error}
    elif kind == "execution_retried":
        found |= {"result": None, "reason": "", "failure": None}
        for name in event.tasks:
            found["tasks"].pop(name, None)
    elif kind == "compensation_started":
        found["failure"] = event.error
    elif event.task is not None:
        _show_task(found["tasks"], event, event.task)


def _show_task(tasks: dict[str, dict[str, Any]], event: _Event, name: str) -> None:
    task = tasks.setdefault(
        name, {"task": name, "status": "running", "attempts": 0, "started_at": event.at, "ended_at": None}
    )
    kind, in_map = event.type, event.item is not None
    if kind == "task_scheduled":
        task["status"] = "running"
        task["ended_at"] = None
        task["attempts"] = task["attempts"] + 1 if in_map else event.attempt
    elif kind == "task_succeeded":
        if in_map:
            task["items_done"] = task.get("items_done", 0) + 1
        else:
            task |= {"status": "succeeded", "ended_at": event.at, "duration_ms": event.duration_ms}
            task.pop("retry_at", None)
        task["worker"] = event.worker
    elif kind == "task_failed":
        task |= {"error": event.error, "worker": event.worker}
        if event.retry_at is None:
            task |= {"status": "failed", "ended_at": event.at}
        else:
            task |= {"status": "retrying", "retry_at": event.retry_at}
    else:
        _show_control(task, event)


def _show_control(task: dict[str, Any], event: _Event) -> None:
    shown: Mapping[str, dict[str, Any]] = {
        "task_skipped": {"status": "skipped", "reason": event.reason, "ended_at": event.at},
        "map_completed": {"status": "succeeded", "ended_at": event.at},
        "wait_started": {"status": "waiting", "until": event.until},
        "approval_requested": {"status": "waiting", "waits_for": event.name, "until": event.until},
        "child_started": {"child_id": event.child_id},
    }
    task |= shown.get(event.type, {})
    if event.type == "map_expanded":
        task["items"] = len(_json(event.items) or ())
