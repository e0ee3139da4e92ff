"""The fast way to read a sample: types are checked while the JSON is parsed, by msgspec in C.

A healthy sample of one metric costs 1.4 µs here and 2.2 µs through orjson and `app.domain.reading` (2.2 and 3.7
with three metrics), and reading samples is a third of the transform stage. Whatever is not plainly healthy
is left to that other way, which knows all the reasons.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from app.domain.reading import EARLIEST_MS, MAX_EXACT_INT, MAX_STATUS_CODE, Limits, Reading, Sample


class _WireReading(msgspec.Struct, gc=False):
    metric: str
    value: float | None
    unit: str
    quality: Literal["GOOD", "UNCERTAIN", "BAD", "STALE"]
    status_code: int


class _WireSample(msgspec.Struct, gc=False):
    device_id: str
    session_id: int
    seq: int
    source_timestamp: int
    recorded_timestamp: int
    is_historical: bool
    metrics: list[_WireReading]


_decode: Final = msgspec.json.Decoder(_WireSample).decode
_reading: Final[Callable[[type[Reading], tuple[Any, ...]], Reading]] = tuple.__new__
_sample: Final[Callable[[type[Sample], tuple[Any, ...]], Sample]] = tuple.__new__


def healthy_sample(value: bytes, key: bytes | None, limits: Limits, now_ms: int) -> Sample | None:
    """The sample in `value` when nothing about it is new or wrong, else None. Never raises.

    "New" is a device or a metric's unit that `limits` does not remember: their names are checked the other way.
    """
    try:
        wire = _decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    device_id, source, recorded = wire.device_id, wire.source_timestamp, wire.recorded_timestamp
    latest = now_ms + limits.max_future_ms
    if not (
        limits.devices.get(key) == device_id
        and 0 <= wire.session_id <= MAX_EXACT_INT
        and 0 < wire.seq <= MAX_EXACT_INT
        and EARLIEST_MS <= source <= latest
        and EARLIEST_MS <= recorded <= latest
        and (limits.known_devices is None or device_id in limits.known_devices)
    ):
        return None
    readings = _readings(wire.metrics, limits)
    if readings is None:
        return None
    return _sample(Sample, (device_id, wire.session_id, wire.seq, source, recorded, wire.is_historical, readings))


def _readings(wires: list[_WireReading], limits: Limits) -> tuple[Reading, ...] | None:
    bound, units = limits.max_abs_value, limits.units
    readings = []
    for wire in wires:
        metric, value, unit, status_code = wire.metric, wire.value, wire.unit, wire.status_code
        if (
            units.get(metric) != unit
            or (value is not None and not -bound <= value <= bound)
            or not 0 <= status_code <= MAX_STATUS_CODE
        ):
            return None
        readings.append(_reading(Reading, (metric, value, unit, wire.quality, status_code)))
    count = len(readings)
    if count > limits.max_metrics or (count > 1 and len({reading[0] for reading in readings}) != count):
        return None
    return tuple(readings)
