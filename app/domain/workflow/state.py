"""Where an execution stands: the fold of its events."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Self

from app.domain.workflow.commands import Parent, TaskError
from app.domain.workflow.events import FINAL, Status

WorkStatus = Literal["pending", "running", "backoff", "stopped", "succeeded", "failed", "skipped"]
CHUNK: Final = 128  # items a chunk: changing one of 10,000 copies 128 + 79 references, about 1 µs


class Child(NamedTuple):
    """A sub-workflow that was asked to start; `version` None means the latest."""

    id: str
    workflow: str
    version: str | None
    input: Any


class Work(NamedTuple):
    """A task, or one item of a map.

    `attempt` is the last that began (0: none); `base` the attempts of earlier runs, so that `attempt - base` counts
    against `retry.attempts`. `token` is the `seq` of the event that began the attempt: a report with another token is
    stale. `at` is when the attempt began, `due` when something happens by itself: the next attempt of a `backoff`,
    the end of a wait or of an approval's patience. `signal` and `child` are what an approval or a sub-workflow
    waits for. `stopped`: the execution ended, or compensates, before this had finished.
    """

    status: WorkStatus = "pending"
    attempt: int = 0
    base: int = 0
    token: int = -1
    at: int = 0
    due: int | None = None
    result: Any = None
    error: TaskError | None = None
    signal: str | None = None
    child: Child | None = None
    items: "Items | None" = None

    @property
    def used(self) -> int:
        """The highest attempt of a task or of any item of its map."""
        if self.items is None:
            return self.attempt
        return max((work.attempt for work in self.items.each()), default=self.attempt)


PENDING: Final = Work()


class Items(NamedTuple):
    """The items of a map: values, and the work on each in chunks, so that one changes without copying all.

    `done` have succeeded, `open` are running or wait for another attempt; below `next` none is pending.
    """

    values: tuple[Any, ...]
    chunks: tuple[tuple[Work, ...], ...]
    done: int = 0
    open: int = 0
    next: int = 0

    @classmethod
    def of(cls, values: tuple[Any, ...], attempts: int) -> Self:
        """Every item pending; `attempts` were used up by earlier runs."""
        work = PENDING if attempts == 0 else Work("pending", attempts, attempts)
        full, rest = divmod(len(values), CHUNK)
        chunk = (work,) * CHUNK
        return cls(values, (chunk,) * full + (((work,) * rest,) if rest else ()))

    def get(self, item: int) -> Work | None:
        """The work on one item, None when there is no such item."""
        if not 0 <= item < len(self.values):
            return None
        return self.chunks[item // CHUNK][item % CHUNK]

    def put(self, item: int, work: Work) -> tuple[tuple[Work, ...], ...]:
        """The chunks with one item's work replaced."""
        at, within = divmod(item, CHUNK)
        chunk = self.chunks[at]
        return (*self.chunks[:at], (*chunk[:within], work, *chunk[within + 1 :]), *self.chunks[at + 1 :])

    def each(self) -> Iterator[Work]:
        """The work on each item, in order."""
        for chunk in self.chunks:
            yield from chunk

    def pending(self) -> int | None:
        """The first item that has not begun."""
        for item in range(self.next, len(self.values)):
            if self.chunks[item // CHUNK][item % CHUNK].status == "pending":
                return item
        return None


class Piece(NamedTuple):
    """One thing that is under way."""

    task: str
    item: int | None
    work: Work


@dataclass(slots=True, kw_only=True, eq=True)
class Execution:
    """The state of one execution.

    `evolve` takes ownership: it changes the state it is given and returns it, so that an event costs O(1) however
    long the history is (docs/decisions/0013). Everything below the top level is replaced, never changed: only
    `tasks`, `inbox`, `asked` and `applied` are containers, and `fork` copies those.

    `seq` is the next event's number. `run` counts from 1 and grows with each retry or rerun; `began_at` is when this
    run was admitted, from which the execution's timeout counts. `finished` tasks have succeeded or were skipped.
    `inbox` holds signals that answered no approval yet, `asked` the approvals (task, item) that wait, both oldest
    first; `applied` the ids of the commands that had an effect. `compensates` is the status that the execution will
    end with after its `on_failure`.
    """

    execution_id: str
    workflow: str
    version: str
    input: Any
    key: str | None
    priority: int
    asked_at: int
    started_at: int
    trigger: Mapping[str, Any]
    parent: Parent | None
    notify: str | None
    traceparent: str | None
    seq: int
    at: int
    status: Status
    admitted: bool
    paused: bool = False
    began_at: int | None = None
    run: int = 1
    finished: int = 0
    tasks: dict[str, Work] = field(default_factory=dict)
    inbox: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    asked: dict[str, dict[tuple[str, int | None], None]] = field(default_factory=dict)
    applied: set[str] = field(default_factory=set)
    compensates: Status | None = None
    error: TaskError | None = None
    failed_task: str | None = None
    result: Any = None
    reason: str = ""
    ended_at: int | None = None

    @property
    def is_over(self) -> bool:
        """It has ended (and may still be retried)."""
        return self.status in FINAL

    def find(self, task: str, item: int | None) -> Work | None:
        """The work on a task or an item of its map; None when nothing is known of it yet."""
        work = self.tasks.get(task)
        if item is None or work is None:
            return work
        return None if work.items is None else work.items.get(item)

    def live(self) -> Iterator[Piece]:
        """What runs or waits for another attempt. O(tasks and items of unfinished maps)."""
        return self.pieces(("running", "backoff"))

    def pieces(self, statuses: tuple[WorkStatus, ...]) -> Iterator[Piece]:
        """The tasks without a map and the items of unfinished maps that have one of `statuses`."""
        for task, work in self.tasks.items():
            if work.items is None:
                if work.status in statuses:
                    yield Piece(task, None, work)
                continue
            for item, each in enumerate(work.items.each()):
                if each.status in statuses:
                    yield Piece(task, item, each)

    def fork(self) -> "Execution":
        """A copy that can evolve without touching this one."""
        return Execution(
            execution_id=self.execution_id,
            workflow=self.workflow,
            version=self.version,
            input=self.input,
            key=self.key,
            priority=self.priority,
            asked_at=self.asked_at,
            started_at=self.started_at,
            trigger=self.trigger,
            parent=self.parent,
            notify=self.notify,
            traceparent=self.traceparent,
            seq=self.seq,
            at=self.at,
            status=self.status,
            admitted=self.admitted,
            paused=self.paused,
            began_at=self.began_at,
            run=self.run,
            finished=self.finished,
            tasks=dict(self.tasks),
            inbox=dict(self.inbox),
            asked={name: dict(waiting) for name, waiting in self.asked.items()},
            applied=set(self.applied),
            compensates=self.compensates,
            error=self.error,
            failed_task=self.failed_task,
            result=self.result,
            reason=self.reason,
            ended_at=self.ended_at,
        )
