"""Samples, rollups and runs of rules for the tests of the signals."""

from collections.abc import Iterable, Sequence
from typing import Any

from app.adapters.cel import compile_cel
from app.domain.reading import Reading, Sample
from app.domain.rollup import Rollup
from app.domain.signal_record import Signal
from app.domain.signal_rules import Rule, Test
from app.domain.signal_state import SignalState
from app.domain.signals import CompiledRules, compile_rules

DEVICE = "press-0001"
START_MS = 1_763_689_000_000


def sample(
    at_ms: int,
    value: float | None = 1.0,
    *,
    seq: int | None = None,
    metric: str = "temperature",
    quality: str | None = None,
    device_id: str = DEVICE,
    recorded_ms: int | None = None,
) -> Sample:
    """A sample with one metric, `at_ms` after START_MS; a null value is BAD unless told otherwise."""
    at = START_MS + at_ms
    told = quality or ("BAD" if value is None else "GOOD")
    recorded = at if recorded_ms is None else START_MS + recorded_ms
    reading = Reading(metric, value, "CEL", told, 0)
    return Sample(device_id, 1, at_ms // 1000 + 1 if seq is None else seq, at, recorded, False, (reading,))


def rollup(index: int, mean: float | None, *, window_ms: int = 60_000, is_final: bool = True, **more: Any) -> Rollup:
    """The final rollup of the window `index` after START_MS, all of whose values are `mean`."""
    start = START_MS // window_ms * window_ms + index * window_ms
    fields: dict[str, Any] = {
        "device_id": DEVICE, "metric": "temperature", "window_start": start, "window_end": start + window_ms,
        "window_ms": window_ms, "open": mean, "high": mean, "low": mean, "close": mean, "open_ts": start,
        "high_ts": start, "low_ts": start, "close_ts": start, "count": 1, "sum": mean or 0.0, "mean": mean,
        "variance": 0.0, "m2": 0.0, "good_count": 1, "bad_count": 0, "late_count": 0, "gaps": 0, "seq_first": 1,
        "seq_last": 1, "unit": "CEL", "revision": 0, "is_final": is_final,
    }  # fmt: skip
    return Rollup(**{**fields, **more})


def compiled(*rules: Rule) -> CompiledRules:
    return compile_rules(rules, compile_cel)


def rule(test: Test, **more: Any) -> Rule:
    return Rule(**{"id": "rule", "test": test, **more})


def run(rules: CompiledRules, subjects: Iterable[Sample | Rollup], state: SignalState | None = None) -> list[Signal]:
    """What the rules say of the subjects, one after the other."""
    state = state or SignalState(DEVICE)
    out: list[Signal] = []
    for subject in subjects:
        if isinstance(subject, Sample):
            rules.on_sample(state, subject, out)
        else:
            rules.on_rollup(state, subject, out)
    return out


def states(signals: Sequence[Signal]) -> list[tuple[str, int]]:
    """(state, date after START_MS in ms) of each signal."""
    return [(signal.state, signal.at - START_MS) for signal in signals]
