"""What a row of measurements comes to: medians, percentiles and ratios."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Latency(NamedTuple):
    """Percentiles of one latency in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in self._asdict().items()}


def median(values: Sequence[float]) -> float:
    """Middle of `values`, the mean of the two middle ones of an even count; at least one is needed."""
    ordered = sorted(values)
    half, odd = divmod(len(ordered), 2)
    return ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of an ascending row: the smallest value that `share` of the row does not exceed."""
    rank = max(1, math.ceil(share * len(ordered)))
    return ordered[rank - 1]


def latency_of(values_ms: Sequence[float]) -> Latency:
    """Percentiles of every single latency; at least one is needed."""
    ordered = sorted(values_ms)
    return Latency(percentile(ordered, 0.5), percentile(ordered, 0.95), percentile(ordered, 0.99), ordered[-1])


def weighted_latency(values_ms: Sequence[tuple[float, int]]) -> Latency:
    """`latency_of` for (value, how many times) pairs; at least one is needed."""
    ordered = sorted(values_ms)
    total = sum(count for _, count in ordered)
    ranks = [max(1, math.ceil(share * total)) for share in (0.5, 0.95, 0.99)]
    found: list[float] = []
    seen = 0
    for value, count in ordered:
        seen += count
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(value)
    return Latency(found[0], found[1], found[2], ordered[-1][0])


def weighted_mean(values_ms: Sequence[tuple[float, int]]) -> float:
    """Mean of (value, how many times) pairs; 0 of none."""
    total = sum(count for _, count in values_ms)
    return math.fsum(value * count for value, count in values_ms) / total if total else 0.0


def median_latency(rows: Sequence[Latency]) -> Latency:
    """Each percentile's median over the runs."""
    return Latency(*(median(column) for column in zip(*rows, strict=True)))


def ratios(ours: float | None, peers: Mapping[str, float]) -> dict[str, float]:
    """Ours over each peer's; a peer that did nothing has no ratio."""
    if ours is None:
        return {}
    return {peer: round(ours / value, 3) for peer, value in peers.items() if value > 0}


def interleaved(sides: Sequence[str], runs: int) -> list[tuple[int, str]]:
    """(run, side) in the order of measurement: forwards, then backwards (ABBA), so that a drift hits all alike."""
    order: list[tuple[int, str]] = []
    for run in range(runs):
        turn = sides if run % 2 == 0 else tuple(reversed(sides))
        order.extend((run, side) for side in turn)
    return order


class Appends(NamedTuple):
    """What the broker's clock says of one output topic: rates in records a second."""

    steady: float | None
    first_ms: int
    last_ms: int


def steady_rate(total: int, before_cut: int, cut_ms: int, last_ms: int) -> float | None:
    """Records appended after `cut_ms` over the time from there to the last append; None in under 50 ms.

    Under 50 ms the broker's millisecond clock alone is an error of several per cent.
    """
    span_ms = last_ms - cut_ms
    return (total - before_cut) * 1000 / span_ms if span_ms >= 50 else None
