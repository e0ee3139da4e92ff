"""Backfills: an execution for every due time of a range, so many at once, until the range is done or cancelled.

Progress is where the range has been taken to and which runs are under way: that is all of the state, so that a
takeover goes on where it was. A run's id is made from the backfill and its due time, so that it starts once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from app.domain.workflow.cadence import Cadence, iso, stamp
from app.domain.workflow.schedule import ASK_AGAIN_MS, RECENT_COMMANDS, RESERVED_PREFIX, Run

CONCURRENCY_MAX: Final = 1_000
RUNS_MAX: Final = 100_000
FAILED_KEPT: Final = 100

Status = Literal["running", "cancelled", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillSpec:
    """Every due time with from <= due <= to, oldest first. `version` None means the latest at each start."""

    workflow: str
    cadence: Cadence
    from_ms: int
    to_ms: int
    version: str | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 10

    def problem(self) -> str | None:
        """Why it cannot be done, in one sentence."""
        if self.from_ms > self.to_ms:
            return "The range ends before it begins."
        if self.from_ms < 0:
            return "The range begins before 1970."
        if not 1 <= self.concurrency <= CONCURRENCY_MAX:
            return f"concurrency: {self.concurrency} is not within 1 and {CONCURRENCY_MAX}."
        return self.cadence.problem()

    def runs(self) -> int:
        """How many there are; counted no further than one above `RUNS_MAX`. Takes up to half a second."""
        if self.cadence.every_ms is not None:
            return self.to_ms // self.cadence.every_ms - (self.from_ms - 1) // self.cadence.every_ms
        count = 0
        for _ in self.cadence.between(self.from_ms - 1, self.to_ms):
            count += 1
            if count > RUNS_MAX:
                break
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillStart:
    """Begin a backfill; `total` is the number of its runs, counted by the sender."""

    entity_id: str
    command_id: str
    spec: BackfillSpec
    total: int
    type: Literal["backfill_start"] = "backfill_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillCancel:
    """Start no further run; `running` says whether those under way are cancelled too."""

    entity_id: str
    command_id: str
    running: bool = True
    type: Literal["backfill_cancel"] = "backfill_cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillState:
    """Everything up to `taken_ms` was started.

    `skipped` ran into the limit of their workflow; `failed_due` are the due times of the first runs that failed.
    """

    name: str
    spec: BackfillSpec
    total: int
    taken_ms: int
    created_ms: int
    status: Status = "running"
    running: tuple[Run, ...] = ()
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    failed_due: tuple[int, ...] = ()
    ended_ms: int | None = None
    error: str | None = None
    recent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Filled:
    """The state after a decision, what to start and which executions to cancel."""

    state: BackfillState
    starts: tuple[Run, ...] = ()
    cancels: tuple[str, ...] = ()


def begin(name: str, command: BackfillStart, now_ms: int) -> Filled:
    """The first runs of a new backfill."""
    spec = command.spec
    state = BackfillState(
        name=name,
        spec=spec,
        total=command.total,
        taken_ms=spec.from_ms - 1,
        created_ms=now_ms,
        recent=(command.command_id,),
    )
    return fill(state, now_ms)


def fill(state: BackfillState, now_ms: int) -> Filled:
    """Start as many as there is room for; the backfill is done when nothing is left and nothing runs."""
    if state.status != "running":
        return Filled(state)
    starts: list[Run] = []
    taken_ms = state.taken_ms
    while len(state.running) + len(starts) < state.spec.concurrency:
        due_ms = state.spec.cadence.next_after(taken_ms)
        if due_ms > state.spec.to_ms:
            taken_ms = state.spec.to_ms
            break
        starts.append(Run(execution_id=execution_id(state.name, due_ms), due_ms=due_ms, asked_ms=now_ms))
        taken_ms = due_ms
    filled = replace(state, taken_ms=taken_ms, running=(*state.running, *starts), started=state.started + len(starts))
    if not filled.running and taken_ms >= state.spec.to_ms:
        filled = replace(filled, status="done", ended_ms=now_ms)
    return Filled(filled, tuple(starts))


def told(state: BackfillState, execution_id: str, status: str, now_ms: int) -> Filled:
    """A run has ended; others take its room."""
    run = next((each for each in state.running if each.execution_id == execution_id), None)
    if run is None:
        return Filled(state)
    return fill(_counted(state, run, status), now_ms)


def withdrawn(state: BackfillState, execution_id: str, reason: str) -> BackfillState:
    """The start could not even be asked for: it counts as failed."""
    run = next(each for each in state.running if each.execution_id == execution_id)
    return replace(_counted(state, run, "failed"), error=reason)


def cancel(state: BackfillState, now_ms: int, *, running: bool) -> Filled:
    """End it; what runs is cancelled or left to end by itself, its outcome still counts."""
    if state.status != "running":
        return Filled(state)
    cancels = tuple(run.execution_id for run in state.running) if running else ()
    return Filled(replace(state, status="cancelled", ended_ms=now_ms), (), cancels)


def ask_again(state: BackfillState, now_ms: int) -> Filled:
    """As of schedules: runs that have not been heard of for long are asked for again, which is harmless."""
    if state.status != "running":
        return Filled(state)
    stale = [run for run in state.running if abs(now_ms - run.asked_ms) >= ASK_AGAIN_MS]
    asked = {run.execution_id: replace(run, asked_ms=now_ms) for run in stale}
    running = tuple(asked.get(run.execution_id, run) for run in state.running)
    return Filled(replace(state, running=running), tuple(asked.values()))


def remembered(state: BackfillState, command_id: str) -> BackfillState:
    """The same, knowing that a command was obeyed."""
    return replace(state, recent=(*state.recent, command_id)[-RECENT_COMMANDS:])


def execution_id(name: str, due_ms: int) -> str:
    """The same for the same time of the same backfill; no schedule's id begins like this."""
    return f"{RESERVED_PREFIX}{name}-{stamp(due_ms)}"


def trigger(name: str, run: Run) -> dict[str, Any]:
    """What the execution knows of its beginning, in the words of a schedule."""
    return {"kind": "backfill", "backfill": name, "due_ms": run.due_ms, "due": iso(run.due_ms)}


def _counted(state: BackfillState, run: Run, status: str) -> BackfillState:
    running = tuple(each for each in state.running if each is not run)
    if status == "succeeded":
        return replace(state, running=running, succeeded=state.succeeded + 1)
    if status == "skipped":
        return replace(state, running=running, skipped=state.skipped + 1)
    failed_due = (*state.failed_due, run.due_ms)[:FAILED_KEPT]
    return replace(state, running=running, failed=state.failed + 1, failed_due=failed_due)
