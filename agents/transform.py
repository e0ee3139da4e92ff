"""The transform stage of one partition: validate, deduplicate, roll up, raise signals; one decision a batch."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from app import metrics
from app.codec import decode_sample, encode_dead_letter_record, encode_late, encode_rollup, encode_signal
from app.domain.deadletter import Origin, dead_letter
from app.domain.idle import IdleClock
from app.domain.reading import Limits, Rejected, Sample
from app.domain.rollup import DeviceState, Outcome, advance_idle, idle_deadline_ms, process_device
from app.domain.signal_record import Signal
from app.domain.signal_state import SignalState
from app.domain.signals import CompiledRules
from app.domain.window import RollupSpec
from app.ports import InRecord, OutRecord
from config.topics import DEVICE_DEADLETTER, DEVICE_LATE, DEVICE_ROLLUPS, DEVICE_SIGNALS
from tables import signals as signal_table
from tables import telemetry as device_table
from tables.partition import Changes, TablePartition

SIGNAL_PREFIX = b"s"
# Devices looked at in one tick; the rest wait for the next one, so that a tick never holds up a batch for long.
TICK_DEVICES = 2_000


class Terms(NamedTuple):
    """What the stage goes by; replaced whole when the settings change."""

    limits: Limits
    spec: RollupSpec
    rules: CompiledRules
    dead_letter_keep_bytes: int
    cache_devices: int
    signals_enabled: bool = True
    silence_tick_ms: int = 1_000


class Transform:
    """Decides the batches of one partition; owns the cached states of its devices."""

    def __init__(self, tables: TablePartition, terms: Callable[[], Terms], now_ms: int) -> None:
        self._tables = tables
        self._terms = terms
        self._devices: OrderedDict[str, DeviceState] = OrderedDict()
        self._signals: OrderedDict[str, SignalState] = OrderedDict()
        self._idle = IdleClock()
        self._silent = IdleClock()
        self._live_since_ms = now_ms
        self._listening_since_ms = now_ms  # not before `live_since`, nor while signals were off
        self._silence_looked_ms = now_ms
        self._rules: CompiledRules | None = None
        self._wake_all(now_ms)

    def take(self, records: Sequence[InRecord], now_ms: int, *, behind: bool) -> Changes:
        """Decide one batch. Time passes for silent devices only while the stage keeps up with its input."""
        terms = self._terms()
        if behind:
            self._live_since_ms = self._listening_since_ms = now_ms
        changes = Changes()
        by_device = self._read(records, terms, now_ms, changes)
        outcome = Outcome()
        for device_id, samples in by_device.items():
            process_device(self._device(device_id, terms.spec), samples, terms.spec, now_ms, outcome)
        self._conclude(outcome, terms, now_ms, changes, (), records[0])
        return changes

    def tick(self, now_ms: int) -> Changes | None:
        """Close what silent devices left open and raise the silences that are due."""
        terms = self._terms()
        outcome = Outcome()
        for device_id in self._idle.due(now_ms, TICK_DEVICES):
            state = self._device(device_id, terms.spec)
            advance_idle(state, terms.spec, now_ms, self._live_since_ms, outcome)
            self._idle.touch(device_id, idle_deadline_ms(state, terms.spec, self._live_since_ms))
        silent = self._silent_devices(terms, now_ms)
        if not silent and not outcome.changed:
            return None
        changes = Changes()
        self._conclude(outcome, terms, now_ms, changes, silent, None)
        return changes if changes.rows or changes.outputs else None

    # ---- parts of a decision ----

    def _silent_devices(self, terms: Terms, now_ms: int) -> list[SignalState]:
        """The devices that may have been silent for too long, every `silence_tick_ms`."""
        if not terms.signals_enabled:
            self._listening_since_ms = now_ms
            return []
        if abs(now_ms - self._silence_looked_ms) < terms.silence_tick_ms:
            return []
        self._silence_looked_ms = now_ms
        if terms.rules is not self._rules:
            # A silent device hears of new rules too: one may be about it, or what an old one raised must be cleared.
            self._rules = terms.rules
            for device_id in self._known_devices():
                self._silent.touch(device_id, now_ms)
        return [self._signal(device_id) for device_id in self._silent.due(now_ms, TICK_DEVICES)]

    def _read(
        self, records: Sequence[InRecord], terms: Terms, now_ms: int, changes: Changes
    ) -> dict[str, list[tuple[int, Sample]]]:
        """Samples by device, in the order of their offsets; what cannot be read becomes a dead letter."""
        by_device: dict[str, list[tuple[int, Sample]]] = {}
        limits = terms.limits
        for record in records:
            sample = decode_sample(record.value, record.key, limits, now_ms)
            if sample.__class__ is Sample:
                found = by_device.get(sample[0])
                if found is None:
                    by_device[sample[0]] = [(record.offset, sample)]
                else:
                    found.append((record.offset, sample))
            else:
                assert isinstance(sample, Rejected)
                changes.outputs.append(_bury(record, sample, terms.dead_letter_keep_bytes, now_ms))
        return by_device

    def _conclude(
        self,
        outcome: Outcome,
        terms: Terms,
        now_ms: int,
        changes: Changes,
        silent: Sequence[SignalState],
        first: InRecord | None,
    ) -> None:
        """Signals, outputs, rows and deadlines of what the devices' states became."""
        signals: list[Signal] = []
        if terms.signals_enabled:
            touched = self._judge(outcome, terms.rules, silent, now_ms, signals)
        else:
            touched = []
            self._listening_since_ms = now_ms
        outputs = changes.outputs
        for rollup in outcome.rollups:
            outputs.append(OutRecord(DEVICE_ROLLUPS.name, rollup[0].encode(), encode_rollup(rollup), now_ms))
        if first is not None:
            for late in outcome.late:
                value = encode_late(late, first.topic, first.partition)
                outputs.append(OutRecord(DEVICE_LATE.name, late.sample.device_id.encode(), value, now_ms))
        for signal in signals:
            outputs.append(OutRecord(DEVICE_SIGNALS.name, signal.device_id.encode(), encode_signal(signal), now_ms))
        for state, windows in outcome.changed:
            for key, value in device_table.encode_changes(state, windows, terms.spec):
                changes.put(key, value)
            self._idle.touch(state.device_id, idle_deadline_ms(state, terms.spec, self._live_since_ms))
        for watched in touched:
            if watched.dirty:
                changes.put(SIGNAL_PREFIX + signal_table.key(watched.device_id), signal_table.to_bytes(watched))
            self._silent.touch(watched.device_id, terms.rules.next_deadline(watched, self._listening_since_ms))
        _count(outcome, signals)
        _count_rules(terms.rules)
        _trim(self._devices, terms.cache_devices)
        _trim(self._signals, terms.cache_devices)

    def _judge(
        self,
        outcome: Outcome,
        rules: CompiledRules,
        silent: Sequence[SignalState],
        now_ms: int,
        signals: list[Signal],
    ) -> list[SignalState]:
        """Run the rules over accepted samples, rollups and silent devices; the states they touched."""
        touched: dict[str, SignalState] = {state.device_id: state for state in silent}
        for sample in outcome.accepted:
            state = touched.get(sample[0]) or self._signal(sample[0])
            touched[sample[0]] = state
            rules.on_sample(state, sample, signals)
        for rollup in outcome.rollups:
            if rollup.is_final:
                state = touched.get(rollup[0]) or self._signal(rollup[0])
                touched[rollup[0]] = state
                rules.on_rollup(state, rollup, signals)
        rules.on_tick(silent, now_ms, signals, self._listening_since_ms)
        return list(touched.values())

    # ---- states ----

    def _device(self, device_id: str, spec: RollupSpec) -> DeviceState:
        state = self._devices.get(device_id)
        if state is None:
            state = self._devices[device_id] = device_table.load_device(device_id, self._tables.get, spec)
        else:
            self._devices.move_to_end(device_id)
        return state

    def _signal(self, device_id: str) -> SignalState:
        state = self._signals.get(device_id)
        if state is None:
            raw = self._tables.get(SIGNAL_PREFIX + signal_table.key(device_id))
            state = self._signals[device_id] = signal_table.from_bytes(device_id, raw)
        else:
            self._signals.move_to_end(device_id)
        return state

    def _wake_all(self, now_ms: int) -> None:
        """After opening: every known device may have something left to close."""
        for device_id in self._known_devices():
            self._idle.touch(device_id, now_ms)

    def _known_devices(self) -> Iterator[str]:
        for key, _ in self._tables.range(device_table.HEADER_PREFIX, next_prefix(device_table.HEADER_PREFIX)):
            yield device_table.device_of(key)


def next_prefix(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`, whose last byte is below 0xff."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def _bury(record: InRecord, rejected: Rejected, keep_bytes: int, now_ms: int) -> OutRecord:
    metrics.DEAD_LETTERS.labels(rejected.reason).inc()
    origin = Origin(
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, record.headers
    )
    letter = dead_letter(
        origin,
        stage="transform",
        reason=rejected.reason,
        detail=rejected.detail,
        now_ms=now_ms,
        keep_bytes=keep_bytes,
    )
    return OutRecord(DEVICE_DEADLETTER.name, letter.key, encode_dead_letter_record(letter), now_ms)


def _count(outcome: Outcome, signals: Sequence[Signal]) -> None:
    windows: dict[int, int] = {}
    for rollup in outcome.rollups:
        windows[rollup.window_ms] = windows.get(rollup.window_ms, 0) + 1
    for window_ms, count in windows.items():
        metrics.ROLLUPS.labels(window_name(window_ms)).inc(count)
    if outcome.late:
        metrics.LATE.inc(len(outcome.late))
    if outcome.duplicates:
        metrics.DUPLICATES.inc(outcome.duplicates)
    if outcome.gaps:
        metrics.GAPS.inc(outcome.gaps)
    for signal in signals:
        if signal.state == "raised":
            metrics.SIGNALS.labels(signal.rule, signal.severity).inc()


def _count_rules(rules: CompiledRules) -> None:
    """What the rules could not judge, since the last look."""
    if not rules.missed:
        return
    failures, ahead, crowded = rules.take_missed()
    for rule, count in failures.items():
        metrics.RULE_FAILURES.labels(rule).inc(count)
    metrics.SIGNAL_SAMPLES_AHEAD.inc(ahead)
    metrics.SIGNAL_METRICS_CROWDED.inc(crowded)


def window_name(window_ms: int) -> str:
    """A window's size as people say it: 10s, 5m, 1h; else in milliseconds."""
    for unit_ms, unit in ((3_600_000, "h"), (60_000, "m"), (1_000, "s")):
        if window_ms % unit_ms == 0:
            return f"{window_ms // unit_ms}{unit}"
    return f"{window_ms}ms"


def _trim(cache: "OrderedDict[str, Any]", limit: int) -> None:
    """Forget the states used longest ago; their rows are in the tables."""
    while len(cache) > limit:
        cache.popitem(last=False)
