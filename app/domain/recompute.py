"""What the rollups must be, computed again from the telemetry itself, and where the real ones differ.

On purpose nothing here is shared with the stage it checks but the record shapes and the sizes of the windows: every
reading goes straight into each window of each rung, values are kept and folded at the end in two exact passes.
"""

import math
from array import array
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from app.domain.reading import Sample
from app.domain.rollup import MAX_SPANS, Rollup
from app.domain.window import RollupSpec, Rung

Key = tuple[str, str, int, int]  # device_id, metric, window_start, window_ms
Kind = Literal[
    "missing_window",
    "unexpected_window",
    "missing_final",
    "wrong_value",
    "conflicting_revision",
    "revision_after_final",
]

RELATIVE: Final = 1e-9  # sums of doubles in another order; far below the loss of one reading in a window of an hour
EXACT_FIELDS: Final = (
    "open", "high", "low", "close", "open_ts", "high_ts", "low_ts", "close_ts",
    "count", "good_count", "bad_count", "gaps", "seq_first", "seq_last", "unit",
)  # fmt: skip


class Telemetry(NamedTuple):
    """One record of the telemetry topic; `sample` None when it cannot be decoded."""

    partition: int
    offset: int
    sample: Sample | None


class Difference(NamedTuple):
    """One way in which the rollups are not what they must be."""

    kind: Kind
    key: Key
    detail: str


class Expected(NamedTuple):
    """One window's aggregate as recomputed; the value fields are None when `count` is 0."""

    open: float | None
    high: float | None
    low: float | None
    close: float | None
    open_ts: int | None
    high_ts: int | None
    low_ts: int | None
    close_ts: int | None
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody calls
    sum: float
    m2: float
    good_count: int
    bad_count: int
    gaps: int | None  # None when more sessions met in the window than a rollup tells apart
    seq_first: int
    seq_last: int
    unit: str
    magnitude: float  # the sum of the absolute values: what the tolerance of `sum` is relative to


@dataclass(slots=True)
class _Readings:
    """All readings of one metric in one window, column by column."""

    values: "array[float]" = field(default_factory=lambda: array("d"))
    times: "array[int]" = field(default_factory=lambda: array("q"))
    seqs: "array[int]" = field(default_factory=lambda: array("q"))
    last: tuple[int, int, float] | None = None
    unit: str = ""
    good: int = 0
    bad: int = 0


@dataclass(slots=True)
class _Seqs:
    """Which seqs of which sessions one device has in one window."""

    bounds: dict[int, tuple[int, int]] = field(default_factory=dict)
    count: int = 0

    def gaps(self) -> int | None:
        """The seqs missing between the first and the last of each session."""
        if len(self.bounds) > MAX_SPANS:
            return None
        return sum(last - first + 1 for first, last in self.bounds.values()) - self.count


def recompute(
    telemetry: Iterable[Telemetry],
    late: Container[tuple[int, int]],
    dead: Container[tuple[int, int]],
    spec: RollupSpec,
) -> dict[Key, Expected]:
    """Fold every reading that is neither late, dead-lettered nor a duplicate into its windows.

    `late` and `dead` hold the (partition, offset) of telemetry records, as the records on `device.late` and
    `device.deadletter` name them. Telemetry comes in the order of each partition.
    """
    seen: set[tuple[str, int, int]] = set()
    readings: dict[Key, _Readings] = {}
    seqs: dict[tuple[str, int, int], _Seqs] = {}
    for partition, offset, sample in telemetry:
        if sample is None or (partition, offset) in dead:
            continue
        identity = (sample.device_id, sample.session_id, sample.seq)
        repeated = identity in seen
        seen.add(identity)
        if repeated or (partition, offset) in late:
            continue
        for rung in spec.rungs:
            if rung.emit:
                for start in _windows(rung, sample.source_timestamp):
                    _add(readings, seqs, sample, start, rung.size_ms)
    return {key: _fold(found, seqs[key[0], key[2], key[3]]) for key, found in readings.items()}


def watermarks(telemetry: Iterable[Telemetry], dead: Container[tuple[int, int]]) -> dict[str, int]:
    """The greatest source_timestamp of each device: `compare` lets windows it has not passed be open."""
    found: dict[str, int] = {}
    for partition, offset, sample in telemetry:
        if sample is not None and (partition, offset) not in dead:
            found[sample.device_id] = max(found.get(sample.device_id, 0), sample.source_timestamp)
    return found


def compare(
    expected: Mapping[Key, Expected],
    rollups: Iterable[Rollup],
    settled_until: Mapping[str, int] | None = None,
) -> list[Difference]:
    """Hold the last revision of every window against what it must be; no difference means equal.

    `settled_until` maps a device to the event time up to which its windows must be final (its watermark less the
    grace); without it all must be, as after the idle time-out.
    """
    differences: list[Difference] = []
    latest = _latest(rollups, differences)
    for key, want in expected.items():
        device_id, _, start, window_ms = key
        is_open = settled_until is not None and start + window_ms > settled_until.get(device_id, 0)
        found = latest.pop(key, None)
        if found is not None and found.is_final:
            differences += _values(key, want, found)
        elif not is_open and found is None:
            differences.append(Difference("missing_window", key, f"{want.count} values have no rollup"))
        elif not is_open and found is not None:
            detail = f"the last revision is {found.revision} and not final"
            differences.append(Difference("missing_final", key, detail))
    differences += [
        Difference("unexpected_window", key, f"{found.count} values that no record of telemetry accounts for")
        for key, found in latest.items()
    ]
    return differences


def _windows(rung: Rung, ts: int) -> list[int]:
    start = ts // rung.step_ms * rung.step_ms
    found = []
    while start + rung.size_ms > ts:
        found.append(start)
        start -= rung.step_ms
    return found


def _add(
    readings: dict[Key, _Readings], seqs: dict[tuple[str, int, int], _Seqs], sample: Sample, start: int, size_ms: int
) -> None:
    device = seqs.setdefault((sample.device_id, start, size_ms), _Seqs())
    first, last = device.bounds.get(sample.session_id, (sample.seq, sample.seq))
    device.bounds[sample.session_id] = (min(first, sample.seq), max(last, sample.seq))
    device.count += 1
    for reading in sample.metrics:
        found = readings.setdefault((sample.device_id, reading.metric, start, size_ms), _Readings())
        if reading.value is None or reading.quality != "GOOD":
            found.bad += 1
        else:
            found.good += 1
        if reading.value is None or reading.quality not in {"GOOD", "UNCERTAIN"}:
            found.unit = found.unit or reading.unit
            continue
        found.values.append(reading.value)
        found.times.append(sample.source_timestamp)
        found.seqs.append(sample.seq)
        order = (sample.source_timestamp, sample.seq, reading.value)
        if found.last is None or order > found.last:
            found.last, found.unit = order, reading.unit


def _fold(found: _Readings, device: _Seqs) -> Expected:
    seq_first = device.bounds[min(device.bounds)][0]
    seq_last = device.bounds[max(device.bounds)][1]
    shared = (found.good, found.bad, device.gaps(), seq_first, seq_last, found.unit)
    if not found.values:
        return Expected(None, None, None, None, None, None, None, None, 0, 0.0, 0.0, *shared, 0.0)
    rows = sorted(zip(found.times, found.seqs, found.values, strict=True))
    values = [value for _, _, value in rows]
    high, low, total = max(values), min(values), math.fsum(values)
    mean = total / len(values)
    return Expected(
        rows[0][2],
        high,
        low,
        rows[-1][2],
        rows[0][0],
        next(ts for ts, _, value in rows if value == high),
        next(ts for ts, _, value in rows if value == low),
        rows[-1][0],
        len(values),
        total,
        math.fsum((value - mean) ** 2 for value in values),
        *shared,
        math.fsum(map(abs, values)),
    )


def _latest(rollups: Iterable[Rollup], differences: list[Difference]) -> dict[Key, Rollup]:
    """Keep the highest revision of each window; the same one twice is a redelivery, two of one number a fault."""
    latest: dict[Key, Rollup] = {}
    for rollup in rollups:
        key = (rollup.device_id, rollup.metric, rollup.window_start, rollup.window_ms)
        known = latest.get(key)
        if known is None or rollup.revision > known.revision:
            latest[key] = rollup
            if known is not None and known.is_final:
                detail = f"revision {rollup.revision} follows the final {known.revision}"
                differences.append(Difference("revision_after_final", key, detail))
        elif rollup.revision == known.revision and rollup != known:
            detail = f"revision {rollup.revision} was emitted with two contents"
            differences.append(Difference("conflicting_revision", key, detail))
    return latest


def _values(key: Key, want: Expected, found: Rollup) -> list[Difference]:
    wrong = []
    for name in EXACT_FIELDS:
        wanted, got = getattr(want, name), getattr(found, name)
        if wanted != got and not (name == "gaps" and wanted is None):
            wrong.append((name, wanted, got))
    for name, wanted, got, allowed in _inexact(want, found):
        if got is None or not math.isclose(wanted, got, rel_tol=RELATIVE, abs_tol=allowed):
            wrong.append((name, wanted, got))
    return [Difference("wrong_value", key, f"{name} is {got!r}, not {wanted!r}") for name, wanted, got in wrong]


def _inexact(want: Expected, found: Rollup) -> Iterable[tuple[str, float, Any, float]]:
    """The fields that depend on the order of additions, each with its absolute tolerance."""
    scale = want.magnitude / max(1, want.count)
    if want.count:
        yield "mean", want.sum / want.count, found.mean, scale * RELATIVE
        yield "variance", want.m2 / want.count, found.variance, scale * scale * RELATIVE
    yield "sum", want.sum, found.sum, want.magnitude * RELATIVE
    yield "m2", want.m2, found.m2, want.magnitude * scale * RELATIVE
