"""What the API remembers of the topics: devices, rollups and signals, all of it bounded."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from app.domain import dedupe
from app.http.paging import Key, page
from app.http.schemas import DeviceView, RollupView, SampleView, SignalView
from config.http import ReadModelSettings
from config.topics import DEVICE_METADATA, DEVICE_ROLLUPS, DEVICE_SIGNALS, DEVICE_TELEMETRY

Document = dict[str, Any]
UNANNOUNCED: Document = {
    "device_type": "",
    "metrics": [],
    "health": "UNKNOWN",
    "state": "UNKNOWN",
    "samples": 0,
    "gaps": 0,
    "duplicates": 0,
}
DEDUPE = dedupe.DedupeSpec(sessions=2)


class Series(NamedTuple):
    """One device's metric over windows of one size."""

    device_id: str
    metric: str
    window_ms: int


class StoredRollup(NamedTuple):
    """The latest revision of one window, still encoded: most are never asked for."""

    start: int
    series: Series
    revision: int
    value: bytes


class Device:
    """What is known of one device; mutable, owned by the model."""

    __slots__ = ("device_id", "duplicates", "gaps", "metadata", "recorded_ms", "sample", "samples", "seen")

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self.metadata: Document = {}
        self.sample: Document | None = None
        self.recorded_ms = 0
        self.samples = 0
        self.gaps = 0
        self.duplicates = 0
        self.seen = dedupe.Seen()

    def state(self, now_ms: int, offline_after_ms: int) -> str:
        """ONLINE while it is heard, at the pace it announced; OFFLINE; UNKNOWN when only others know."""
        told = self.metadata.get("state")
        if told == "OFFLINE" or self.sample is None:
            return str(told or "UNKNOWN")
        intervals = (metric.get("sample_interval_ms", 0) for metric in self.metadata.get("metrics", ()))
        patience_ms = max(offline_after_ms, 3 * max(intervals, default=0))
        return "ONLINE" if now_ms - self.recorded_ms <= patience_ms else "OFFLINE"

    def view(self, now_ms: int, offline_after_ms: int) -> Document:
        return {
            **UNANNOUNCED,
            **self.metadata,
            "device_id": self.device_id,
            "state": self.state(now_ms, offline_after_ms),
            "last_sample": _shown(self.sample),
            "samples": self.samples,
            "gaps": self.gaps,
            "duplicates": self.duplicates,
        }


class ReadModel:
    """Fed with records, asked for pages. Nothing here waits or reads a clock."""

    def __init__(self, limits: ReadModelSettings) -> None:
        self._limits = limits
        self._devices: OrderedDict[str, Device] = OrderedDict()  # least recently heard first
        self._starts: dict[int, dict[Series, StoredRollup]] = {}
        self._series: dict[Series, OrderedDict[int, None]] = {}
        self._series_of: dict[str, set[Series]] = {}
        self._arrivals: deque[tuple[int, Series]] = deque()
        self._rollups = 0
        self._signals: OrderedDict[tuple[str, str], Document] = OrderedDict()
        self.unreadable = 0
        self._apply: dict[str, Callable[[Document], None]] = {
            DEVICE_METADATA.name: self._take_metadata,
            DEVICE_TELEMETRY.name: self._take_sample,
            DEVICE_SIGNALS.name: self._take_signal,
        }

    # ---- feeding

    def take(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """Apply one record; one that cannot be read is counted and left to the dead letters of its stage."""
        try:
            if value is None:
                if topic == DEVICE_METADATA.name and key is not None:
                    self._devices.pop(key.decode(), None)
                return
            fields = orjson.loads(value)
            if topic == DEVICE_ROLLUPS.name:
                self._take_rollup(fields, value)
            else:
                self._apply[topic](fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.unreadable += 1

    def forget_sequences(self) -> None:
        """Telemetry was skipped: what is missing from here on is no gap of the devices."""
        for device in self._devices.values():
            device.seen = dedupe.Seen()

    def _device(self, device_id: str) -> Device:
        device = self._devices.get(device_id)
        if device is None:
            device = self._devices[device_id] = Device(device_id)
            if len(self._devices) > self._limits.devices_max:
                self._devices.popitem(last=False)
        else:
            self._devices.move_to_end(device_id)
        return device

    def _take_metadata(self, fields: Document) -> None:
        # Checked now: one bad record must not spoil every list it would be shown in.
        DeviceView.model_validate({**UNANNOUNCED, **fields})
        self._device(str(fields["device_id"])).metadata = fields

    def _take_sample(self, fields: Document) -> None:
        session_id, seq, recorded_ms = int(fields["session_id"]), int(fields["seq"]), int(fields["recorded_timestamp"])
        device = self._device(str(fields["device_id"]))
        if dedupe.observe(device.seen, session_id, seq, DEDUPE) == dedupe.DUPLICATE:
            device.duplicates += 1
            return
        device.samples += 1
        device.gaps += dedupe.take_gaps(device.seen)
        if device.sample is None or (session_id, seq) > (device.sample["session_id"], device.sample["seq"]):
            device.sample = fields
            device.recorded_ms = max(device.recorded_ms, recorded_ms)

    def _take_signal(self, fields: Document) -> None:
        SignalView.model_validate(fields)
        _in_range(fields["at"])
        identity = (str(fields["signal_id"]), str(fields["state"]))
        self._signals.pop(identity, None)
        self._signals[identity] = fields
        if len(self._signals) > self._limits.signals_max:
            self._signals.popitem(last=False)

    def _take_rollup(self, fields: Document, value: bytes) -> None:
        found = RollupView.model_validate(fields)
        start, revision = _in_range(found.window_start), found.revision
        series = Series(found.device_id, found.metric, _in_range(found.window_ms))
        bucket = self._starts.setdefault(start, {})
        known = bucket.get(series)
        if known is not None:
            if revision >= known.revision:
                bucket[series] = StoredRollup(start, series, revision, value)
            return
        bucket[series] = StoredRollup(start, series, revision, value)
        self._rollups += 1
        self._arrivals.append((start, series))
        windows = self._series.setdefault(series, OrderedDict())
        self._series_of.setdefault(series.device_id, set()).add(series)
        windows[start] = None
        if len(windows) > self._limits.windows_per_series:
            self._drop(min(windows), series)
        while self._rollups > self._limits.rollups_max:
            self._drop(*self._arrivals.popleft())
        if len(self._arrivals) > 2 * self._rollups + 1000:  # most of it was dropped by its series meanwhile
            self._arrivals = deque(item for item in self._arrivals if item[1] in self._starts.get(item[0], ()))

    def _drop(self, start: int, series: Series) -> None:
        bucket = self._starts.get(start)
        if bucket is None or bucket.pop(series, None) is None:
            return
        self._rollups -= 1
        if not bucket:
            del self._starts[start]
        windows = self._series[series]
        del windows[start]
        if not windows:
            del self._series[series]
            known = self._series_of[series.device_id]
            known.discard(series)
            if not known:
                del self._series_of[series.device_id]

    # ---- asking

    @property
    def sizes(self) -> dict[str, int]:
        return {"devices": len(self._devices), "rollups": self._rollups, "signals": len(self._signals)}

    def knows(self, device_id: str) -> bool:
        return device_id in self._devices

    def device(self, device_id: str, now_ms: int) -> Document | None:
        device = self._devices.get(device_id)
        return None if device is None else device.view(now_ms, self._limits.offline_after_ms)

    def devices(
        self,
        now_ms: int,
        *,
        device_type: str | None = None,
        site: str | None = None,
        state: str | None = None,
        after: Key | None = None,
        limit: int = 100,
    ) -> tuple[list[Document], Key | None]:
        """A page in the order of device_id."""
        offline_after_ms = self._limits.offline_after_ms
        wanted = (
            device
            for device in self._devices.values()
            if (device_type is None or device.metadata.get("device_type") == device_type)
            and (site is None or device.metadata.get("site") == site)
            and (state is None or device.state(now_ms, offline_after_ms) == state)
        )
        found, go_on = page(wanted, lambda device: (device.device_id,), after, limit)
        return [device.view(now_ms, offline_after_ms) for device in found], go_on

    def rollups(
        self,
        *,
        device_id: str | None = None,
        metric: str | None = None,
        window_ms: int | None = None,
        since: int | None = None,
        until: int | None = None,
        after: Key | None = None,
        limit: int = 100,
    ) -> tuple[list[Document], Key | None]:
        """A page, newest window first: since ≤ window_start < until."""

        def wanted(stored: StoredRollup) -> bool:
            series = stored.series
            return (
                (device_id is None or series.device_id == device_id)
                and (metric is None or series.metric == metric)
                and (window_ms is None or series.window_ms == window_ms)
                and (since is None or stored.start >= since)
                and (until is None or stored.start < until)
            )

        found: list[StoredRollup] = []
        for group in self._groups(device_id, after):
            # Groups come newest first and never overlap: the page ends in the group that fills it.
            some, _ = page(filter(wanted, group), _rollup_key, after, limit + 1 - len(found))
            found += some
            if len(found) > limit:
                break
        go_on = _rollup_key(found[limit - 1]) if len(found) > limit else None
        return [orjson.loads(stored.value) for stored in found[:limit]], go_on

    def signals(
        self,
        *,
        device_id: str | None = None,
        rule: str | None = None,
        severity: str | None = None,
        state: str | None = None,
        since: int | None = None,
        until: int | None = None,
        after: Key | None = None,
        limit: int = 100,
    ) -> tuple[list[Document], Key | None]:
        """A page, newest first: since ≤ at < until."""
        exact = {"device_id": device_id, "rule": rule, "severity": severity, "state": state}
        wanted = {name: value for name, value in exact.items() if value is not None}
        matching = (
            fields
            for fields in self._signals.values()
            if all(fields.get(name) == value for name, value in wanted.items())
            and (since is None or fields["at"] >= since)
            and (until is None or fields["at"] < until)
        )
        return page(matching, _signal_key, after, limit)

    def _groups(self, device_id: str | None, after: Key | None) -> Iterator[Iterable[StoredRollup]]:
        """Rollups in groups of equal start, newest first; those of one device are one group."""
        if device_id is not None:
            series_of = self._series_of.get(device_id, ())
            yield [self._starts[start][series] for series in series_of for start in self._series[series]]
            return
        for start in sorted(self._starts, reverse=True):
            if after is None or -start >= int(after[0]):
                yield self._starts[start].values()


def _in_range(number: int) -> int:
    """A key of a page fits into 64 bits, as JSON numbers of other languages do."""
    if not -(2**53) <= number <= 2**53:
        raise ValueError("out of range")
    return number


def _shown(sample: Document | None) -> Document | None:
    """Telemetry is read as it is sent, and only what is shown is checked: all of it would cost too much."""
    try:
        SampleView.model_validate(sample)
    except ValidationError:
        return None
    return sample


def _rollup_key(stored: StoredRollup) -> Key:
    return (-stored.start, stored.series.window_ms, stored.series.device_id, stored.series.metric)


def _signal_key(fields: Document) -> Key:
    return (-int(fields["at"]), str(fields["signal_id"]), str(fields["state"]))
