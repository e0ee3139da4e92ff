"""Schedules and backfills as the engine's entities: what they are told, remembered as rows, answered with starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from agents.engine_entities import (
    BACKFILL_PREFIX,
    ENTITY_ROWS,
    SCHEDULE_PREFIX,
    EntityCommand,
    EntityOutcome,
    GetRow,
    TimerChange,
)
from app.domain.workflow import backfill, schedule
from app.domain.workflow.backfill import BackfillCancel, BackfillSpec, BackfillStart, BackfillState
from app.domain.workflow.commands import Cancel, Start
from app.domain.workflow.definition import Workflow
from app.domain.workflow.expressions import ExpressionError, Expressions
from app.domain.workflow.schedule import (
    EntityTold,
    Run,
    ScheduleDelete,
    SchedulePause,
    SchedulePut,
    ScheduleResume,
    ScheduleRunNow,
    ScheduleSpec,
    ScheduleState,
    name_problem,
)
from app.ports import Definitions, OutRecord
from app.workflow_starts import start_of
from config.topics import WORKFLOW_DEFINITIONS

State = ScheduleState | BackfillState

# The one timer of an entity: it looks at everything that may be due.
TIMER: Final = "look"
# A summary is a record of a compacted topic: at most one a second of an entity that is busy.
SUMMARY_INTERVAL_MS: Final = 1_000
RUNNING_SHOWN: Final = 20

_COMMANDS: Final[Mapping[str, type]] = {
    "schedule_put": SchedulePut,
    "schedule_delete": ScheduleDelete,
    "schedule_pause": SchedulePause,
    "schedule_resume": ScheduleResume,
    "schedule_run_now": ScheduleRunNow,
    "backfill_start": BackfillStart,
    "backfill_cancel": BackfillCancel,
    "entity_told": EntityTold,
}
_encode: Final = msgspec.json.Encoder().encode


class _ScheduleRow(msgspec.Struct):
    state: ScheduleState
    summary_ms: int = 0
    untold: bool = False


class _BackfillRow(msgspec.Struct):
    state: BackfillState
    summary_ms: int = 0
    untold: bool = False


_Row = _ScheduleRow | _BackfillRow
_schedule_row: Final = msgspec.json.Decoder(_ScheduleRow)
_backfill_row: Final = msgspec.json.Decoder(_BackfillRow)


class _Refused(Exception):
    """A command that cannot be obeyed; the message is one sentence."""


class Timekeeper:
    """The entities of one partition (`agents.engine_entities.Entities`)."""

    def __init__(
        self, get: GetRow, definitions: Definitions, expressions: Expressions, partitions: Callable[[], int]
    ) -> None:
        """`partitions` is the number of those that executions live on."""
        self._get = get
        self._definitions = definitions
        self._expressions = expressions
        self._partitions = partitions

    def take(self, command: EntityCommand, now_ms: int) -> EntityOutcome:
        """Obey or refuse a command; a repetition changes nothing."""
        try:
            decoded = _decoded(command)
            row = self._row_or_none(command.entity_id, decoded)
            if row is None:
                return self._create(command, decoded, now_ms)
            if isinstance(row, _ScheduleRow):
                return self._of_schedule(command, decoded, row, now_ms)
            return self._of_backfill(command, decoded, row, now_ms)
        except _Refused as refused:
            return EntityOutcome(refused=str(refused))

    def timer(self, entity_id: str, name: str, due_ms: int, now_ms: int) -> EntityOutcome:
        """Look at what is due, whatever the timer was set for."""
        del name, due_ms
        row = self._row(entity_id)
        if row is None:
            return EntityOutcome()
        if isinstance(row, _ScheduleRow):
            stale = schedule.ask_again(row.state, now_ms)
            decided = schedule.advance(stale.state, now_ms)
            return self._answer(
                entity_id, row, decided.state, decided.starts, decided.cancels, now_ms, asked=stale.starts
            )
        silent = backfill.ask_again(row.state, now_ms)
        filled = backfill.fill(silent.state, now_ms)
        return self._answer(entity_id, row, filled.state, filled.starts, (), now_ms, asked=silent.starts)

    # ---- commands ----

    def _create(self, command: EntityCommand, decoded: Any, now_ms: int) -> EntityOutcome:
        """What may be said to an entity that there is not."""
        name = _name(command.entity_id)
        if isinstance(decoded, SchedulePut):
            decided = schedule.put(None, name, decoded, now_ms)
            state = schedule.remembered(decided.state, decoded.command_id)
            return self._answer(command.entity_id, _ScheduleRow(state), state, (), (), now_ms, tell=True)
        if isinstance(decoded, BackfillStart):
            try:
                self._workflow(decoded.spec)
            except ExpressionError as error:
                raise _Refused(str(error)) from error
            filled = backfill.begin(name, decoded, now_ms)
            row = _BackfillRow(filled.state)
            return self._answer(command.entity_id, row, filled.state, filled.starts, (), now_ms, tell=True)
        if isinstance(decoded, EntityTold | ScheduleDelete):
            return EntityOutcome()
        raise _Refused(f"There is no {command.entity_id.replace(':', ' ')}.")

    def _of_schedule(self, command: EntityCommand, decoded: Any, row: _ScheduleRow, now_ms: int) -> EntityOutcome:
        state, entity_id = row.state, command.entity_id
        if isinstance(decoded, EntityTold):
            ended = schedule.told(state, decoded.execution_id, decoded.status, now_ms)
            if ended.state is state:
                return EntityOutcome()
            return self._answer(entity_id, row, ended.state, ended.starts, ended.cancels, now_ms)
        if decoded.command_id in state.recent:
            return EntityOutcome()
        if isinstance(decoded, ScheduleDelete):
            gone = OutRecord(WORKFLOW_DEFINITIONS.name, entity_id.encode(), None, now_ms, (), 0)
            return EntityOutcome({_key(entity_id): None}, timers=(TimerChange(TIMER, None),), summaries=(gone,))
        if isinstance(decoded, SchedulePut):
            decided = schedule.put(state, state.name, decoded, now_ms)
        elif isinstance(decoded, SchedulePause):
            decided = schedule.pause(state)
        elif isinstance(decoded, ScheduleResume):
            decided = schedule.resume(state, now_ms)
        elif isinstance(decoded, ScheduleRunNow):
            decided = schedule.run_now(state, decoded.command_id, now_ms)
        else:
            raise _Refused(f"A schedule does not obey {command.type}.")
        after = schedule.remembered(decided.state, decoded.command_id)
        return self._answer(entity_id, row, after, decided.starts, decided.cancels, now_ms, tell=True)

    def _of_backfill(self, command: EntityCommand, decoded: Any, row: _BackfillRow, now_ms: int) -> EntityOutcome:
        state, entity_id = row.state, command.entity_id
        if isinstance(decoded, EntityTold):
            filled = backfill.told(state, decoded.execution_id, decoded.status, now_ms)
            if filled.state is state:
                return EntityOutcome()
            return self._answer(entity_id, row, filled.state, filled.starts, filled.cancels, now_ms)
        if decoded.command_id in state.recent:
            return EntityOutcome()
        if isinstance(decoded, BackfillCancel):
            filled = backfill.cancel(state, now_ms, running=decoded.running)
            after = backfill.remembered(filled.state, decoded.command_id)
            return self._answer(entity_id, row, after, filled.starts, filled.cancels, now_ms, tell=True)
        if isinstance(decoded, BackfillStart):
            raise _Refused(f"There is a backfill {state.name} already; a name is used once.")
        raise _Refused(f"A backfill does not obey {command.type}.")

    # ---- answers ----

    def _answer(
        self,
        entity_id: str,
        row: _Row,
        state: State,
        runs: Sequence[Run],
        cancels: Sequence[str],
        now_ms: int,
        *,
        tell: bool = False,
        asked: Sequence[Run] = (),
    ) -> EntityOutcome:
        """The rows, starts, timer and summary of a decision.

        `tell` has the summary written at once; `asked` are runs to ask for once more.
        """
        state, again = self._starts(state, entity_id, asked, now_ms, keep_ids=True)
        state, starts = self._starts(state, entity_id, runs, now_ms, keep_ids=False)
        tell = tell or _is_over(state) or abs(now_ms - row.summary_ms) >= SUMMARY_INTERVAL_MS
        summary_ms = now_ms if tell else row.summary_ms
        after = (
            _ScheduleRow(state, summary_ms, not tell)
            if isinstance(state, ScheduleState)
            else _BackfillRow(state, summary_ms, not tell)
        )
        return EntityOutcome(
            rows={_key(entity_id): _encode(after)},
            starts=(*again, *starts),
            cancels=tuple(_cancel(each, state.name, now_ms) for each in cancels),
            timers=(TimerChange(TIMER, _look_ms(after, now_ms)),),
            summaries=(_summary(entity_id, state, now_ms),) if tell else (),
        )

    def _starts(
        self, state: State, entity_id: str, runs: Sequence[Run], now_ms: int, *, keep_ids: bool
    ) -> tuple[State, tuple[Start, ...]]:
        """The starts of runs, which get their placed ids here; a run that cannot be started is withdrawn.

        One that is asked for once more keeps its id, even if its workflow would place it elsewhere by now.
        """
        starts: list[Start] = []
        for run in runs:
            try:
                start = self._start(state, entity_id, run, now_ms)
            except ExpressionError as error:
                state = _withdrawn(state, run.execution_id, str(error))
                continue
            if keep_ids:
                start = replace(start, execution_id=run.execution_id)
            state = _renamed(state, run.execution_id, start.execution_id)
            starts.append(start)
        return state, tuple(starts)

    def _start(self, state: State, entity_id: str, run: Run, now_ms: int) -> Start:
        workflow = self._workflow(state.spec)
        watched = any(each.execution_id == run.execution_id for each in state.running)
        of = schedule.trigger if isinstance(state, ScheduleState) else backfill.trigger
        return start_of(
            workflow,
            run.execution_id,
            dict(state.spec.input),
            of(state.name, run),
            self._expressions,
            self._partitions(),
            at_ms=now_ms,
            notify=entity_id if watched else None,
        )

    def _workflow(self, spec: ScheduleSpec | BackfillSpec) -> Workflow:
        if spec.version is None:
            found = self._definitions.latest(spec.workflow)
        else:
            found = self._definitions.get(spec.workflow, spec.version)
        if found is None:
            version = f" has no version {spec.version}" if spec.version else " is not registered"
            raise ExpressionError(f"Workflow {spec.workflow}{version}.")
        return found

    # ---- rows ----

    def _row_or_none(self, entity_id: str, decoded: Any) -> _Row | None:
        """A row that cannot be read stands in the way of nobody who puts the schedule anew."""
        try:
            return self._row(entity_id)
        except msgspec.DecodeError as error:
            if isinstance(decoded, SchedulePut):
                return None
            raise _Refused(f"What is remembered of {entity_id} cannot be read: {error}.") from error

    def _row(self, entity_id: str) -> _Row | None:
        raw = self._get(_key(entity_id))
        if raw is None:
            return None
        return _schedule_row.decode(raw) if entity_id.startswith(SCHEDULE_PREFIX) else _backfill_row.decode(raw)


def _decoded(command: EntityCommand) -> Any:
    cls = _COMMANDS.get(command.type)
    if cls is None:
        raise _Refused(f"No command of schedules and backfills is called {command.type!r}.")
    try:
        decoded: Any = msgspec.convert(command.body, cls)
    except msgspec.ValidationError as error:
        raise _Refused(f"A {command.type} cannot be read: {error}.") from error
    problem = None if isinstance(decoded, EntityTold) else name_problem(_name(command.entity_id))
    if problem is None and isinstance(decoded, SchedulePut | BackfillStart):
        problem = decoded.spec.problem()
    if problem is not None:
        raise _Refused(problem)
    wanted = BACKFILL_PREFIX if isinstance(decoded, BackfillStart | BackfillCancel) else SCHEDULE_PREFIX
    if not isinstance(decoded, EntityTold) and not command.entity_id.startswith(wanted):
        raise _Refused(f"{command.entity_id} does not obey {command.type}.")
    return decoded


def _name(entity_id: str) -> str:
    return entity_id.partition(":")[2]


def _key(entity_id: str) -> bytes:
    return ENTITY_ROWS + entity_id.encode()


def _cancel(execution_id: str, name: str, now_ms: int) -> Cancel:
    return Cancel(
        execution_id=execution_id, command_id=f"{name}@{now_ms}", reason=f"{name} gave its place to a later run."
    )


def _renamed(state: State, before: str, after: str) -> State:
    if before == after:
        return state
    running = tuple(replace(run, execution_id=after) if run.execution_id == before else run for run in state.running)
    if isinstance(state, ScheduleState) and state.last_id == before:
        return replace(state, running=running, last_id=after)
    return replace(state, running=running)


def _withdrawn(state: State, execution_id: str, reason: str) -> State:
    if isinstance(state, ScheduleState):
        return schedule.withdrawn(state, execution_id, reason)
    return backfill.withdrawn(state, execution_id, reason)


def _is_over(state: State) -> bool:
    return isinstance(state, BackfillState) and state.status != "running" and not state.running


def _look_ms(row: _Row, now_ms: int) -> int | None:
    """When to look next: at what is due, at what has been silent for long, at a summary that is to be written."""
    state = row.state
    wanted = [run.asked_ms + schedule.ASK_AGAIN_MS for run in state.running]
    if row.untold:
        wanted.append(row.summary_ms + SUMMARY_INTERVAL_MS)
    if isinstance(state, ScheduleState) and (next_ms := state.next_ms()) is not None:
        wanted.append(next_ms)
    if isinstance(state, BackfillState) and state.status == "running" and len(state.running) < state.spec.concurrency:
        wanted.append(now_ms + SUMMARY_INTERVAL_MS)
    return min(wanted, default=None)


def _summary(entity_id: str, state: State, now_ms: int) -> OutRecord:
    document = _schedule_document(state) if isinstance(state, ScheduleState) else _backfill_document(state)
    value = _encode({**document, "updated_at": now_ms})
    return OutRecord(WORKFLOW_DEFINITIONS.name, entity_id.encode(), value, now_ms, (), 0)


def _schedule_document(state: ScheduleState) -> dict[str, Any]:
    spec, counts = state.spec, state.counts
    return {
        "id": state.name,
        "workflow": spec.workflow,
        "version": spec.version,
        "cron": spec.cadence.cron,
        "every_s": None if spec.cadence.every_ms is None else spec.cadence.every_ms / 1000,
        "timezone": spec.cadence.timezone,
        "input": spec.input,
        "overlap": spec.overlap,
        "catch_up": spec.catch_up,
        "catch_up_limit": spec.catch_up_limit,
        "paused": state.paused,
        "source": state.source,
        "next_at": state.next_ms(),
        "running": [run.execution_id for run in state.running[:RUNNING_SHOWN]],
        "waiting": len(state.waiting),
        "started": counts.started,
        "skipped": counts.skipped,
        "missed": counts.missed,
        "failed": counts.failed,
        "last_execution_id": state.last_id,
        "last_due_at": state.last_due_ms,
        "last_status": state.last_status,
        "error": state.error,
        "command_id": state.recent[-1] if state.recent else None,
    }


def _backfill_document(state: BackfillState) -> dict[str, Any]:
    spec = state.spec
    return {
        "id": state.name,
        "workflow": spec.workflow,
        "version": spec.version,
        "cron": spec.cadence.cron,
        "every_s": None if spec.cadence.every_ms is None else spec.cadence.every_ms / 1000,
        "timezone": spec.cadence.timezone,
        "input": spec.input,
        "from": spec.from_ms,
        "to": spec.to_ms,
        "concurrency": spec.concurrency,
        "status": state.status,
        "total": state.total,
        "started": state.started,
        "succeeded": state.succeeded,
        "failed": state.failed,
        "skipped": state.skipped,
        "failed_due_at": state.failed_due,
        "running": [run.execution_id for run in state.running[:RUNNING_SHOWN]],
        "running_count": len(state.running),
        "taken_until": state.taken_ms,
        "created_at": state.created_ms,
        "ended_at": state.ended_ms,
        "error": state.error,
        "command_id": state.recent[-1] if state.recent else None,
    }
