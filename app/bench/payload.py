"""The telemetry every side works on, and what the work must give: pure functions of a plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

WINDOW_MS = 10_000
SAMPLE_INTERVAL_MS = 1000
DEVICES = 1000
PAYLOAD_FILE_RECORDS = 10_000

_TEMPLATE = (
    b'{"device_id":"press-%04d","session_id":%d,"seq":%d,"source_timestamp":%d,"recorded_timestamp":%d,'
    b'"is_historical":false,"metrics":[{"metric":"temperature","value":%.2f,"unit":"CEL","quality":"GOOD",'
    b'"status_code":0}]}'
)


class Record(NamedTuple):
    """One Kafka record of the input."""

    key: bytes
    value: bytes
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Samples of `devices` devices, one a second each, from `start_ms` (a multiple of the window)."""

    records: int
    start_ms: int
    devices: int = DEVICES

    @property
    def instants(self) -> int:
        """Seconds of event time; the last one may lack devices."""
        return -(-self.records // self.devices)

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.instants * SAMPLE_INTERVAL_MS

    @property
    def flush_ms(self) -> int:
        """Instant of the one last sample a device, late enough to close every window before it."""
        return self.end_ms + 6 * WINDOW_MS


def plan_until(now_ms: int, records: int, devices: int = DEVICES) -> Plan:
    """A plan that ends about an hour before `now_ms`, in whole windows: brokers refuse records of the future."""
    span_ms = -(-records // devices) * SAMPLE_INTERVAL_MS
    start_ms = now_ms - 3_600_000 - span_ms
    return Plan(records, start_ms - start_ms % WINDOW_MS, devices)


def value_of(device: int, instant: int) -> float:
    """A reading in °C with two decimals, 40 to 80, different for neighbours in device and time."""
    return (4000 + (device * 7919 + instant * 10_477) % 4000) / 100


def sample(plan: Plan, device: int, instant: int, timestamp_ms: int) -> Record:
    """The sample of `device` at the `instant`-th second (`seq` counts from 1)."""
    value = _TEMPLATE % (
        device,
        plan.start_ms,
        instant + 1,
        timestamp_ms,
        timestamp_ms + 3,
        value_of(device, instant),
    )
    return Record(b"press-%04d" % device, value, timestamp_ms)


def samples(plan: Plan) -> Iterator[Record]:
    """Every sample in order of time, then device."""
    for index in range(plan.records):
        instant, device = divmod(index, plan.devices)
        yield sample(plan, device, instant, plan.start_ms + instant * SAMPLE_INTERVAL_MS)


def flush_samples(plan: Plan) -> Iterator[Record]:
    """One last sample a device, which closes its windows on every side, whether closed by key or by partition."""
    for device in range(plan.devices):
        yield sample(plan, device, plan.instants, plan.flush_ms)


def converted(reading: dict[str, Any]) -> dict[str, Any]:
    """The work of map-and-forward: °C to °F in the first metric, and the site added."""
    metric = reading["metrics"][0]
    changed = {**metric, "value": metric["value"] * 1.8 + 32, "unit": "FAH"}
    return {**reading, "metrics": [changed, *reading["metrics"][1:]], "site": "north"}


class Ohlc(NamedTuple):
    """One device's window as every side must give it."""

    open: float
    high: float
    low: float
    close: float
    samples: int
    sum: float


def expected_rollups(plan: Plan) -> dict[tuple[str, int], Ohlc]:
    """Every window the samples fill, by (device_id, window_start); the flush samples' own windows stay open."""
    windows: dict[tuple[str, int], Ohlc] = {}
    for index in range(plan.records):
        instant, device = divmod(index, plan.devices)
        timestamp_ms = plan.start_ms + instant * SAMPLE_INTERVAL_MS
        key = (f"press-{device:04d}", timestamp_ms - timestamp_ms % WINDOW_MS)
        value = value_of(device, instant)
        old = windows.get(key)
        windows[key] = (
            Ohlc(value, value, value, value, 1, value)
            if old is None
            else Ohlc(old.open, max(old.high, value), min(old.low, value), value, old.samples + 1, old.sum + value)
        )
    return windows
