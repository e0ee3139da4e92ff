"""Faults of devices and of their transport, whose true times and sizes are known.

A device fault changes what a reading says; a transport fault changes when, in what order and how
often a sample arrives. A reading never tells of a fault beyond what a real device knows of itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

from app.domain.device import (
    BAD_SENSOR_FAILURE,
    GOOD,
    UNCERTAIN_ENGINEERING_UNITS_EXCEEDED,
    Device,
    MetricSpec,
    mixed,
    share,
)
from app.domain.reading import Reading

# In the order in which several at once are applied: what adds first, what replaces after it.
METRIC_FAULTS = ("drift", "spike", "stuck", "out_of_range", "dropout")
DEVICE_FAULTS = (*METRIC_FAULTS, "clock_skew")
TRANSPORT_FAULTS = ("late", "out_of_order", "duplicate", "burst")
FAULT_KINDS = (*DEVICE_FAULTS, *TRANSPORT_FAULTS)

# What the magnitude of each kind counts, and its smallest and largest in a plan.
#   spike, drift        shares of the metric's normal range, either sign; drift reaches it at its end
#   out_of_range        shares of the normal range beyond the instrument's range, either sign
#   clock_skew, late    milliseconds (skew: either sign)
#   duplicate           further copies of each sample
MAGNITUDES: dict[str, tuple[float, float]] = {
    "drift": (0.5, 1.0),
    "spike": (0.8, 1.5),
    "stuck": (0.0, 0.0),
    "out_of_range": (0.1, 0.5),
    "dropout": (0.0, 0.0),
    "clock_skew": (2_000.0, 30_000.0),
    "late": (2_000.0, 60_000.0),
    "out_of_order": (0.0, 0.0),
    "duplicate": (1.0, 3.0),
    "burst": (0.0, 0.0),
}
_EITHER_SIGN = frozenset({"drift", "spike", "out_of_range", "clock_skew"})
MAX_MAGNITUDE: dict[str, float] = {
    "drift": 100.0,
    "spike": 100.0,
    "stuck": 0.0,
    "out_of_range": 100.0,
    "dropout": 0.0,
    "clock_skew": 86_400_000.0,
    "late": 3_600_000.0,
    "out_of_order": 0.0,
    "duplicate": 10.0,
    "burst": 0.0,
}

DRIFT_FULL_MS = 600_000  # a drift without an end reaches its magnitude after ten minutes and stays there
SPIKE_SAMPLES = 3
MAX_FAULT_MS = 86_400_000


class Fault(NamedTuple):
    """One fault as it truly was, the record of `device.truth`.

    `metric` None means the whole device. `to_ts` None means that it has begun and not ended. For
    labels of recorded data `magnitude` and `seed` are None.
    """

    fault_id: str
    device_id: str
    kind: str
    metric: str | None
    from_ts: int
    to_ts: int | None
    magnitude: float | None
    seed: int | None


class ActiveFault(NamedTuple):
    """A fault in force; `frozen` is what a stuck device went on to show, one value a metric."""

    fault: Fault
    frozen: tuple[float, ...] = ()


class FaultPlan(NamedTuple):
    """A seeded schedule: each device has one fault in every `interval_ms`, at a drawn instant."""

    seed: int
    interval_ms: int
    kinds: tuple[str, ...]
    min_duration_ms: int
    max_duration_ms: int
    sample_interval_ms: int


def planned(plan: FaultPlan, device: Device, slot: int) -> Fault:
    """The fault of a device in the interval that begins at `slot * plan.interval_ms`.

    It begins and ends inside its interval, so that a device has at most one planned fault at a time.
    """
    bits = mixed(plan.seed, *device.device_id.encode(), slot)
    kind = plan.kinds[bits % len(plan.kinds)]
    metric = device.metrics[mixed(bits, 1) % len(device.metrics)].metric if kind in METRIC_FAULTS else None
    if kind == "dropout" and mixed(bits, 2) % 2:
        metric = None  # half of the dropouts silence the whole device
    duration_ms = _duration_ms(plan, kind, share(mixed(bits, 3)))
    begin = slot * plan.interval_ms + int(share(mixed(bits, 4)) * (plan.interval_ms - duration_ms))
    low, high = MAGNITUDES[kind]
    magnitude = low + (high - low) * share(mixed(bits, 5))
    if kind in _EITHER_SIGN and mixed(bits, 6) % 2:
        magnitude = -magnitude
    if kind in {"duplicate", "clock_skew", "late"}:
        magnitude = float(round(magnitude))
    return Fault(
        fault_id=f"plan-{plan.seed}-{device.device_id}-{slot}",
        device_id=device.device_id,
        kind=kind,
        metric=metric,
        from_ts=begin,
        to_ts=begin + duration_ms,
        magnitude=round(magnitude, 3),
        seed=plan.seed,
    )


def _duration_ms(plan: FaultPlan, kind: str, draw: float) -> int:
    longest = min(plan.max_duration_ms, plan.interval_ms)
    if kind == "spike":
        return min(SPIKE_SAMPLES * plan.sample_interval_ms, plan.interval_ms)
    shortest = min(plan.min_duration_ms, longest)
    return shortest + int(draw * (longest - shortest))


def problem_of(kind: str, metric: str | None, magnitude: float | None) -> str | None:
    """Why such a fault cannot be injected anywhere, or None."""
    if kind not in FAULT_KINDS:
        return f"there is no fault {kind!r}; there are {', '.join(FAULT_KINDS)}"
    if metric is not None and kind not in METRIC_FAULTS:
        return f"a {kind} fault concerns the whole device, not the metric {metric!r}"
    if magnitude is not None and not abs(magnitude) <= MAX_MAGNITUDE[kind]:
        return f"the magnitude of a {kind} fault is at most {MAX_MAGNITUDE[kind]:g}, not {magnitude:g}"
    if magnitude is not None and magnitude < 0 and kind not in _EITHER_SIGN:
        return f"the magnitude of a {kind} fault is not negative"
    return None


def default_magnitude(kind: str) -> float:
    """What a command means that names no magnitude: the middle of what plans draw from."""
    low, high = MAGNITUDES[kind]
    return float(round((low + high) / 2, 3)) if kind != "duplicate" else 1.0


def silences(active: Sequence[ActiveFault]) -> bool:
    """Whether the device says nothing at all."""
    return any(each.fault.kind == "dropout" and each.fault.metric is None for each in active)


def skew_ms(active: Sequence[ActiveFault]) -> int:
    """How far the device's clock is ahead of the true time."""
    return sum(int(each.fault.magnitude or 0) for each in active if each.fault.kind == "clock_skew")


def readings(device: Device, values: Sequence[float], active: Sequence[ActiveFault], at_ms: int) -> tuple[Reading, ...]:
    """What the device shows when its metrics truly are `values`."""
    out = []
    ordered = sorted(active, key=lambda each: FAULT_KINDS.index(each.fault.kind))
    for i, spec in enumerate(device.metrics):
        reading = Reading(spec.metric, values[i], spec.unit, "GOOD", GOOD)
        for each in ordered:
            if each.fault.kind in METRIC_FAULTS and each.fault.metric in {None, spec.metric}:
                reading = _distorted(reading, spec, each, i, at_ms)
        out.append(reading)
    return tuple(out)


def _distorted(reading: Reading, spec: MetricSpec, active: ActiveFault, i: int, at_ms: int) -> Reading:
    fault = active.fault
    magnitude = fault.magnitude or 0.0
    value = reading.value or 0.0
    if fault.kind == "drift":
        full_ms = DRIFT_FULL_MS if fault.to_ts is None else max(fault.to_ts - fault.from_ts, 1)
        ramp = min(max((at_ms - fault.from_ts) / full_ms, 0.0), 1.0)
        return reading._replace(value=_shown(spec, value + magnitude * spec.span * ramp))
    if fault.kind == "spike":
        return reading._replace(value=_shown(spec, value + magnitude * spec.span))
    if fault.kind == "stuck":
        return reading._replace(value=active.frozen[i])
    if fault.kind == "out_of_range":
        beyond = spec.instrument_high if magnitude >= 0 else spec.instrument_low
        shown = round(beyond + magnitude * spec.span, 3)
        return Reading(spec.metric, shown, spec.unit, "UNCERTAIN", UNCERTAIN_ENGINEERING_UNITS_EXCEEDED)
    return Reading(spec.metric, None, spec.unit, "BAD", BAD_SENSOR_FAILURE)


def _shown(spec: MetricSpec, value: float) -> float:
    """A sensor shows no more than its range."""
    return round(min(max(value, spec.instrument_low), spec.instrument_high), 3)


def health(active: Sequence[ActiveFault]) -> str:
    """What the device knows of itself, as NAMUR NE 107 (OPC UA DI DeviceHealthEnumeration) names it."""
    kinds = {each.fault.kind for each in active if each.fault.metric is not None or each.fault.kind != "dropout"}
    if "dropout" in kinds:
        return "FAILURE"
    return "OFF_SPEC" if "out_of_range" in kinds else "NORMAL"
