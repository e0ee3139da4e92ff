"""The rules that look at each reading, as functions compiled from their declarations."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from app.domain.reading import Reading, Sample
from app.domain.signal_record import Announcer, Signal
from app.domain.signal_rules import (
    Condition,
    DeviceTypeOf,
    Expression,
    ExpressionFailed,
    Quality,
    RateOfChange,
    Rule,
    Stuck,
    Threshold,
)
from app.domain.signal_state import CLEAR, IDLE, NOTHING, RAISE, RAISED, Cell, advance

# A step judges one reading, appends signals and tells whether its cell must be saved.
Step = Callable[[Cell, Reading, Sample, list[Signal]], bool]
Failed = Callable[[str], None]
Filter = Callable[[Reading, Sample], bool | None]

# A value without a measurement behind it proves nothing about the process.
_UNUSABLE = frozenset(("BAD", "STALE"))
# Slope points kept a window: the slope then spans between 7/8 and 9/8 of it.
_POINTS = 8

EXAMPLE_READING: Mapping[str, Any] = {
    "value": 1.0, "unit": "CEL", "quality": "GOOD", "status_code": 0, "metric": "temperature",
    "device_id": "press-0001", "device_type": "press", "seq": 1, "session_id": 1, "source_timestamp": 1,
    "recorded_timestamp": 1, "is_historical": False,
}  # fmt: skip


def reading_names(device_type_of: DeviceTypeOf) -> dict[str, Callable[[Reading, Sample], Any]]:
    """How each name an expression over a reading may use is found."""
    return {
        "value": lambda reading, _: reading.value,
        "unit": lambda reading, _: reading.unit,
        "quality": lambda reading, _: reading.quality,
        "status_code": lambda reading, _: reading.status_code,
        "metric": lambda reading, _: reading.metric,
        "device_id": lambda _, sample: sample.device_id,
        "device_type": lambda _, sample: device_type_of(sample.device_id),
        "seq": lambda _, sample: sample.seq,
        "session_id": lambda _, sample: sample.session_id,
        "source_timestamp": lambda _, sample: sample.source_timestamp,
        "recorded_timestamp": lambda _, sample: sample.recorded_timestamp,
        "is_historical": lambda _, sample: sample.is_historical,
    }


def judge_of(
    expression: Expression, names: Mapping[str, Callable[..., Any]], rule: str, failed: Failed
) -> Callable[..., bool | None]:
    """A function of the rule's subject: true, false, or None when there is no answer.

    A null value is an everyday case (quality BAD), so it is None without being counted as a failure,
    unless the expression can do without the value.
    """
    wanted = [(name, names[name]) for name in sorted(expression.variables)]

    def judge(*subject: Any) -> bool | None:
        values = {name: get(*subject) for name, get in wanted}
        try:
            answer = expression(values)
        except ExpressionFailed:
            if None not in values.values():
                failed(rule)
            return None
        if answer is True or answer is False:
            return answer
        failed(rule)
        return None

    return judge


def _evidence(reading: Reading, sample: Sample, cell: Cell, **facts: Any) -> dict[str, Any]:
    return {
        "since": cell.since,
        "seq": sample.seq,
        "session_id": sample.session_id,
        "quality": reading.quality,
        **facts,
    }


def _origin(sample: Sample) -> str:
    return f"{sample.source_timestamp}:{sample.session_id}:{sample.seq}"


def _settle(
    cell: Cell,
    reading: Reading,
    sample: Sample,
    announce: Announcer,
    verdict: int,
    value: float | None,
    unit: str,
    facts: Mapping[str, Any],
    out: list[Signal],
) -> bool:
    """Carry out the verdict of `advance`."""
    if verdict == RAISE:
        announce.raised(
            cell, sample.device_id, sample.source_timestamp, _origin(sample), value, unit,
            _evidence(reading, sample, cell, **facts), out,
        )  # fmt: skip
    elif verdict == CLEAR:
        announce.cleared(
            cell, sample.device_id, sample.source_timestamp, value, _evidence(reading, sample, cell, **facts), out
        )
    return verdict != NOTHING


def threshold_step(rule: Rule, test: Threshold, announce: Announcer, when: Filter | None) -> Step:
    """Raises over (under) the limit, clears at `clear_at`; the idle case is the hot path of the stage."""
    over = test.above is not None
    limit = test.above if test.above is not None else test.below
    assert limit is not None, "the settings see to it that exactly one limit is set"
    back = limit if test.clear_at is None else test.clear_at
    low, high = (-math.inf, limit) if over else (limit, math.inf)
    hold_ms, clear_hold_ms = rule.hold_ms, rule.clear_hold_ms
    facts = {"clear_at": back, "hold_ms": hold_ms}

    def step(cell: Cell, reading: Reading, sample: Sample, out: list[Signal]) -> bool:
        at = sample[3]
        if at <= cell.at:
            return False
        value = reading[1]
        if value is None or reading[3] in _UNUSABLE:
            return False
        cell.at = at
        calm = low <= value <= high
        if calm and cell.phase == IDLE:
            return False
        if when is not None and when(reading, sample) is not True:
            return False
        clear = value <= back if over else value >= back
        verdict = advance(cell, at, breach=not calm, clear=clear, hold_ms=hold_ms, clear_hold_ms=clear_hold_ms)
        return _settle(cell, reading, sample, announce, verdict, value, reading.unit, facts, out)

    return step


def rate_step(rule: Rule, test: RateOfChange, announce: Announcer, when: Filter | None) -> Step:
    """Raises on a slope over the window; a handful of points stands for all readings in it."""
    window_ms, spacing_ms, per_ms = test.window_ms, max(test.window_ms // _POINTS, 1), test.per_ms
    limit = test.limit
    back = limit if test.clear_at is None else test.clear_at
    sign = {"up": 1.0, "down": -1.0, "both": 0.0}[test.direction]
    per = f"{per_ms // 1000} s"

    def step(cell: Cell, reading: Reading, sample: Sample, out: list[Signal]) -> bool:
        at = sample[3]
        value = reading[1]
        if at <= cell.at or value is None or reading[3] in _UNUSABLE:
            return False
        if when is not None and when(reading, sample) is not True:
            return False
        cell.at = at
        points = cell.points
        while points and at - points[0] > window_ms + spacing_ms:
            del points[:2]
        changed = not points or at - points[-2] >= spacing_ms
        if changed:
            points += (at, value)
        span_ms = at - points[0]
        if span_ms < window_ms - spacing_ms:
            return changed
        rate = (value - points[1]) / span_ms * per_ms
        size = rate * sign if sign else abs(rate)
        verdict = advance(
            cell, at, breach=size > limit, clear=size <= back, hold_ms=rule.hold_ms, clear_hold_ms=rule.clear_hold_ms
        )
        facts = {"rate": rate, "per": per, "from_value": points[1], "over_ms": int(span_ms)}
        return _settle(cell, reading, sample, announce, verdict, value, reading.unit, facts, out) or changed

    return step


def stuck_step(test: Stuck, announce: Announcer, when: Filter | None) -> Step:
    """Raises when a value has not moved for the duration; clears at the first move."""
    duration_ms, tolerance, least = test.duration_ms, test.tolerance, test.min_readings
    gap_ms = duration_ms if test.max_gap_ms is None else test.max_gap_ms
    young_ms = duration_ms // 2

    def step(cell: Cell, reading: Reading, sample: Sample, out: list[Signal]) -> bool:
        at = sample[3]
        value = reading[1]
        if at <= cell.at or value is None or reading[3] in _UNUSABLE:
            return False
        if when is not None and when(reading, sample) is not True:
            return False
        anchor = cell.value
        moved = anchor is None or not -tolerance <= value - anchor <= tolerance
        raised = cell.phase == RAISED
        if moved or (at - cell.at > gap_ms and not raised):
            cell.at = cell.since = at
            cell.value = value
            cell.count = 1
            if raised:
                cell.phase = IDLE
                announce.cleared(cell, sample.device_id, at, value, _evidence(reading, sample, cell), out)
            return raised
        cell.at = at
        cell.count += 1
        if raised:
            return False
        still_ms = at - cell.since
        if still_ms >= duration_ms and cell.count >= least:
            cell.phase = RAISED
            facts = {"still_ms": still_ms, "readings": cell.count, "tolerance": tolerance}
            return _settle(cell, reading, sample, announce, RAISE, value, reading.unit, facts, out)
        # A young anchor is not worth a write a reading: losing it delays the signal by half at most.
        return still_ms >= young_ms

    return step


def quality_step(rule: Rule, test: Quality, announce: Announcer, when: Filter | None) -> Step:
    """Raises while the device says its reading is not good."""
    poor = frozenset(test.levels)

    def step(cell: Cell, reading: Reading, sample: Sample, out: list[Signal]) -> bool:
        at = sample[3]
        if at <= cell.at:
            return False
        cell.at = at
        breach = reading[3] in poor
        if not breach and cell.phase == IDLE:
            return False
        if when is not None and when(reading, sample) is not True:
            return False
        verdict = advance(
            cell, at, breach=breach, clear=not breach, hold_ms=rule.hold_ms, clear_hold_ms=rule.clear_hold_ms
        )
        facts = {"status_code": reading.status_code}
        return _settle(cell, reading, sample, announce, verdict, reading.value, reading.unit, facts, out)

    return step


def condition_step(
    rule: Rule, test: Condition, announce: Announcer, when: Filter | None, judge: Filter, over: Filter | None
) -> Step:
    """Raises while an expression is true of the readings; `over` (else its opposite) clears."""

    def step(cell: Cell, reading: Reading, sample: Sample, out: list[Signal]) -> bool:
        at = sample[3]
        if at <= cell.at or (when is not None and when(reading, sample) is not True):
            return False
        holds = judge(reading, sample)
        if holds is None:
            return False
        cell.at = at
        clear = not holds if over is None else over(reading, sample) is True
        verdict = advance(cell, at, breach=holds, clear=clear, hold_ms=rule.hold_ms, clear_hold_ms=rule.clear_hold_ms)
        facts = {"condition": test.expression}
        return _settle(cell, reading, sample, announce, verdict, reading.value, reading.unit, facts, out)

    return step
