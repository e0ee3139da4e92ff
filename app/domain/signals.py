"""Rules compiled for the stream: what they make of samples, rollups and the passing of time."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from app.domain.reading import Sample
from app.domain.rollup import Rollup
from app.domain.signal_record import EXAMPLE_SIGNAL, Announcer, Signal, clearing, mapped
from app.domain.signal_rules import (
    CompileExpression,
    Condition,
    Crossover,
    DeviceTypeOf,
    Expression,
    Quality,
    RateOfChange,
    Rule,
    RuleProblems,
    Silence,
    Stuck,
    Threshold,
    ZScore,
    device_type_from_id,
)
from app.domain.signal_state import IDLE, RAISED, Cell, SignalState, Watch
from app.domain.signal_steps import (
    EXAMPLE_READING,
    condition_step,
    judge_of,
    quality_step,
    rate_step,
    reading_names,
    stuck_step,
    threshold_step,
)
from app.domain.signal_windows import (
    EXAMPLE_ROLLUP,
    crossover_step,
    rollup_names,
    window_condition_step,
    z_score_step,
)

# Metrics without a rule are remembered for a device up to this many, so that bad input cannot grow it.
_MAX_IDLE_METRICS = 256
# Cells a device may hold; beyond it no further metric of that device is watched, and it is counted.
MAX_CELLS = 4096
_NEVER = 1 << 62


class Watcher(NamedTuple):
    """One rule ready to run; `window_ms` None for rules over readings."""

    rule: Rule
    digest: str
    window_ms: int | None
    step: Callable[..., bool] | None
    announce: Announcer


def compile_rules(
    rules: Sequence[Rule],
    cel_compile: CompileExpression,
    device_type_of: DeviceTypeOf = device_type_from_id,
    *,
    max_ahead_ms: int = 60_000,
) -> "CompiledRules":
    """Make rules runnable; raises `RuleProblems` with every fault of every expression at once.

    Samples dated more than `max_ahead_ms` after they were recorded are not judged: one such jump of a
    device's clock would make the rules deaf to all that follows until then.
    """
    failures: Counter[str] = Counter()
    problems: list[str] = []
    seen: set[str] = set()
    watchers: list[Watcher] = []
    for rule in rules:
        if rule.id in seen:
            problems.append(f"rule {rule.id}: the id is used twice")
        seen.add(rule.id)
        watcher = _Workshop(rule, cel_compile, device_type_of, failures, problems).watcher()
        watchers.append(watcher)
    if problems:
        raise RuleProblems(tuple(problems))
    return CompiledRules(tuple(watchers), device_type_of, failures, max_ahead_ms)


class _Workshop:
    """Compiles one rule; faults go to `problems`."""

    def __init__(
        self,
        rule: Rule,
        cel_compile: CompileExpression,
        device_type_of: DeviceTypeOf,
        failures: Counter[str],
        problems: list[str],
    ) -> None:
        self._rule = rule
        self._compile = cel_compile
        self._device_type_of = device_type_of
        self._failures = failures
        self._problems = problems

    def watcher(self) -> Watcher:
        rule, test = self._rule, self._rule.test
        announce = self._announcer()
        window_ms = getattr(test, "window_ms", None) if isinstance(test, ZScore | Crossover | Condition) else None
        step: Callable[..., bool] | None
        when = self._judge("when", rule.when, over_window=window_ms is not None)
        match test:
            case Threshold():
                step = threshold_step(rule, test, announce, when)
            case RateOfChange():
                step = rate_step(rule, test, announce, when)
            case Stuck():
                step = stuck_step(test, announce, when)
            case Quality():
                step = quality_step(rule, test, announce, when)
            case ZScore():
                step = z_score_step(rule, test, announce, when)
            case Crossover():
                step = crossover_step(rule, test, announce, when)
            case Condition():
                step = self._condition(test, announce, when)
            case Silence():
                step = None
        return Watcher(rule, rule.digest(), window_ms, step, announce)

    def _condition(self, test: Condition, announce: Announcer, when: Any) -> Callable[..., bool] | None:
        over_window = test.window_ms is not None
        judge = self._judge("condition", test.expression, over_window=over_window)
        over = self._judge("clear_when", test.clear_when, over_window=over_window)
        if judge is None:
            return None
        make: Callable[..., Callable[..., bool]] = window_condition_step if over_window else condition_step
        return make(self._rule, test, announce, when, judge, over)

    def _judge(self, field: str, source: str | None, *, over_window: bool) -> Callable[..., bool | None] | None:
        if source is None:
            return None
        names: Mapping[str, Callable[..., Any]]
        if over_window:
            example, names = EXAMPLE_ROLLUP, rollup_names(self._device_type_of)
        else:
            example, names = EXAMPLE_READING, reading_names(self._device_type_of)
        expression = self._expression(field, source, example)
        if expression is None:
            return None
        return judge_of(expression, names, self._rule.id, self._fail)

    def _expression(self, field: str, source: str, example: Mapping[str, Any]) -> Expression | None:
        try:
            return self._compile(source, example)
        except ValueError as error:
            self._problems.append(f"rule {self._rule.id}: {field}: {error}")
            return None

    def _announcer(self) -> Announcer:
        start = self._rule.workflow
        inputs: dict[str, Any] = {}
        key: Any = None
        if start is not None:
            for name, given in start.input:
                inputs[name] = mapped(given, self._signal_expression(f"workflow.input.{name}"))
            key = mapped(start.key, self._signal_expression("workflow.concurrency_key"))
        return Announcer(self._rule, _limit_of(self._rule), inputs, key, self._device_type_of, self._fail)

    def _signal_expression(self, field: str) -> Callable[[str], Any]:
        return lambda source: self._expression(field, source, EXAMPLE_SIGNAL)

    def _fail(self, rule: str) -> None:
        self._failures[rule] += 1


def _limit_of(rule: Rule) -> float | None:
    """The number a signal shows as its threshold."""
    match rule.test:
        case Threshold(above=above, below=below):
            return above if above is not None else below
        case RateOfChange(limit=limit):
            return limit
        case ZScore(raise_at=raise_at):
            return raise_at
        case Crossover(band=band):
            return band
        case Stuck(duration_ms=duration_ms) | Silence(duration_ms=duration_ms):
            return duration_ms / 1000
        case Condition() | Quality():
            return None


class CompiledRules:
    """All rules at work, shared by every device.

    `failures` counts, a rule, expressions that gave no answer; `ahead` counts samples not judged
    because they are dated in the future, `crowded` metrics not watched because of `MAX_CELLS`; each
    since `take_missed` last took them.
    """

    def __init__(
        self,
        watchers: tuple[Watcher, ...],
        device_type_of: DeviceTypeOf,
        failures: Counter[str],
        max_ahead_ms: int,
    ) -> None:
        self.failures = failures
        self.ahead = 0
        self.crowded = 0
        self.rules = tuple(watcher.rule for watcher in watchers)
        self._device_type_of = device_type_of
        self._max_ahead_ms = max_ahead_ms
        self._watchers = {watcher.rule.id: watcher for watcher in watchers}
        self._samples = tuple(w for w in watchers if w.step is not None and w.window_ms is None)
        self._windows = tuple(w for w in watchers if w.step is not None and w.window_ms is not None)
        self._silences = tuple(w for w in watchers if w.step is None)
        durations = [w.rule.test.duration_ms for w in self._silences if isinstance(w.rule.test, Silence)]
        # A last-seen instant is saved this often, which is by how much a silence can be called early.
        self._seen_step_ms = min(durations) // 4 if durations else _NEVER
        self._by_type: dict[tuple[str, str], tuple[Watcher, ...]] = {}

    def needs(self, device_id: str, metric: str) -> bool:
        """True when some rule looks at this metric of this device, in readings or rollups."""
        kind = self._device_type_of(device_id)
        return any(
            w.rule.select.takes_device(device_id, kind) and w.rule.select.takes_metric(metric)
            for w in (*self._samples, *self._windows)
        )

    def windows_ms(self) -> frozenset[int]:
        """The rungs some rule looks at."""
        return frozenset(w.window_ms for w in self._windows if w.window_ms is not None)

    def on_sample(self, state: SignalState, sample: Sample, out: list[Signal]) -> None:
        """Judge every reading of a sample."""
        if state.rules is not self:
            self.adopt(state, out)
        recorded = sample[4]
        if recorded > state.last_seen:
            state.last_seen = recorded
            state.last_seq = sample[2]
            if recorded - state.saved_seen > self._seen_step_ms:
                state.dirty = True
            for _, watcher, cell in state.silences:
                if cell.phase == RAISED:
                    self._heard(state, watcher, cell, sample, out)
        if sample[3] > recorded + self._max_ahead_ms:
            self.ahead += 1
            return
        plan = state.plan
        for reading in sample[6]:
            watch = plan.get(reading[0])
            if watch is None:
                watch = self._watch(state, reading[0])
            for step, cell in watch:
                if step(cell, reading, sample, out):
                    state.dirty = True

    def on_rollup(self, state: SignalState, rollup: Rollup, out: list[Signal]) -> None:
        """Judge a rollup; one that may still be revised is passed over."""
        if not rollup.is_final:
            return
        if state.rules is not self:
            self.adopt(state, out)
        key = (rollup.metric, rollup.window_ms)
        watch = state.rollup_plan.get(key)
        if watch is None:
            watch = self._watch_window(state, *key)
        for step, cell in watch:
            if step(cell, rollup, out):
                state.dirty = True

    @property
    def missed(self) -> bool:
        """Whether something could not be judged since `take_missed`."""
        return bool(self.failures or self.ahead or self.crowded)

    def take_missed(self) -> tuple[dict[str, int], int, int]:
        """(`failures`, `ahead`, `crowded`) since the last call."""
        taken = dict(self.failures), self.ahead, self.crowded
        self.failures.clear()  # the compiled steps count in this very object
        self.ahead = self.crowded = 0
        return taken

    def on_tick(self, states_due: Iterable[SignalState], now_ms: int, out: list[Signal], since_ms: int = 0) -> None:
        """Raise the silences that are due at `now_ms`, wall time on the clock of `recorded_timestamp`.

        `since_ms` is from when on the stage has heard all that was said: what a stage that was behind, or
        just began, has not read yet is not silence (docs/signals.md). Only the raising waits for it; the
        signal is dated as ever.
        """
        for state in states_due:
            if state.rules is not self:
                self.adopt(state, out)
            for duration_ms, watcher, cell in state.silences:
                due = state.last_seen + duration_ms
                heard = now_ms >= max(state.last_seen, since_ms) + duration_ms
                if cell.phase == IDLE and state.last_seen >= 0 and heard:
                    cell.phase = RAISED
                    cell.since, cell.at, cell.value = state.last_seen, due, float(state.last_seen)
                    evidence = {"last_seen": state.last_seen, "seq": state.last_seq}
                    origin = f"{state.last_seen}:{state.last_seq}"
                    watcher.announce.raised(
                        cell, state.device_id, due, origin, duration_ms / 1000, "SEC", evidence, out
                    )
                    state.dirty = True

    def next_deadline(self, state: SignalState, since_ms: int = 0) -> int | None:
        """When `on_tick` may next have something to say about this device; None: not before a sample."""
        if state.rules is not self:
            return 0
        from_ms = max(state.last_seen, since_ms)
        due = [from_ms + duration for duration, _, cell in state.silences if cell.phase == IDLE]
        return min(due) if due and state.last_seen >= 0 else None

    def adopt(self, state: SignalState, out: list[Signal]) -> None:
        """Fit a state to these rules: cells of changed or removed rules go, and what they held up is cleared."""
        for key, cell in list(state.cells.items()):
            watcher = self._watchers.get(cell.rule)
            if watcher is not None and watcher.digest == cell.digest:
                continue
            if cell.phase >= RAISED:
                reason = "rule removed" if watcher is None else "rule changed"
                out.append(clearing(cell, state.device_id, cell.at, None, None, {"reason": reason}))
            del state.cells[key]
            state.dirty = True
        state.plan = {}
        state.rollup_plan = {}
        kind = self._device_type_of(state.device_id)
        state.silences = tuple(
            (w.rule.test.duration_ms, w, self._cell(state, w, None))
            for w in self._silences
            if isinstance(w.rule.test, Silence) and w.rule.select.takes_device(state.device_id, kind)
        )
        state.rules = self

    def _heard(self, state: SignalState, watcher: Watcher, cell: Cell, sample: Sample, out: list[Signal]) -> None:
        cell.phase = IDLE
        evidence = {"last_seen": cell.since, "seq": sample.seq, "session_id": sample.session_id}
        silent_s = (sample.recorded_timestamp - cell.since) / 1000
        watcher.announce.cleared(cell, state.device_id, sample.recorded_timestamp, silent_s, evidence, out)
        state.dirty = True

    def _watch(self, state: SignalState, metric: str) -> Watch:
        watch = tuple(
            (w.step, self._cell(state, w, metric)) for w in self._chosen(state, metric) if w.window_ms is None
        )
        return self._remember(state.plan, metric, watch)

    def _watch_window(self, state: SignalState, metric: str, window_ms: int) -> Watch:
        watch = tuple(
            (w.step, self._cell(state, w, metric)) for w in self._chosen(state, metric) if w.window_ms == window_ms
        )
        return self._remember(state.rollup_plan, (metric, window_ms), watch)

    def _remember(self, plan: dict[Any, Watch], key: Any, watch: Any) -> Watch:
        if watch or len(plan) < _MAX_IDLE_METRICS:
            plan[key] = watch
        found: Watch = watch
        return found

    def _chosen(self, state: SignalState, metric: str) -> tuple[Watcher, ...]:
        """The rules over this metric of this device, chosen once a device type and metric."""
        kind = self._device_type_of(state.device_id)
        chosen = self._by_type.get((kind, metric))
        if chosen is None:
            chosen = tuple(
                w
                for w in (*self._samples, *self._windows)
                if w.rule.select.takes_metric(metric)
                and (not w.rule.select.device_types or kind in w.rule.select.device_types)
            )
            if len(self._by_type) < MAX_CELLS:
                self._by_type[kind, metric] = chosen
        taken = tuple(w for w in chosen if w.rule.select.takes_device(state.device_id, kind))
        if taken and len(state.cells) + len(taken) > MAX_CELLS and (taken[0].rule.id, metric) not in state.cells:
            self.crowded += 1
            return ()
        return taken

    def _cell(self, state: SignalState, watcher: Watcher, metric: str | None) -> Cell:
        key = (watcher.rule.id, metric)
        cell = state.cells.get(key)
        if cell is None:
            cell = state.cells[key] = Cell(watcher.rule.id, metric, watcher.digest, watcher.announce.kind)
        return cell
