"""Rows of recorded data as samples, and their labels as truth."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from app.domain.device import BAD_NO_DATA, GOOD, Device, DeviceMetadata, MetricSpec
from app.domain.faults import Fault
from app.domain.reading import Reading

RECORDED = "recorded"  # the device type of recorded data
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCALES_MS = {"epoch_ms": 1.0, "epoch_s": 1000.0}


class MetricColumn(NamedTuple):
    """A metric, the column that holds it and its unit (UNECE Rec 20)."""

    metric: str
    column: str
    unit: str


class RowMapping(NamedTuple):
    """What the columns of a row mean.

    `time_format` is "iso", "epoch_s", "epoch_ms" or a strptime format; times without a zone of their
    own are in `zone`. `device_id` may hold "{file}" for the file's name without its ending, and is
    not used where `device_column` names a column. `labels` maps a kind of truth to its column.
    """

    time_column: str
    time_format: str
    zone: tzinfo
    device_id: str
    device_column: str | None
    metrics: tuple[MetricColumn, ...]
    labels: tuple[tuple[str, str], ...]
    decimal: str
    missing: frozenset[str]
    delimiter: str


class RowRejected(NamedTuple):
    """Why a row is no sample: `reason` is a metric label, `detail` one sentence."""

    reason: str
    detail: str


class Recorded(NamedTuple):
    """One row: one device at one instant; `labels` are the kinds of truth that hold there."""

    at_ms: int
    device_id: str
    readings: tuple[Reading, ...]
    labels: frozenset[str]


class Interval(NamedTuple):
    """A labelled time: from `from_ms` on, up to and without `to_ms`; `metric` None is the whole device."""

    device_id: str
    kind: str
    metric: str | None
    from_ms: int
    to_ms: int


class RowReader:
    """Reads the rows of one file, whose header has been matched with the mapping."""

    def __init__(self, mapping: RowMapping, header: Sequence[str], file: str) -> None:
        """`missing_columns(mapping, header)` was empty."""
        self._mapping = mapping
        self._width = len(header)
        self._time = header.index(mapping.time_column)
        self._device = header.index(mapping.device_column) if mapping.device_column is not None else None
        self._device_id = mapping.device_id.replace("{file}", file)
        self._metrics = [(each, header.index(each.column)) for each in mapping.metrics]
        self._labels = [(kind, header.index(column)) for kind, column in mapping.labels]

    def read(self, cells: Sequence[str]) -> Recorded | RowRejected:
        """The sample of a row, or why it is none. Never raises."""
        if len(cells) != self._width:
            return RowRejected("malformed_row", f"the row has {len(cells)} columns, the header {self._width}")
        at_ms = read_time(cells[self._time], self._mapping.time_format, self._mapping.zone)
        if isinstance(at_ms, RowRejected):
            return at_ms
        device_id = self._device_id if self._device is None else cells[self._device].strip()
        if not device_id or not device_id.isprintable():
            return RowRejected("malformed_row", f"{device_id!r} is no name of a device")
        readings = []
        for column, position in self._metrics:
            reading = self._reading(column, cells[position])
            if isinstance(reading, RowRejected):
                return reading
            readings.append(reading)
        held = set()
        for kind, position in self._labels:
            flag = self._number(cells[position])
            if flag is None:
                return RowRejected("malformed_row", f"label {kind} is {cells[position]!r:.60}, not a number")
            if flag:
                held.add(kind)
        return Recorded(at_ms, device_id, tuple(readings), frozenset(held))

    def _reading(self, column: MetricColumn, cell: str) -> Reading | RowRejected:
        if cell.strip() in self._mapping.missing:
            return Reading(column.metric, None, column.unit, "BAD", BAD_NO_DATA)
        value = self._number(cell)
        if value is None:
            return RowRejected("malformed_row", f"{column.column} is {cell!r:.60}, not a finite number")
        return Reading(column.metric, value, column.unit, "GOOD", GOOD)

    def _number(self, cell: str) -> float | None:
        text = cell.strip()
        if self._mapping.decimal != ".":
            text = text.replace(".", "_").replace(self._mapping.decimal, ".")
        if "_" in text or not text.isascii():  # Python reads 1_000 and other scripts' digits, files do not mean them
            return None
        try:
            value = float(text)
        except ValueError:
            return None
        return value if math.isfinite(value) else None


def missing_columns(mapping: RowMapping, header: Sequence[str]) -> list[str]:
    """The columns that the mapping names and the file has not."""
    named = [mapping.time_column, *(each.column for each in mapping.metrics), *(column for _, column in mapping.labels)]
    if mapping.device_column is not None:
        named.append(mapping.device_column)
    return [column for column in dict.fromkeys(named) if column not in header]


def read_time(text: str, time_format: str, zone: tzinfo) -> int | RowRejected:
    """Milliseconds UTC of a recorded time; a local time that its zone skipped is rejected."""
    text = text.strip()
    try:
        if time_format in _SCALES_MS:
            at_ms = round(float(text) * _SCALES_MS[time_format])
            datetime.fromtimestamp(at_ms / 1000, UTC)  # a year that no calendar has is refused here
            return at_ms
        at = datetime.fromisoformat(text) if time_format == "iso" else datetime.strptime(text, time_format)  # noqa: DTZ007
        if at.tzinfo is None:
            at = at.replace(tzinfo=zone)
            # Where clocks go forward an hour does not exist; it does not survive the way to UTC and back.
            if zone is not UTC and at.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != at.replace(tzinfo=None):
                return RowRejected("malformed_row", f"the time {text!r:.60} does not exist in {zone}")
        since = at - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    except (ValueError, OverflowError, OSError):
        return RowRejected("malformed_row", f"{text!r:.60} is no time of the format {time_format}")


def expanded(intervals: Iterable[Interval], shift_ms: int) -> list[tuple[int, Fault]]:
    """The truth records of labels in the order in which they come due: each beginning, then each end."""
    out = []
    for each in intervals:
        begun = Fault(
            fault_id=f"label-{each.device_id}-{each.kind}-{each.from_ms + shift_ms}",
            device_id=each.device_id,
            kind=each.kind,
            metric=each.metric,
            from_ts=each.from_ms + shift_ms,
            to_ts=None,
            magnitude=None,
            seed=None,
        )
        out.append((each.from_ms, begun))
        out.append((each.to_ms, begun._replace(to_ts=each.to_ms + shift_ms)))
    return sorted(out, key=_place)


def _place(due: tuple[int, Fault]) -> tuple[int, int, str]:
    """At one instant: what ends, then what begins, then the end of what only lasts for that instant."""
    at_ms, fault = due
    rank = 1 if fault.to_ts is None else 2 if fault.to_ts == fault.from_ts else 0
    return at_ms, rank, fault.fault_id


@dataclass
class _Seen:
    first_ms: int
    last_ms: int
    rows: int = 0
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)


class Survey:
    """What one pass over a recording finds: its times, devices, ranges and labelled intervals."""

    def __init__(self) -> None:
        self._devices: dict[str, _Seen] = {}
        self._intervals: list[Interval] = []

    def add(self, row: Recorded) -> None:
        """Take account of a row; the rows of one device come in their order."""
        seen = self._devices.get(row.device_id)
        if seen is None:
            seen = self._devices[row.device_id] = _Seen(row.at_ms, row.at_ms)
        for kind in [kind for kind in seen.open if kind not in row.labels]:
            self._close(row.device_id, seen, kind, row.at_ms)
        for kind in row.labels:
            seen.open.setdefault(kind, row.at_ms)
        seen.rows += 1
        seen.first_ms = min(seen.first_ms, row.at_ms)
        seen.last_ms = max(seen.last_ms, row.at_ms)
        for reading in row.readings:
            seen.units[reading.metric] = reading.unit
            if reading.value is not None:
                low, high = seen.ranges.get(reading.metric, (reading.value, reading.value))
                seen.ranges[reading.metric] = (min(low, reading.value), max(high, reading.value))

    def add_interval(self, interval: Interval) -> None:
        """A labelled time that is not in the rows."""
        self._intervals.append(interval)

    def _close(self, device_id: str, seen: _Seen, kind: str, at_ms: int) -> None:
        self._intervals.append(Interval(device_id, kind, None, seen.open.pop(kind), at_ms))

    @property
    def is_empty(self) -> bool:
        return not self._devices

    @property
    def first_ms(self) -> int:
        return min(seen.first_ms for seen in self._devices.values())

    @property
    def last_ms(self) -> int:
        return max(seen.last_ms for seen in self._devices.values())

    def end_file(self) -> None:
        """A file is over: what it still labels ends with the last row of its device."""
        for device_id, seen in self._devices.items():
            for kind in list(seen.open):
                self._close(device_id, seen, kind, seen.last_ms)

    def intervals(self) -> list[Interval]:
        """The labelled times of the files that are over."""
        return list(self._intervals)

    def metadata(self, place: Mapping[str, str], session_id: int) -> list[DeviceMetadata]:
        """The recorded devices; their ranges are what the recording holds."""
        return [
            DeviceMetadata(
                device=_device(device_id, number, seen, place),
                session_id=session_id,
                sample_interval_ms=max((seen.last_ms - seen.first_ms) // max(seen.rows - 1, 1), 1),
                health="NORMAL",
                state="ONLINE",
                since=session_id,
            )
            for number, (device_id, seen) in enumerate(self._devices.items())
        ]


def _device(device_id: str, number: int, seen: _Seen, place: Mapping[str, str]) -> Device:
    metrics = []
    for metric, unit in seen.units.items():
        low, high = seen.ranges.get(metric, (0.0, 0.0))
        metrics.append(MetricSpec(metric, unit, (low + high) / 2, low, high, low, high, 0.0, 0.0, 0.0, 0.0, 1))
    return Device(
        device_id=device_id,
        device_type=RECORDED,
        number=number,
        manufacturer=place.get("manufacturer", ""),
        model=place.get("model", ""),
        serial="",
        site=place.get("site", ""),
        area=place.get("area", ""),
        line=place.get("line", ""),
        load_period_ms=1,
        metrics=tuple(metrics),
    )
