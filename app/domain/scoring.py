"""How well signals tell of what truly happened: precision, recall and detection delay.

The unit is the interval of the truth, not the reading:

- An interval is detected when a raised signal of its device (and of its metric, if both name one) is
  dated within [from, to + tolerance]. The first such signal gives the delay, its date minus from.
- Further signals in a detected interval count neither for nor against.
- A raised signal in no interval of its device is a false positive.
- precision = detected / (detected + false positives), recall = detected / intervals, f1 their harmonic mean.
- Each figure is None where there is nothing to divide by: precision without signals, recall without truth.

The figures of one rule, or one kind, take that one's signals alone but all intervals: where another rule
is meant for some of them, a low recall is no fault.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import ceil
from typing import NamedTuple


class TruthInterval(NamedTuple):
    """When something was truly wrong, ms UTC, both ends in; `metric` None is the whole device."""

    device_id: str
    from_ms: int
    to_ms: int
    metric: str | None = None
    label: str = ""


class RaisedSignal(NamedTuple):
    """The part of a raised signal that scoring reads."""

    signal_id: str
    rule: str
    kind: str
    device_id: str
    metric: str | None
    at: int


class Delay(NamedTuple):
    """Detection delay in ms over the detected intervals; percentiles by nearest rank."""

    p50: float
    p95: float
    mean: float


class Figures(NamedTuple):
    """The counts and what follows from them."""

    intervals: int
    detected: int
    false_positives: int
    precision: float | None
    recall: float | None
    f1: float | None
    delay_ms: Delay | None


class Score(NamedTuple):
    """The figures of all signals together, and by rule, by rule kind and by the truth's label.

    False positives belong to no label, so `by_label` has none and its precision is None.
    """

    total: Figures
    by_rule: Mapping[str, Figures]
    by_kind: Mapping[str, Figures]
    by_label: Mapping[str, Figures]


# (index of the signal, index of the interval) of a match.
_Hit = tuple[int, int]


def score(signals: Iterable[RaisedSignal], truth: Sequence[TruthInterval], tolerance_ms: int) -> Score:
    """Score raised signals against the truth; signals with the same id count once."""
    raised = sorted({each.signal_id: each for each in signals}.values(), key=lambda each: (each.at, each.signal_id))
    hits = _hits(raised, truth, tolerance_ms)
    everything = range(len(truth))

    def figures(signals: Collection[int], intervals: Collection[int]) -> Figures:
        return _figures(raised, truth, hits, frozenset(signals), frozenset(intervals))

    def grouped(names: Sequence[str]) -> dict[str, Figures]:
        return {name: figures(indexes, everything) for name, indexes in _indexes(names).items()}

    labels = _indexes([interval.label for interval in truth])
    return Score(
        total=figures(range(len(raised)), everything),
        by_rule=grouped([each.rule for each in raised]),
        by_kind=grouped([each.kind for each in raised]),
        by_label={
            label: figures({i for i, j in hits if j in set(indexes)}, indexes)._replace(precision=None, f1=None)
            for label, indexes in labels.items()
        },
    )


def _indexes(names: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in sorted(set(names))}
    for i, name in enumerate(names):
        found[name].append(i)
    return found


def _hits(raised: Sequence[RaisedSignal], truth: Sequence[TruthInterval], tolerance_ms: int) -> list[_Hit]:
    by_device = _indexes([each.device_id for each in raised])
    dates = {device: [raised[i].at for i in indexes] for device, indexes in by_device.items()}
    hits: list[_Hit] = []
    for j, interval in enumerate(truth):
        indexes = by_device.get(interval.device_id, [])
        first = bisect_left(dates.get(interval.device_id, []), interval.from_ms)
        for i in indexes[first:]:
            if raised[i].at > interval.to_ms + tolerance_ms:
                break
            if _same_metric(raised[i].metric, interval.metric):
                hits.append((i, j))
    return hits


def _same_metric(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def _figures(
    raised: Sequence[RaisedSignal],
    truth: Sequence[TruthInterval],
    hits: Sequence[_Hit],
    signals: frozenset[int],
    intervals: frozenset[int],
) -> Figures:
    delays: dict[int, int] = {}
    useful: set[int] = set()
    for i, j in hits:
        if i in signals:
            useful.add(i)
            if j in intervals:
                delay = raised[i].at - truth[j].from_ms
                delays[j] = min(delay, delays.get(j, delay))
    detected, false_positives = len(delays), len(signals - useful)
    precision = detected / (detected + false_positives) if signals else None
    recall = detected / len(intervals) if intervals else None
    f1 = None
    if precision is not None and recall is not None:
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Figures(len(intervals), detected, false_positives, precision, recall, f1, _delay(sorted(delays.values())))


def _delay(ordered: Sequence[int]) -> Delay | None:
    if not ordered:
        return None
    return Delay(_rank(ordered, 0.50), _rank(ordered, 0.95), sum(ordered) / len(ordered))


def _rank(ordered: Sequence[int], share: float) -> float:
    return float(ordered[max(ceil(share * len(ordered)), 1) - 1])
