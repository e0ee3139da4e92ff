"""The rules that look at closed windows, as functions compiled from their declarations."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from app.domain.rollup import Rollup
from app.domain.signal_record import Announcer, Signal
from app.domain.signal_rules import Condition, Crossover, DeviceTypeOf, Direction, Rule, ZScore
from app.domain.signal_state import CLEAR, NOTHING, RAISE, RAISED, Cell, advance

WindowStep = Callable[[Cell, Rollup, list[Signal]], bool]
WindowFilter = Callable[[Rollup], bool | None]

# Beyond this a deviation says no more, and JSON has no infinity.
_Z_MAX = 1e6

EXAMPLE_ROLLUP: Mapping[str, Any] = {
    "device_id": "press-0001", "device_type": "press", "metric": "temperature", "window_start": 0, "window_end": 60_000,
    "window_ms": 60_000, "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "count": 1, "mean": 1.0, "variance": 1.0,
    "good_count": 1, "bad_count": 0, "late_count": 0, "gaps": 0, "unit": "CEL",
}  # fmt: skip


def rollup_names(device_type_of: DeviceTypeOf) -> dict[str, Callable[[Rollup], Any]]:
    """How each name an expression over a rollup may use is found."""

    def field(name: str) -> Callable[[Rollup], Any]:
        return lambda view: getattr(view, name)

    names = {name: field(name) for name in EXAMPLE_ROLLUP if name != "device_type"}
    return {**names, "device_type": lambda view: device_type_of(view.device_id)}


def _settle(
    cell: Cell,
    view: Rollup,
    announce: Announcer,
    verdict: int,
    value: float | None,
    facts: Mapping[str, Any],
    out: list[Signal],
) -> bool:
    if verdict in {RAISE, CLEAR}:
        evidence = {
            "window_start": view.window_start, "window_end": view.window_end, "count": view.count, **facts,
        }  # fmt: skip
        if verdict == RAISE:
            origin = f"{view.window_ms}:{view.window_start}"
            announce.raised(cell, view.device_id, view.window_end, origin, value, view.unit, evidence, out)
        else:
            announce.cleared(cell, view.device_id, view.window_end, value, evidence, out)
    return verdict != NOTHING


def _is_new(cell: Cell, view: Rollup, when: WindowFilter | None) -> bool:
    """Windows come once and in order; a revision of a judged window changes nothing."""
    return view.is_final and view.window_start > cell.at and (when is None or when(view) is True)


def _sized(number: float, direction: Direction) -> float:
    if direction == "both":
        return abs(number)
    return number if direction == "up" else -number


def spread(points: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample, n - 1), without cancellation; a lone point has 0."""
    mean = math.fsum(points) / len(points)
    if len(points) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((point - mean) ** 2 for point in points) / (len(points) - 1))


def z_score(value: float, points: list[float], test: ZScore) -> tuple[float, float, float]:
    """(z, mean, deviation used); 0 when there is no deviation to measure by."""
    mean, deviation = spread(points)
    deviation = max(deviation, test.min_std, test.min_std_ratio * abs(mean))
    if deviation <= 0.0:
        return 0.0, mean, 0.0
    return max(-_Z_MAX, min(_Z_MAX, (value - mean) / deviation)), mean, deviation


def z_score_step(rule: Rule, test: ZScore, announce: Announcer, when: WindowFilter | None) -> WindowStep:
    """Raises far from the baseline, clears near it; the baseline learns from calm windows alone."""

    def step(cell: Cell, view: Rollup, out: list[Signal]) -> bool:
        value = getattr(view, test.of)
        if value is None or not _is_new(cell, view, when):
            return False
        cell.at = view.window_start
        points = cell.points
        if len(points) >= test.warm_up:
            z, mean, deviation = z_score(value, points, test)
            size = _sized(z, test.direction)
            verdict = advance(
                cell,
                view.window_end,
                breach=size > test.raise_at,
                clear=size <= test.clear_at,
                hold_ms=rule.hold_ms,
                clear_hold_ms=rule.clear_hold_ms,
            )
            facts = {"z": z, "mean": mean, "std": deviation, "windows": len(points)}
            _settle(cell, view, announce, verdict, value, facts, out)
        _learn(cell, value, test)
        return True

    return step


def _learn(cell: Cell, value: float, test: ZScore) -> None:
    cell.count = cell.count + 1 if cell.phase >= RAISED else 0
    if cell.phase == 0 or (test.freeze_windows is not None and cell.count > test.freeze_windows):
        cell.points.append(value)
        del cell.points[: -test.baseline]


def crossover_step(rule: Rule, test: Crossover, announce: Announcer, when: WindowFilter | None) -> WindowStep:
    """Raises when the fast average leaves the slow one by the band, clears when it is back."""

    def step(cell: Cell, view: Rollup, out: list[Signal]) -> bool:
        value = getattr(view, test.of)
        if value is None or not _is_new(cell, view, when):
            return False
        cell.at = view.window_start
        points = cell.points
        points.append(value)
        del points[: -test.slow]
        if len(points) == test.slow:
            fast = math.fsum(points[-test.fast :]) / test.fast
            slow = math.fsum(points) / test.slow
            apart = _sized(fast - slow, test.direction)
            verdict = advance(
                cell,
                view.window_end,
                breach=apart > test.band,
                clear=apart <= test.clear_band,
                hold_ms=rule.hold_ms,
                clear_hold_ms=rule.clear_hold_ms,
            )
            _settle(cell, view, announce, verdict, value, {"fast": fast, "slow": slow}, out)
        return True

    return step


def window_condition_step(
    rule: Rule,
    test: Condition,
    announce: Announcer,
    when: WindowFilter | None,
    judge: WindowFilter,
    over: WindowFilter | None,
) -> WindowStep:
    """Raises while an expression is true of the windows; `over` (else its opposite) clears."""

    def step(cell: Cell, view: Rollup, out: list[Signal]) -> bool:
        if not _is_new(cell, view, when):
            return False
        holds = judge(view)
        if holds is None:
            return False
        cell.at = view.window_start
        clear = not holds if over is None else over(view) is True
        verdict = advance(
            cell,
            view.window_end,
            breach=holds,
            clear=clear,
            hold_ms=rule.hold_ms,
            clear_hold_ms=rule.clear_hold_ms,
        )
        return _settle(cell, view, announce, verdict, view.mean, {"condition": test.expression}, out)

    return step
