"""One device sample: its shape, and the test that decides whether a decoded value is one."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from math import isfinite
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple


class Reading(NamedTuple):
    """One metric's value; `value` None when the device could not measure (quality BAD or STALE)."""

    metric: str
    value: float | None
    unit: str
    quality: str
    status_code: int


class Sample(NamedTuple):
    """One device at one instant; times in ms UTC; `seq` starts at 1 in a session and grows by 1."""

    device_id: str
    session_id: int
    seq: int
    source_timestamp: int
    recorded_timestamp: int
    is_historical: bool
    metrics: tuple[Reading, ...]


Reason = Literal[
    "tombstone",
    "too_large",
    "invalid_utf8",
    "malformed_json",
    "not_finite",
    "wrong_type",
    "missing_field",
    "out_of_bounds",
    "absurd_timestamp",
    "key_mismatch",
    "duplicate_metric",
    "unknown_device",
]


class Rejected(NamedTuple):
    """Why a record is not a sample: `reason` is a metric label, `detail` one sentence for a person."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sample may be; `known_devices` None accepts any device.

    `units` and `devices` remember what passed (metric to unit, key to device), as nearly all samples repeat it.
    """

    max_value_bytes: int = 65_536
    max_future_ms: int = 60_000
    max_metrics: int = 256
    max_name_length: int = 128
    max_abs_value: float = 1e15
    known_devices: Container[str] | None = None
    units: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    devices: dict[bytes | None, str] = field(init=False, repr=False, compare=False, default_factory=dict)


GOOD: Final = "GOOD"
QUALITIES: Final = frozenset({"GOOD", "UNCERTAIN", "BAD", "STALE"})
EARLIEST_MS: Final = 946_684_800_000  # 2000-01-01: a clock before that was never set
MAX_EXACT_INT: Final = 2**53 - 1  # larger integers are not exact in JSON readers with doubles
MAX_STATUS_CODE: Final = 2**32 - 1

_SAMPLE_TYPES: Final = {
    "device_id": "text",
    "session_id": "integer",
    "seq": "integer",
    "source_timestamp": "integer",
    "recorded_timestamp": "integer",
    "is_historical": "boolean",
    "metrics": "list",
}
_READING_TYPES: Final = {
    "metric": "text",
    "value": "number or null",
    "unit": "text",
    "quality": "text",
    "status_code": "integer",
}
_IS_A: Final[dict[str, Callable[[Any], bool]]] = {
    "text": lambda value: value.__class__ is str,
    "integer": lambda value: value.__class__ is int,
    "boolean": lambda value: value.__class__ is bool,
    "list": lambda value: value.__class__ is list,
    "number or null": lambda value: value is None or value.__class__ in {int, float},
}
_UNKNOWN: Final = object()
_MEMO_ENTRIES: Final = 200_000  # a memo that strangers fill with new names starts again here
_sample_row = itemgetter(*_SAMPLE_TYPES)
_reading_row = itemgetter(*_READING_TYPES)
_first = itemgetter(0)
_make: Callable[[type[Reading], tuple[Any, ...]], Reading] = tuple.__new__  # half the cost of Reading(...)
_make_sample: Callable[[type[Sample], tuple[Any, ...]], Sample] = tuple.__new__


def validate(decoded: Any, key: bytes | None, limits: Limits, now_ms: int) -> Sample | Rejected:
    """Return the sample in a decoded JSON value, or why there is none. Never raises.

    A healthy sample passes one run of cheap tests; only a bad one pays for finding the reason.
    """
    try:
        sample = _healthy(decoded, key, limits, now_ms)
    except (KeyError, TypeError, ValueError, AttributeError):  # ValueError: a lone surrogate does not encode
        sample = None
    return sample or _explain(decoded, key, limits, now_ms)


def _healthy(decoded: Any, key: bytes | None, limits: Limits, now_ms: int) -> Sample | None:
    device_id, session_id, seq, source, recorded, historical, metrics = _sample_row(decoded)
    latest = now_ms + limits.max_future_ms
    if (
        (limits.devices.get(key, _UNKNOWN) == device_id or _is_device(device_id, key, limits))
        and session_id.__class__ is seq.__class__ is source.__class__ is recorded.__class__ is int
        and historical.__class__ is bool
        and 0 <= session_id <= MAX_EXACT_INT
        and 0 < seq <= MAX_EXACT_INT
        and EARLIEST_MS <= source <= latest
        and EARLIEST_MS <= recorded <= latest
        and (limits.known_devices is None or device_id in limits.known_devices)
    ):
        readings = _readings(metrics, limits)
        if readings is not None:
            return _make_sample(Sample, (device_id, session_id, seq, source, recorded, historical, readings))
    return None


def _readings(metrics: Any, limits: Limits) -> tuple[Reading, ...] | None:
    if metrics.__class__ is not list or len(metrics) > limits.max_metrics:
        return None
    bound = limits.max_abs_value
    units = limits.units
    readings = []
    for item in metrics:
        row = _reading_row(item)
        metric, value, unit, quality, status_code = row
        if value.__class__ is int:
            value = float(value)
            row = (metric, value, unit, quality, status_code)
        if (
            (units.get(metric, _UNKNOWN) != unit and not _is_metric(metric, unit, limits))
            or (quality != GOOD and quality not in QUALITIES)
            or status_code.__class__ is not int
            or not 0 <= status_code <= MAX_STATUS_CODE
            or (value is not None and (value.__class__ is not float or not -bound <= value <= bound))
        ):
            return None
        readings.append(_make(Reading, row))
    if len(readings) > 1 and len(set(map(_first, readings))) != len(readings):
        return None
    return tuple(readings)


def _is_device(device_id: Any, key: bytes | None, limits: Limits) -> bool:
    if device_id.__class__ is not str or key != device_id.encode() or _wrong_name("", device_id, limits):
        return False
    if len(limits.devices) >= _MEMO_ENTRIES:
        limits.devices.clear()
    limits.devices[key] = device_id
    return True


def _is_metric(metric: Any, unit: Any, limits: Limits) -> bool:
    if metric.__class__ is not str or unit.__class__ is not str:
        return False
    if _wrong_name("", metric, limits) or len(unit) > limits.max_name_length:
        return False
    if len(limits.units) >= _MEMO_ENTRIES:
        limits.units.clear()
    limits.units[metric] = unit
    return True


def _explain(decoded: Any, key: bytes | None, limits: Limits, now_ms: int) -> Rejected:
    """Find the first reason in the order a person would look: shape, bounds, time, identity."""
    if decoded.__class__ is not dict:
        return Rejected("wrong_type", f"the value is a {type(decoded).__name__}, not an object")
    return (
        _wrong_shape(decoded, _SAMPLE_TYPES, "")
        or _wrong_metrics(decoded["metrics"], limits)
        or _wrong_name("device_id", decoded["device_id"], limits)
        or _wrong_number("session_id", decoded["session_id"], 0, MAX_EXACT_INT)
        or _wrong_number("seq", decoded["seq"], 1, MAX_EXACT_INT)
        or _wrong_time("source_timestamp", decoded["source_timestamp"], limits, now_ms)
        or _wrong_time("recorded_timestamp", decoded["recorded_timestamp"], limits, now_ms)
        or _wrong_device(decoded["device_id"], key)
        or Rejected("unknown_device", f"device {decoded['device_id']!r} is not in the registry")
    )


def _wrong_shape(item: dict[str, Any], types: dict[str, str], where: str) -> Rejected | None:
    for name, wanted in types.items():
        if name not in item:
            return Rejected("missing_field", f"{where}{name} is missing")
        if not _IS_A[wanted](item[name]):
            return Rejected("wrong_type", f"{where}{name} is a {type(item[name]).__name__}, not a {wanted}")
    return None


def _wrong_metrics(metrics: list[Any], limits: Limits) -> Rejected | None:
    if len(metrics) > limits.max_metrics:
        return Rejected("out_of_bounds", f"{len(metrics)} metrics are more than {limits.max_metrics}")
    names: set[str] = set()
    for index, item in enumerate(metrics):
        wrong = _wrong_reading(item, f"metrics[{index}].", limits)
        if wrong is not None:
            return wrong
        if item["metric"] in names:
            return Rejected("duplicate_metric", f"metric {item['metric']!r} is there twice")
        names.add(item["metric"])
    return None


def _wrong_reading(item: Any, where: str, limits: Limits) -> Rejected | None:
    if item.__class__ is not dict:
        return Rejected("wrong_type", f"{where[:-1]} is a {type(item).__name__}, not an object")
    value = item.get("value")
    if value.__class__ is float and not isfinite(value):
        return Rejected("not_finite", f"{where}value is {value}")
    wrong = (
        _wrong_shape(item, _READING_TYPES, where)
        or _wrong_name(f"{where}metric", item["metric"], limits)
        or _wrong_number(f"{where}status_code", item["status_code"], 0, MAX_STATUS_CODE)
    )
    if wrong is not None:
        return wrong
    if item["quality"] not in QUALITIES:
        return Rejected("out_of_bounds", f"{where}quality {item['quality'][:32]!r} is none of {sorted(QUALITIES)}")
    if len(item["unit"]) > limits.max_name_length:
        return Rejected("out_of_bounds", f"{where}unit is longer than {limits.max_name_length}")
    if value is None:
        return None
    return _wrong_number(f"{where}value", value, -limits.max_abs_value, limits.max_abs_value)


def _wrong_name(name: str, text: str, limits: Limits) -> Rejected | None:
    if not 0 < len(text) <= limits.max_name_length:
        return Rejected("out_of_bounds", f"{name} has {len(text)} characters, not 1 to {limits.max_name_length}")
    if not text.isprintable():
        return Rejected("out_of_bounds", f"{name} {text!r} holds control characters")
    return None


def _wrong_number(name: str, value: float, low: float, high: float) -> Rejected | None:
    if low <= value <= high:
        return None
    return Rejected("out_of_bounds", f"{name} {value:.17g} is outside {low:.17g} to {high:.17g}")


def _wrong_time(name: str, value: int, limits: Limits, now_ms: int) -> Rejected | None:
    if value < EARLIEST_MS:
        return Rejected("absurd_timestamp", f"{name} {value} is before the year 2000")
    if value > now_ms + limits.max_future_ms:
        ahead = value - now_ms
        return Rejected("absurd_timestamp", f"{name} is {ahead} ms ahead of now; {limits.max_future_ms} ms are allowed")
    return None


def _wrong_device(device_id: str, key: bytes | None) -> Rejected | None:
    if key != device_id.encode(errors="surrogatepass"):
        return Rejected("key_mismatch", f"the record's key is {key!r:.160}, the device {device_id!r}")
    return None
