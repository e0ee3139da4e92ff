"""The fleet: which samples are due at an instant, with the faults in force.

Time enters only through arguments. Samples, faults, commands and held-back samples are worked off in
the order of their instants, so that the same seed, commands and instants give the same samples bit
for bit, however many are asked for at once (`recorded_timestamp` is the instant of asking).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple, assert_never

from app.domain import faults
from app.domain.command import DeviceCommand, concerns
from app.domain.device import GOOD, Device, DeviceMetadata, Physics, phases_ms
from app.domain.faults import ActiveFault, Fault, FaultPlan, planned
from app.domain.reading import Reading, Sample

# A due instant and its device in one integer, which a heap compares faster than a tuple.
_NUMBER_BITS = 20
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1
MAX_DEVICES = 1 << _NUMBER_BITS
_NEVER = 1 << 62


class FleetRules(NamedTuple):
    """What a fleet is made by; `max_held` bounds the samples that transport faults keep back."""

    seed: int
    interval_ms: int
    variation: float
    plan: FaultPlan | None
    max_held: int


class Due(NamedTuple):
    """One sample and the instant at which it was to be sent."""

    intended_ms: int
    device: Device
    sample: Sample


class _Slot(NamedTuple):
    """The next interval of the plan begins for one device, unless its session is over."""

    number: int
    slot: int
    session_id: int


class _Begin(NamedTuple):
    number: int
    fault: Fault


class _End(NamedTuple):
    number: int
    fault_id: str


class _Inject(NamedTuple):
    begins: tuple[_Begin, ...]


class _Clear(NamedTuple):
    numbers: tuple[int, ...]
    kind: str | None
    fault_id: str | None


class _Start(NamedTuple):
    numbers: tuple[int, ...]


class _Stop(NamedTuple):
    numbers: tuple[int, ...]


class _Retune(NamedTuple):
    numbers: tuple[int, ...]
    interval_ms: int | None
    variation: float | None


_Event = _Slot | _Begin | _End | _Inject | _Clear | _Start | _Stop | _Retune


class _Unit:
    """One device at work."""

    __slots__ = ("active", "device", "names", "physics", "running", "seq", "session_id", "since", "step", "waiting")

    def __init__(self, device: Device, physics: Physics) -> None:
        self.device = device
        self.names = tuple((spec.metric, spec.unit) for spec in device.metrics)
        self.active: tuple[ActiveFault, ...] = ()
        self.waiting: list[Due] = []
        self.running = False
        self.session_id = 0
        self.since = 0
        self.seq = 0
        self.tune(physics)

    def tune(self, physics: Physics) -> None:
        self.physics = physics
        self.step = physics.interval_ms << _NUMBER_BITS

    def next_key(self, number: int, from_ms: int) -> int:
        """The heap key of the first instant at or after `from_ms`."""
        physics = self.physics
        index = -((physics.phase_ms - from_ms) // physics.interval_ms)
        return (index * physics.interval_ms + physics.phase_ms) << _NUMBER_BITS | number


class Fleet:
    """A calendar of due instants over devices with their physics and faults."""

    def __init__(self, devices: Sequence[Device], rules: FleetRules) -> None:
        if len(devices) > MAX_DEVICES:
            raise ValueError(f"a fleet has at most {MAX_DEVICES} devices, not {len(devices)}")
        self.rules = rules
        self._variation = rules.variation
        phases = phases_ms(devices, rules.interval_ms)
        self._units = [
            _Unit(each, Physics(each, rules.seed, rules.variation, rules.interval_ms, phases[each.device_id]))
            for each in devices
        ]
        self._calendar: list[int] = []
        self._events: list[tuple[int, int, _Event]] = []
        self._held: list[tuple[int, int, Due]] = []
        self._order = 0
        self._waiting = 0
        self._truth: list[Fault] = []
        self._changed: dict[int, None] = {}

    @property
    def devices(self) -> tuple[Device, ...]:
        """Every device, running or not."""
        return tuple(unit.device for unit in self._units)

    @property
    def held(self) -> int:
        """Samples made and kept back by a transport fault."""
        return len(self._held) + self._waiting

    def warm(self, at_ms: int) -> Iterator[None]:
        """Prepare the devices one by one for a start soon after `at_ms`: 0.1 ms each that then is not missed."""
        for unit in self._units:
            unit.physics.warm(at_ms)
            yield

    def start(self, at_ms: int) -> None:
        """Start every device; its first sample is due at its first instant at or after `at_ms`."""
        self._start(range(len(self._units)), at_ms)

    def due(self, now_ms: int, limit: int = 1 << 30) -> list[Due]:
        """The samples whose instant has come, in order; about `limit` at most, the rest next time."""
        out: list[Due] = []
        calendar = self._calendar
        while len(out) < limit:
            turn_ms = self._next_turn_ms()
            bound = min(turn_ms, now_ms + 1) << _NUMBER_BITS
            if calendar and calendar[0] < bound:
                self._sample_until(bound, now_ms, limit, out)
            elif turn_ms <= now_ms:
                self._turn(now_ms, out)
            else:
                break
        return out

    def behind_ms(self, now_ms: int) -> int:
        """Age of the oldest sample that is due and not yet asked for; 0 when none is."""
        return max(now_ms - (self._calendar[0] >> _NUMBER_BITS), 0) if self._calendar else 0

    def skip_before(self, at_ms: int) -> Counter[str]:
        """Give up every sample due before `at_ms`; their number by device type.

        Their sequence numbers are used up, so that whoever reads sees the gap.
        """
        skipped: Counter[str] = Counter()
        for position, key in enumerate(self._calendar):
            number, due_ms = key & _NUMBER_MASK, key >> _NUMBER_BITS
            if due_ms < at_ms:
                unit = self._units[number]
                count = -((due_ms - at_ms) // unit.physics.interval_ms)
                self._calendar[position] = key + count * unit.step
                if not faults.silences(unit.active):
                    unit.seq += count
                    skipped[unit.device.device_type] += count
        heapify(self._calendar)
        return skipped

    def apply(self, command: DeviceCommand, now_ms: int) -> int:
        """Obey a command from `now_ms` on; the number of devices that it concerns."""
        concerned = [number for number, unit in enumerate(self._units) if concerns(command, unit.device)]
        if command.command == "inject_fault":
            concerned = [number for number in concerned if _has(self._units[number].device, command.metric)]
        if concerned:
            self._push(now_ms, self._ordered(command, tuple(concerned), now_ms))
        return len(concerned)

    def retune(self, interval_ms: int, variation: float, now_ms: int) -> None:
        """Give every device a new interval and variation from `now_ms` on."""
        self._push(now_ms, _Retune(tuple(range(len(self._units))), interval_ms, variation))

    def take_truth(self) -> list[Fault]:
        """The faults that began or ended since the last call, in order."""
        taken, self._truth = self._truth, []
        return taken

    def take_metadata(self) -> list[DeviceMetadata]:
        """The metadata of devices that changed since the last call."""
        taken = [self._metadata(self._units[number]) for number in self._changed]
        self._changed = {}
        return taken

    def metadata(self) -> list[DeviceMetadata]:
        """The metadata of every device."""
        return [self._metadata(unit) for unit in self._units]

    def close(self, now_ms: int) -> list[Due]:
        """Stop every device and hand out what was held back."""
        self._stop(range(len(self._units)), now_ms)
        out = []
        while self._held:
            _, _, due = heappop(self._held)
            out.append(_released(due, now_ms, now_ms))
        self._calendar.clear()
        self._events.clear()
        return out

    # ---- samples

    def _sample_until(self, bound: int, now_ms: int, limit: int, out: list[Due]) -> None:
        calendar, units, make = self._calendar, self._units, tuple.__new__
        while len(out) < limit:
            key = calendar[0]
            if key >= bound:
                return
            unit = units[key & _NUMBER_MASK]
            heapreplace(calendar, key + unit.step)
            at_ms = key >> _NUMBER_BITS
            physics = unit.physics
            if unit.active:
                if self._sample_faulty(unit, at_ms, now_ms, out):
                    return
                continue
            values = physics.values((at_ms - physics.phase_ms) // physics.interval_ms)
            unit.seq = seq = unit.seq + 1
            # tuple.__new__ skips the Python-level constructor of a NamedTuple: 0.1 us instead of 0.3 us each.
            metrics = tuple(
                [
                    make(Reading, (name, value, code, "GOOD", GOOD))
                    for (name, code), value in zip(unit.names, values, strict=True)
                ]
            )
            sample = make(Sample, (unit.device.device_id, unit.session_id, seq, at_ms, now_ms, False, metrics))
            out.append(make(Due, (at_ms, unit.device, sample)))

    def _sample_faulty(self, unit: _Unit, at_ms: int, now_ms: int, out: list[Due]) -> bool:
        """One sample of a device with faults; whether it was held back, which changes the next turn."""
        active = unit.active
        physics = unit.physics
        index = (at_ms - physics.phase_ms) // physics.interval_ms
        values = physics.values(index)
        if faults.silences(active):
            return False
        unit.seq += 1
        sample = Sample(
            unit.device.device_id,
            unit.session_id,
            unit.seq,
            at_ms + faults.skew_ms(active),
            now_ms,
            False,
            faults.readings(unit.device, values, active, at_ms),
        )
        kinds = {each.fault.kind for each in active}
        copies = 1 + sum(int(each.fault.magnitude or 0) for each in active if each.fault.kind == "duplicate")
        dues = [Due(at_ms, unit.device, sample)] * copies
        if self.held + copies > self.rules.max_held:
            kinds -= {"late", "burst", "out_of_order"}
        if "burst" in kinds:
            unit.waiting.extend(dues)
            self._waiting += copies
            return False
        delay_ms = sum(int(each.fault.magnitude or 0) for each in active if each.fault.kind == "late")
        if "out_of_order" in kinds and index % 2:
            delay_ms += physics.interval_ms + 1  # just behind its successor
        if delay_ms and kinds & {"late", "out_of_order"}:
            self._hold(dues, at_ms + delay_ms)
            return True
        out.extend(dues)
        return False

    def _hold(self, dues: Iterable[Due], until_ms: int) -> None:
        for due in dues:
            self._order += 1
            heappush(self._held, (until_ms, self._order, due))

    # ---- turns: events and releases

    def _next_turn_ms(self) -> int:
        event_ms = self._events[0][0] if self._events else _NEVER
        release_ms = self._held[0][0] if self._held else _NEVER
        return min(event_ms, release_ms)

    def _turn(self, now_ms: int, out: list[Due]) -> None:
        if self._events and (not self._held or self._events[0][0] <= self._held[0][0]):
            at_ms, _, event = heappop(self._events)
            self._handle(event, at_ms)
            return
        release_ms, _, due = heappop(self._held)
        out.append(_released(due, release_ms, now_ms))

    def _push(self, at_ms: int, event: _Event) -> None:
        self._order += 1
        heappush(self._events, (at_ms, self._order, event))

    def _handle(self, event: _Event, at_ms: int) -> None:
        match event:
            case _Slot():
                self._plan_slot(event, at_ms)
            case _Begin(number, fault):
                self._begin(number, fault, at_ms)
            case _End(number, fault_id):
                self._end(number, at_ms, None, fault_id)
            case _Inject(begins):
                for begin in begins:
                    self._begin(begin.number, begin.fault, at_ms)
            case _Clear(numbers, kind, fault_id):
                for number in numbers:
                    self._end(number, at_ms, kind, fault_id)
            case _Start(numbers):
                self._start(numbers, at_ms)
            case _Stop(numbers):
                self._stop(numbers, at_ms)
            case _Retune():
                self._retune(event, at_ms)
            case _:
                assert_never(event)

    def _ordered(self, command: DeviceCommand, numbers: tuple[int, ...], now_ms: int) -> _Event:
        match command.command:
            case "start":
                return _Start(numbers)
            case "stop":
                return _Stop(numbers)
            case "set_interval":
                return _Retune(numbers, command.interval_ms, None)
            case "clear_fault":
                return _Clear(numbers, command.kind, command.fault_id)
            case _:
                seed = self.rules.seed
                units = self._units
                return _Inject(tuple(_Begin(n, _injected(command, units[n].device, now_ms, seed)) for n in numbers))

    def _start(self, numbers: Iterable[int], at_ms: int) -> None:
        plan = self.rules.plan
        for number in numbers:
            unit = self._units[number]
            if unit.running:
                continue
            unit.running = True
            unit.session_id = max(at_ms, unit.session_id + 1)
            unit.since = at_ms
            unit.seq = 0
            heappush(self._calendar, unit.next_key(number, at_ms))
            self._changed[number] = None
            if plan is not None:
                self._push(at_ms, _Slot(number, at_ms // plan.interval_ms, unit.session_id))

    def _stop(self, numbers: Iterable[int], at_ms: int) -> None:
        stopped = [number for number in numbers if self._units[number].running]
        for number in stopped:
            unit = self._units[number]
            self._end(number, at_ms, None, None)
            unit.running = False
            unit.since = at_ms
            self._changed[number] = None
        self._leave(stopped)

    def _leave(self, numbers: Iterable[int]) -> None:
        gone = frozenset(numbers)
        self._calendar[:] = [key for key in self._calendar if key & _NUMBER_MASK not in gone]
        heapify(self._calendar)

    def _retune(self, event: _Retune, at_ms: int) -> None:
        self._variation = event.variation if event.variation is not None else self._variation
        self._leave(event.numbers)
        for number in event.numbers:
            unit = self._units[number]
            interval_ms = event.interval_ms if event.interval_ms is not None else unit.physics.interval_ms
            phase_ms = unit.device.number * interval_ms // len(self._units)
            unit.tune(Physics(unit.device, self.rules.seed, self._variation, interval_ms, phase_ms))
            if unit.running:
                heappush(self._calendar, unit.next_key(number, at_ms))
            self._changed[number] = None

    def _plan_slot(self, event: _Slot, at_ms: int) -> None:
        plan, unit = self.rules.plan, self._units[event.number]
        if plan is None or not unit.running or unit.session_id != event.session_id:
            return
        fault = planned(plan, unit.device, event.slot)
        if fault.to_ts is not None and fault.to_ts > at_ms:
            self._push(max(fault.from_ts, at_ms), _Begin(event.number, fault))
        following = event.slot + 1
        self._push(following * plan.interval_ms, _Slot(event.number, following, event.session_id))

    def _begin(self, number: int, fault: Fault, at_ms: int) -> None:
        unit = self._units[number]
        if not unit.running or any(each.fault.fault_id == fault.fault_id for each in unit.active):
            return
        frozen = tuple(unit.physics.values_at(fault.from_ts)) if fault.kind == "stuck" else ()
        before = faults.health(unit.active)
        unit.active = (*unit.active, ActiveFault(fault, frozen))
        self._truth.append(fault._replace(to_ts=None))
        if fault.to_ts is not None:
            self._push(max(fault.to_ts, at_ms), _End(number, fault.fault_id))
        if faults.health(unit.active) != before:
            self._changed[number] = None

    def _end(self, number: int, at_ms: int, kind: str | None, fault_id: str | None) -> None:
        """End the device's faults of a kind or an id; with neither, all of them."""
        unit = self._units[number]
        ended = [each for each in unit.active if _matches(each.fault, kind, fault_id)]
        if not ended:
            return
        before = faults.health(unit.active)
        unit.active = tuple(each for each in unit.active if each not in ended)
        self._truth.extend(each.fault._replace(to_ts=at_ms) for each in ended)
        if faults.health(unit.active) != before:
            self._changed[number] = None
        if unit.waiting and all(each.fault.kind != "burst" for each in unit.active):
            self._hold(unit.waiting, at_ms)
            self._waiting -= len(unit.waiting)
            unit.waiting = []

    def _metadata(self, unit: _Unit) -> DeviceMetadata:
        return DeviceMetadata(
            device=unit.device,
            session_id=unit.session_id,
            sample_interval_ms=unit.physics.interval_ms,
            health=faults.health(unit.active),
            state="ONLINE" if unit.running else "OFFLINE",
            since=unit.since,
        )


def _released(due: Due, at_ms: int, now_ms: int) -> Due:
    """A held-back sample is to be sent at its release, so its latency counts from there."""
    return due._replace(intended_ms=at_ms, sample=due.sample._replace(recorded_timestamp=now_ms))


def _matches(fault: Fault, kind: str | None, fault_id: str | None) -> bool:
    return fault.fault_id == fault_id if fault_id is not None else kind in {None, fault.kind}


def _has(device: Device, metric: str | None) -> bool:
    return metric is None or any(spec.metric == metric for spec in device.metrics)


def _injected(command: DeviceCommand, device: Device, now_ms: int, seed: int) -> Fault:
    kind = command.kind or ""
    return Fault(
        fault_id=f"{command.command_id}-{device.device_id}",
        device_id=device.device_id,
        kind=kind,
        metric=command.metric,
        from_ts=now_ms,
        to_ts=None if command.duration_ms is None else now_ms + command.duration_ms,
        magnitude=command.magnitude if command.magnitude is not None else faults.default_magnitude(kind),
        seed=seed,
    )
