"""The aggregate of one metric over one window: add a value, merge two, neither depending on the order.

Open and close are ordered by (source_timestamp, seq), ties by value, never by arrival. Mean and m2 follow
Welford, merged as Chan et al. do, so that a stuck value has a variance of exactly 0.
"""

from app.domain.reading import GOOD, Reading

_USABLE_TOO = "UNCERTAIN"  # OPC UA: an uncertain value may be used, a bad or stale one may not


class Aggregate:
    """Mutable, owned by its window; times in ms UTC; the value fields mean nothing while `count` is 0."""

    __slots__ = (
        "bad",
        "close",
        "close_seq",
        "close_ts",
        "count",
        "good",
        "high",
        "high_ts",
        "late",
        "low",
        "low_ts",
        "m2",
        "mean",
        "metric",
        "open",
        "open_seq",
        "open_ts",
        "sum",
        "unit",
    )

    def __init__(self, metric: str, unit: str) -> None:
        self.metric = metric
        self.unit = unit
        self.count = self.good = self.bad = self.late = 0
        self.sum = self.mean = self.m2 = 0.0
        self.open = self.close = self.high = self.low = 0.0
        self.open_ts = self.open_seq = self.close_ts = self.close_seq = self.high_ts = self.low_ts = 0


def add_all(aggregates: dict[str, Aggregate], readings: tuple[Reading, ...], ts: int, seq: int) -> None:
    """Add the readings of one sample; written out flat because every reading passes here."""
    for metric, value, unit, quality, _ in readings:
        a = aggregates.get(metric)
        if a is None:
            a = aggregates[metric] = Aggregate(metric, unit)
        if quality == GOOD and value is not None:
            a.good += 1
        else:
            a.bad += 1
            if value is None or quality != _USABLE_TOO:
                continue
        count = a.count = a.count + 1
        if count == 1:
            _first(a, value, unit, ts, seq)
            continue
        a.sum += value
        delta = value - a.mean
        mean = a.mean = a.mean + delta / count
        a.m2 += delta * (value - mean)
        if ts > a.close_ts:
            a.close, a.close_ts, a.close_seq, a.unit = value, ts, seq, unit
        else:
            _reorder(a, value, unit, ts, seq)
        if value > a.high:
            a.high, a.high_ts = value, ts
        elif value < a.low:
            a.low, a.low_ts = value, ts
        elif value in (a.high, a.low):
            _earlier_extreme(a, value, ts)


def merge(into: Aggregate, other: Aggregate) -> None:
    """Add the readings of `other` to `into`."""
    into.good += other.good
    into.bad += other.bad
    into.late += other.late
    if not other.count:
        return
    if not into.count:
        _copy_values(into, other)
        return
    count = into.count + other.count
    delta = other.mean - into.mean
    into.m2 += other.m2 + delta * delta * into.count * other.count / count
    into.mean += delta * other.count / count
    into.sum += other.sum
    into.count = count
    if (other.open_ts, other.open_seq, other.open) < (into.open_ts, into.open_seq, into.open):
        into.open, into.open_ts, into.open_seq = other.open, other.open_ts, other.open_seq
    if (other.close_ts, other.close_seq, other.close) > (into.close_ts, into.close_seq, into.close):
        into.close, into.close_ts, into.close_seq, into.unit = other.close, other.close_ts, other.close_seq, other.unit
    if other.high > into.high or (other.high == into.high and other.high_ts < into.high_ts):
        into.high, into.high_ts = other.high, other.high_ts
    if other.low < into.low or (other.low == into.low and other.low_ts < into.low_ts):
        into.low, into.low_ts = other.low, other.low_ts


def _first(a: Aggregate, value: float, unit: str, ts: int, seq: int) -> None:
    a.open = a.close = a.high = a.low = a.sum = a.mean = value
    a.open_ts = a.close_ts = a.high_ts = a.low_ts = ts
    a.open_seq = a.close_seq = seq
    a.unit = unit


def _reorder(a: Aggregate, value: float, unit: str, ts: int, seq: int) -> None:
    if (ts, seq, value) > (a.close_ts, a.close_seq, a.close):
        a.close, a.close_ts, a.close_seq, a.unit = value, ts, seq, unit
    if (ts, seq, value) < (a.open_ts, a.open_seq, a.open):
        a.open, a.open_ts, a.open_seq = value, ts, seq


def _earlier_extreme(a: Aggregate, value: float, ts: int) -> None:
    if value == a.high and ts < a.high_ts:
        a.high_ts = ts
    if value == a.low and ts < a.low_ts:
        a.low_ts = ts


def _copy_values(into: Aggregate, other: Aggregate) -> None:
    into.count, into.sum, into.mean, into.m2, into.unit = other.count, other.sum, other.mean, other.m2, other.unit
    into.open, into.open_ts, into.open_seq = other.open, other.open_ts, other.open_seq
    into.close, into.close_ts, into.close_seq = other.close, other.close_ts, other.close_seq
    into.high, into.high_ts, into.low, into.low_ts = other.high, other.high_ts, other.low, other.low_ts
