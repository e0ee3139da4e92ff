"""Device types with their physics, and how a fleet of them is laid out in a plant.

A reading is setpoint + daily season + load cycle + mean-reverting noise + wear, each a share of the
metric's normal range (`eu_high - eu_low`) times the fleet's variation. It is a function of
(seed, device, instant) alone: the same on every run and after every restart, whatever was asked before.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

DAY_MS = 86_400_000
WEAR_PERIOD_MS = 30 * DAY_MS  # wear grows for thirty days, then maintenance takes it back to zero

# OPC UA status codes (Part 6, annex A) of what a device can say about its own reading.
GOOD = 0x00000000
UNCERTAIN_ENGINEERING_UNITS_EXCEEDED = 0x40940000
BAD_SENSOR_FAILURE = 0x808C0000
BAD_NO_DATA = 0x809B0000

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

# One 64-bit draw serves four metrics of twelve bits each: 4096 quantiles reach ±3.7 sigma.
_QUANTILE_BITS = 12
_QUANTILE_MASK = (1 << _QUANTILE_BITS) - 1
_QUANTILES = tuple(NormalDist().inv_cdf((i + 0.5) / (1 << _QUANTILE_BITS)) for i in range(1 << _QUANTILE_BITS))
MAX_METRICS = 64 // _QUANTILE_BITS - 1

# The noise forgets what is older than one to two blocks, so that any instant can be computed from
# scratch in at most 2 x 64 steps; 0.95^64 = 0.04 of a standard deviation is the seam this leaves.
_NOISE_BLOCK = 64
_NOISE_KEEP_MAX = 0.95


def mixed(*parts: int) -> int:
    """64 well-mixed bits of integers (splitmix64, Steele, Lea and Flood 2014), the same everywhere."""
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK)) + _GOLDEN & _MASK
        state = (state ^ state >> 30) * _MIX_1 & _MASK
        state = (state ^ state >> 27) * _MIX_2 & _MASK
        state ^= state >> 31
    return state


def share(bits: int) -> float:
    """64 bits as a number in [0, 1)."""
    return (bits >> 11) * 2.0**-53


class MetricSpec(NamedTuple):
    """One metric of a device type.

    `unit` is a UNECE Rec 20 code. The EU range is where it normally works, the instrument range what
    the sensor can show (OPC UA Part 8). `season`, `load`, `noise` and `wear` weigh the parts of the
    signal; `noise_tau_ms` is how long the noise takes to return to its mean.
    """

    metric: str
    unit: str
    setpoint: float
    eu_low: float
    eu_high: float
    instrument_low: float
    instrument_high: float
    season: float
    load: float
    noise: float
    wear: float
    noise_tau_ms: int

    @property
    def span(self) -> float:
        """Width of the normal range."""
        return self.eu_high - self.eu_low


class DeviceType(NamedTuple):
    """What devices of one make have in common; `load_period_ms` is the length of one work cycle."""

    name: str
    area: str
    manufacturer: str
    models: tuple[str, ...]
    load_period_ms: int
    metrics: tuple[MetricSpec, ...]


class Device(NamedTuple):
    """One device: identity, place (ISA-95 site, area, line) and metrics with its own setpoints."""

    device_id: str
    device_type: str
    number: int
    manufacturer: str
    model: str
    serial: str
    site: str
    area: str
    line: str
    load_period_ms: int
    metrics: tuple[MetricSpec, ...]


_T, _V, _P, _S = "temperature", "vibration", "pressure", "speed"
_C, _W, _F = "current", "power", "flow"

#                      metric unit setpoint eu range        instrument     season load noise wear tau
_PRESS = (
    MetricSpec(_T, "CEL", 55.0, 20.0, 90.0, -20.0, 150.0, 0.6, 0.8, 0.25, 0.6, 20_000),
    MetricSpec(_P, "BAR", 180.0, 120.0, 240.0, 0.0, 400.0, 0.1, 1.6, 0.30, 0.3, 5_000),
    MetricSpec(_V, "C16", 3.5, 0.0, 7.0, 0.0, 25.0, 0.0, 1.2, 0.40, 1.0, 3_000),
    MetricSpec(_C, "AMP", 60.0, 20.0, 100.0, 0.0, 200.0, 0.1, 1.5, 0.30, 0.4, 5_000),
)
_PUMP = (
    MetricSpec(_F, "MQH", 120.0, 80.0, 160.0, 0.0, 250.0, 0.3, 1.0, 0.30, 0.5, 8_000),
    MetricSpec(_P, "BAR", 6.0, 3.0, 9.0, 0.0, 16.0, 0.1, 0.9, 0.30, 0.4, 5_000),
    MetricSpec(_V, "C16", 2.2, 0.0, 4.5, 0.0, 20.0, 0.0, 0.7, 0.40, 1.1, 3_000),
)
_COMPRESSOR = (
    MetricSpec(_P, "BAR", 8.5, 6.0, 11.0, 0.0, 16.0, 0.2, 1.4, 0.25, 0.4, 10_000),
    MetricSpec(_T, "CEL", 78.0, 50.0, 105.0, -20.0, 180.0, 0.8, 0.9, 0.25, 0.6, 30_000),
    MetricSpec(_W, "KWT", 55.0, 30.0, 80.0, 0.0, 110.0, 0.1, 1.5, 0.30, 0.3, 5_000),
)
_MOTOR = (
    MetricSpec(_S, "RPM", 1480.0, 1400.0, 1560.0, 0.0, 3600.0, 0.0, 0.9, 0.35, 0.2, 4_000),
    MetricSpec(_C, "AMP", 32.0, 15.0, 50.0, 0.0, 120.0, 0.1, 1.3, 0.30, 0.4, 5_000),
    MetricSpec(_T, "CEL", 68.0, 30.0, 105.0, -20.0, 180.0, 0.8, 0.8, 0.20, 0.6, 30_000),
    MetricSpec(_V, "C16", 1.8, 0.0, 3.6, 0.0, 20.0, 0.0, 0.6, 0.40, 1.1, 3_000),
)
_FURNACE = (
    MetricSpec(_T, "CEL", 870.0, 800.0, 940.0, 0.0, 1300.0, 0.2, 1.0, 0.20, 0.4, 60_000),
    MetricSpec(_W, "KWT", 320.0, 200.0, 440.0, 0.0, 600.0, 0.2, 1.5, 0.30, 0.5, 10_000),
)
_CNC_MILL = (
    MetricSpec(_S, "RPM", 9000.0, 6000.0, 12000.0, 0.0, 18000.0, 0.0, 1.6, 0.30, 0.2, 3_000),
    MetricSpec(_V, "C16", 1.4, 0.0, 2.8, 0.0, 20.0, 0.0, 0.9, 0.40, 1.1, 2_000),
    MetricSpec(_W, "KWT", 14.0, 4.0, 24.0, 0.0, 40.0, 0.0, 1.6, 0.30, 0.3, 4_000),
)

TYPES: Mapping[str, DeviceType] = {
    kind.name: kind
    for kind in (
        DeviceType("press", "forming", "Hallmann", ("HP-400", "HP-630"), 12_000, _PRESS),
        DeviceType("pump", "utilities", "Aquaflux", ("CN-80", "CN-100"), 180_000, _PUMP),
        DeviceType("compressor", "utilities", "Ventor", ("SC-55", "SC-75"), 240_000, _COMPRESSOR),
        DeviceType("motor", "drives", "Elmotra", ("IE4-18", "IE4-22"), 90_000, _MOTOR),
        DeviceType("furnace", "heat-treatment", "Thermwerk", ("BF-900",), 1_800_000, _FURNACE),
        DeviceType("cnc_mill", "machining", "Fraesmeister", ("VM-5", "VM-7"), 45_000, _CNC_MILL),
    )
}


class Layout(NamedTuple):
    """How many devices of which type (`mix`: type with weight), over which sites and lines a site."""

    device_count: int
    seed: int
    mix: tuple[tuple[str, float], ...]
    sites: tuple[str, ...]
    lines_per_site: int


def lay_out(layout: Layout) -> tuple[Device, ...]:
    """The fleet's devices, types evenly interleaved; growing the count keeps every older device."""
    weights = {name: weight for name, weight in layout.mix if weight > 0}
    made = dict.fromkeys(weights, 0)
    devices = []
    for number in range(layout.device_count):
        # The type that is furthest behind its share comes next; ties go by the order of the mix.
        name = min(weights, key=lambda each: (made[each] + 1) / weights[each])
        made[name] += 1
        devices.append(_device(TYPES[name], made[name], number, layout))
    return tuple(devices)


def _device(kind: DeviceType, nth: int, number: int, layout: Layout) -> Device:
    device_id = f"{kind.name.replace('_', '-')}-{nth:04d}"
    bits = mixed(layout.seed, _text_key(device_id))
    site = layout.sites[number % len(layout.sites)]
    line = f"{site}-line-{number // len(layout.sites) % layout.lines_per_site + 1}"
    return Device(
        device_id=device_id,
        device_type=kind.name,
        number=number,
        manufacturer=kind.manufacturer,
        model=kind.models[bits % len(kind.models)],
        serial=f"{kind.manufacturer[:2].upper()}{mixed(bits) % 10**8:08d}",
        site=site,
        area=kind.area,
        line=line,
        load_period_ms=int(kind.load_period_ms * (0.9 + 0.2 * share(mixed(bits, 1)))),
        metrics=tuple(
            # No two devices are alike: setpoints differ by up to two hundredths of the normal range.
            spec._replace(setpoint=round(spec.setpoint + spec.span * 0.04 * (share(mixed(bits, 2, i)) - 0.5), 3))
            for i, spec in enumerate(kind.metrics)
        ),
    )


def _text_key(text: str) -> int:
    return mixed(*text.encode())


class Physics:
    """The signal of one device, computed instant by instant.

    The instants are `phase_ms + index * interval_ms`. `values(index)` is fast for consecutive
    indexes and correct for any other.
    """

    __slots__ = (
        "_day",
        "_fresh",
        "_index",
        "_key",
        "_load_offset",
        "_load_period_ms",
        "_noise",
        "_parts",
        "_wear_offset",
        "device",
        "interval_ms",
        "phase_ms",
    )

    def __init__(self, device: Device, seed: int, variation: float, interval_ms: int, phase_ms: int) -> None:
        if len(device.metrics) > MAX_METRICS:
            raise ValueError(
                f"a device has at most {MAX_METRICS} metrics, {device.device_id} has {len(device.metrics)}"
            )
        self.device = device
        self.interval_ms = interval_ms
        self.phase_ms = phase_ms
        self._key = mixed(seed, _text_key(device.device_id))
        self._load_period_ms = device.load_period_ms
        self._load_offset = mixed(self._key, 1) % device.load_period_ms
        self._wear_offset = mixed(self._key, 2) % WEAR_PERIOD_MS
        self._day = math.tau * share(mixed(self._key, 3)) / 8  # devices peak within three hours of one another
        self._parts = [_part(spec, variation, interval_ms) for spec in device.metrics]
        self._index = -(1 << 62)  # nowhere
        self._noise = [0.0] * len(self._parts)
        self._fresh = [0.0] * len(self._parts)

    def values(self, index: int) -> list[float]:
        """The values of all metrics, in the order of the device's metrics, rounded to 0.001."""
        if index != self._index + 1:
            self._seek(index)
        self._index = index
        at_ms = index * self.interval_ms + self.phase_ms
        day = math.sin(at_ms % DAY_MS * (math.tau / DAY_MS) + self._day)
        period_ms = self._load_period_ms
        load = math.sin((at_ms + self._load_offset) % period_ms * (math.tau / period_ms))
        wear = (at_ms + self._wear_offset) % WEAR_PERIOD_MS / WEAR_PERIOD_MS
        bits = self._draw(index)
        noise, fresh = self._noise, self._fresh
        if not index % _NOISE_BLOCK:
            noise[:] = fresh
            fresh[:] = [0.0] * len(fresh)
        out = []
        for i, (base, season_gain, load_gain, wear_gain, keep, push, low, high) in enumerate(self._parts):
            step = push * _QUANTILES[bits & _QUANTILE_MASK]
            bits >>= _QUANTILE_BITS
            noise[i] = now = keep * noise[i] + step
            fresh[i] = keep * fresh[i] + step
            value = base + season_gain * day + load_gain * load + wear_gain * wear + now
            if not low < value < high:
                value = low if value <= low else high
            # Floor division and one division give the nearest double to n/1000, thrice as fast as round().
            out.append((value * 1000.0 + 0.5) // 1.0 / 1000.0)
        return out

    def warm(self, at_ms: int) -> None:
        """Prepare for the instants soon after `at_ms`, so that the first of them is as fast as the rest."""
        self.values((at_ms - self.phase_ms) // self.interval_ms)

    def values_at(self, at_ms: int) -> list[float]:
        """The values of the last instant at or before `at_ms`; the run of `values` is not disturbed."""
        kept = self._index, self._noise, self._fresh
        self._noise, self._fresh = list(kept[1]), list(kept[2])
        found = self.values((at_ms - self.phase_ms) // self.interval_ms)
        self._index, self._noise, self._fresh = kept
        return found

    def _draw(self, index: int) -> int:
        # splitmix64 of (key, index), written out because it is the hottest call of the fleet.
        state = (self._key + index * _GOLDEN) & _MASK
        state = (state ^ state >> 30) * _MIX_1 & _MASK
        state = (state ^ state >> 27) * _MIX_2 & _MASK
        return state ^ state >> 31

    def _seek(self, index: int) -> None:
        """Bring the noise to where a run through `index - 1` leaves it."""
        start = (index - 1) // _NOISE_BLOCK * _NOISE_BLOCK - _NOISE_BLOCK
        if start <= self._index < index:
            start = self._index + 1  # a little ahead: go on from here, which leads to the same
        else:
            self._noise = [0.0] * len(self._parts)
            self._fresh = [0.0] * len(self._parts)
        for each in range(start, index):
            bits = self._draw(each)
            if not each % _NOISE_BLOCK:
                self._noise, self._fresh = self._fresh, [0.0] * len(self._parts)
            for i, (_, _, _, _, keep, push, _, _) in enumerate(self._parts):
                step = push * _QUANTILES[bits & _QUANTILE_MASK]
                bits >>= _QUANTILE_BITS
                self._noise[i] = keep * self._noise[i] + step
                self._fresh[i] = keep * self._fresh[i] + step


_Part = tuple[float, float, float, float, float, float, float, float]


def _part(spec: MetricSpec, variation: float, interval_ms: int) -> _Part:
    """(base, season gain, load gain, wear gain, noise kept a step, noise added a step, low, high)."""
    reach = spec.span * variation
    keep = min(math.exp(-interval_ms / spec.noise_tau_ms), _NOISE_KEEP_MAX)
    push = reach * spec.noise * math.sqrt(1.0 - keep * keep)
    return (
        spec.setpoint,
        reach * spec.season,
        reach * spec.load,
        reach * spec.wear,
        keep,
        push,
        spec.instrument_low,
        spec.instrument_high,
    )


def phases_ms(devices: Sequence[Device], interval_ms: int) -> dict[str, int]:
    """Each device's place in the interval, so that a fleet's samples are evenly spread over it."""
    return {device.device_id: device.number * interval_ms // max(len(devices), 1) for device in devices}


class DeviceMetadata(NamedTuple):
    """What `device.metadata` holds of a device; `health` is NAMUR NE 107, `state` ONLINE or OFFLINE since `since`."""

    device: Device
    session_id: int
    sample_interval_ms: int
    health: str
    state: str
    since: int
