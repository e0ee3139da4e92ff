"""Schedules: when an execution is to start by the clock, and what a missed or crowded time comes to.

Catch-up. What became due while nobody looked (nobody owned the partition, the clock jumped forwards) has piled up.
Its newest is on time when it is at most `ON_TIME_MS` old. `none` starts the newest if it is on time; `last` the newest
in any case; `all` the newest `catch_up_limit`. What is left out is counted as missed.
What became due while the schedule was paused is not missed: it was not wanted.

Overlap, when a run of the schedule is still going on: `skip` leaves the new one out, `queue` starts it after that one
(at most `WAITING_MAX` wait), `cancel_running` cancels that one, `allow` starts it beside. Several that piled up are
judged as if they came one by one: only `queue` and `allow` start more than one of them.

A clock that is put back by more than `CLOCK_BACK_MS` makes the schedule count anew from there; a time that comes twice
has the same execution id both times, and so starts once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from app.domain.workflow.cadence import COUNT_MAX, Cadence, iso, piled_up, stamp
from app.domain.workflow.definition import CatchUp, Overlap

ON_TIME_MS: Final = 60_000
CLOCK_BACK_MS: Final = 60_000
WAITING_MAX: Final = 1_000
RECENT_COMMANDS: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Ids of backfills' executions begin with it.
RESERVED_PREFIX: Final = "backfill."
# How long a run may go on before it is asked for again: the word of its end may have been lost with a topic.
ASK_AGAIN_MS: Final = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """What a schedule is to do. `version` None means the latest at each start."""

    workflow: str
    cadence: Cadence
    version: str | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    overlap: Overlap = "skip"
    catch_up: CatchUp = "last"
    catch_up_limit: int = COUNT_MAX

    def problem(self) -> str | None:
        """Why it cannot be done, in one sentence."""
        if not 1 <= self.catch_up_limit <= COUNT_MAX:
            return f"catch_up_limit: {self.catch_up_limit} is not within 1 and {COUNT_MAX}."
        return self.cadence.problem()


# ---- commands: each arrives on `workflow.commands` under the schedule's entity id ----


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePut:
    """Create or change a schedule. `source` says whose it is: a workflow's definition, or a person's."""

    entity_id: str
    command_id: str
    spec: ScheduleSpec
    paused: bool | None = None
    source: Literal["definition", "person"] = "person"
    type: Literal["schedule_put"] = "schedule_put"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDelete:
    """Forget the schedule; what runs goes on."""

    entity_id: str
    command_id: str
    type: Literal["schedule_delete"] = "schedule_delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePause:
    """Start nothing until it is resumed."""

    entity_id: str
    command_id: str
    type: Literal["schedule_pause"] = "schedule_pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleResume:
    """Go on with what is due from now on."""

    entity_id: str
    command_id: str
    type: Literal["schedule_resume"] = "schedule_resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRunNow:
    """Start once, now, whatever else runs and also while paused."""

    entity_id: str
    command_id: str
    type: Literal["schedule_run_now"] = "schedule_run_now"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityTold:
    """An execution that an entity asked to be told of has ended."""

    entity_id: str
    execution_id: str
    status: str
    workflow: str = ""
    at_ms: int = 0
    type: Literal["entity_told"] = "entity_told"


# ---- state and what is to be done ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One start: `due_ms` is its logical time; `asked_ms` when it was last asked for."""

    execution_id: str
    due_ms: int
    asked_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the times so far."""

    started: int = 0
    skipped: int = 0
    missed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """Everything up to `seen_ms` is dealt with. `waiting` are due times in line behind `running`."""

    name: str
    spec: ScheduleSpec
    seen_ms: int
    paused: bool = False
    source: Literal["definition", "person"] = "person"
    running: tuple[Run, ...] = ()
    waiting: tuple[int, ...] = ()
    counts: Counts = Counts()
    last_id: str | None = None
    last_due_ms: int | None = None
    last_status: str | None = None
    error: str | None = None
    recent: tuple[str, ...] = ()

    def next_ms(self) -> int | None:
        """When it is due next; None while it is paused."""
        return None if self.paused else self.spec.cadence.next_after(self.seen_ms)


@dataclass(frozen=True, slots=True)
class Decided:
    """The state after a decision, what to start and which executions to cancel (`cancelled_for` says why)."""

    state: ScheduleState
    starts: tuple[Run, ...] = ()
    cancels: tuple[str, ...] = ()


def put(state: ScheduleState | None, name: str, command: SchedulePut, now_ms: int) -> Decided:
    """The schedule as commanded; what the old one counted and runs is kept, as is a pause unless the command says."""
    if state is None:
        return Decided(
            ScheduleState(
                name=name, spec=command.spec, seen_ms=now_ms, paused=bool(command.paused), source=command.source
            )
        )
    moved = state.spec.cadence != command.spec.cadence
    changed = replace(state, spec=command.spec, source=command.source, error=None)
    if moved:
        changed = replace(changed, seen_ms=now_ms, waiting=())
    if command.paused is not None and command.paused != state.paused:
        return pause(changed) if command.paused else resume(changed, now_ms)
    return Decided(changed)


def pause(state: ScheduleState) -> Decided:
    """Nothing starts from now on; what is in line stays there."""
    return Decided(replace(state, paused=True))


def resume(state: ScheduleState, now_ms: int) -> Decided:
    """What was due meanwhile is passed over."""
    if not state.paused:
        return Decided(state)
    return _next_in_line(replace(state, paused=False, seen_ms=now_ms), now_ms)


def run_now(state: ScheduleState, command_id: str, now_ms: int) -> Decided:
    """One start beside everything else."""
    run = Run(execution_id=f"{state.name}-now-{command_id}", due_ms=now_ms, asked_ms=now_ms)
    return _started(state, (run,))


def advance(state: ScheduleState, now_ms: int) -> Decided:
    """Deal with everything that is due by now."""
    if state.paused:
        return Decided(state)
    if now_ms < state.seen_ms - CLOCK_BACK_MS:
        return Decided(replace(state, seen_ms=now_ms))
    if state.next_ms() is None or now_ms <= state.seen_ms:
        return Decided(state)
    spec = state.spec
    keep = spec.catch_up_limit if spec.catch_up == "all" else 1
    found = piled_up(spec.cadence, state.seen_ms, now_ms, keep)
    if not found.newest:
        return Decided(replace(state, seen_ms=now_ms))
    due = found.newest
    if spec.catch_up == "none" and now_ms - due[-1] > ON_TIME_MS:
        due = ()
    missed = state.counts.missed + found.in_all - len(due)
    seen = replace(state, seen_ms=found.newest[-1], counts=replace(state.counts, missed=missed))
    return _overlapping(seen, due, now_ms)


def told(state: ScheduleState, execution_id: str, status: str, now_ms: int) -> Decided:
    """A run has ended; the next in line may begin."""
    running = tuple(run for run in state.running if run.execution_id != execution_id)
    if len(running) == len(state.running):
        return Decided(state)
    last = status if execution_id == state.last_id else state.last_status
    return _next_in_line(replace(state, running=running, last_status=last), now_ms)


def withdrawn(state: ScheduleState, execution_id: str, reason: str) -> ScheduleState:
    """The start could not even be asked for: no such workflow, or an input it refuses."""
    counts = replace(state.counts, started=state.counts.started - 1, failed=state.counts.failed + 1)
    running = tuple(run for run in state.running if run.execution_id != execution_id)
    return replace(state, running=running, counts=counts, last_status="failed", error=reason)


def ask_again(state: ScheduleState, now_ms: int) -> Decided:
    """Runs that have not been heard of for long: to ask for them again is harmless, and their end is told again."""
    stale = [run for run in state.running if abs(now_ms - run.asked_ms) >= ASK_AGAIN_MS]
    asked = {run.execution_id: replace(run, asked_ms=now_ms) for run in stale}
    running = tuple(asked.get(run.execution_id, run) for run in state.running)
    return Decided(replace(state, running=running), tuple(asked.values()))


def remembered(state: ScheduleState, command_id: str) -> ScheduleState:
    """The same, knowing that a command was obeyed."""
    return replace(state, recent=(*state.recent, command_id)[-RECENT_COMMANDS:])


def execution_id(name: str, due_ms: int) -> str:
    """The same for the same time of the same schedule, so that it starts once."""
    return f"{name}-{stamp(due_ms)}"


def trigger(name: str, run: Run) -> dict[str, Any]:
    """What the execution knows of its beginning: `due_ms` is the logical time it is for."""
    return {"kind": "schedule", "schedule": name, "due_ms": run.due_ms, "due": iso(run.due_ms)}


def name_problem(name: str) -> str | None:
    """Why a schedule or backfill cannot be called so, in one sentence."""
    if _NAME.fullmatch(name) is None:
        return f"A name has 1 to 100 letters, digits, dots, dashes and underscores, and {name[:100]!r} is none."
    if name.startswith(RESERVED_PREFIX):
        return f"Names that begin with {RESERVED_PREFIX} are kept for executions of backfills."
    return None


# ---- parts of a decision ----


def _overlapping(state: ScheduleState, due: tuple[int, ...], now_ms: int) -> Decided:
    overlap = state.spec.overlap
    if overlap == "allow" or not due:
        return _started(state, tuple(_run(state, each, now_ms) for each in due), watched=False)
    if overlap == "cancel_running":
        # Only the newest would survive the others.
        state = _skipped(state, len(due) - 1)
        cancels = tuple(run.execution_id for run in state.running)
        decided = _started(replace(state, running=()), (_run(state, due[-1], now_ms),))
        return Decided(decided.state, decided.starts, cancels)
    if overlap == "queue":
        line = (*state.waiting, *due)
        state = _skipped(replace(state, waiting=line[:WAITING_MAX]), max(0, len(line) - WAITING_MAX))
        return _next_in_line(state, now_ms)
    if state.running:
        return Decided(_skipped(state, len(due)))
    # The first of several would be running when the second is due.
    return _started(_skipped(state, len(due) - 1), (_run(state, due[-1], now_ms),))


def _next_in_line(state: ScheduleState, now_ms: int) -> Decided:
    if state.paused or state.running or not state.waiting:
        return Decided(state)
    first, *others = state.waiting
    return _started(replace(state, waiting=tuple(others)), (_run(state, first, now_ms),))


def _run(state: ScheduleState, due_ms: int, now_ms: int) -> Run:
    return Run(execution_id=execution_id(state.name, due_ms), due_ms=due_ms, asked_ms=now_ms)


def _started(state: ScheduleState, runs: tuple[Run, ...], *, watched: bool = True) -> Decided:
    if not runs:
        return Decided(state)
    counts = replace(state.counts, started=state.counts.started + len(runs))
    running = (*state.running, *runs) if watched else state.running
    last = runs[-1]
    return Decided(
        replace(
            state,
            running=running,
            counts=counts,
            last_id=last.execution_id,
            last_due_ms=last.due_ms,
            last_status=None,
            error=None,
        ),
        runs,
    )


def _skipped(state: ScheduleState, count: int) -> ScheduleState:
    return replace(state, counts=replace(state.counts, skipped=state.counts.skipped + count))
