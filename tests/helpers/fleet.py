"""A fleet, a clock that only the test moves, and a producer whose room the test sets."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from agents.ledger import Books
from app.domain.command import DeviceCommand
from app.domain.device import TYPES, Layout, lay_out
from app.domain.faults import FaultPlan
from app.domain.fleet import Due, Fleet, FleetRules
from app.domain.reading import Sample

T0 = 1_763_689_000_000
EVERY_TYPE = tuple((name, 1.0) for name in TYPES)


def a_layout(device_count: int = 12, seed: int = 7, mix: tuple[tuple[str, float], ...] = EVERY_TYPE) -> Layout:
    return Layout(device_count, seed, mix, ("plant-a", "plant-b"), 2)


def a_fleet(
    device_count: int = 12,
    *,
    seed: int = 7,
    interval_ms: int = 1000,
    variation: float = 0.1,
    plan: FaultPlan | None = None,
    max_held: int = 10_000,
) -> Fleet:
    return Fleet(lay_out(a_layout(device_count, seed)), FleetRules(seed, interval_ms, variation, plan, max_held))


def a_started_fleet(device_count: int = 12, **rules: Any) -> Fleet:
    fleet = a_fleet(device_count, **rules)
    fleet.start(T0)
    fleet.take_metadata()
    return fleet


def a_command(command: str, scope: str = "all", target: str | None = None, **fields: Any) -> DeviceCommand:
    return DeviceCommand(fields.pop("command_id", "c1"), command, scope, target, T0, **fields)


def an_injection(kind: str, device_id: str, **fields: Any) -> DeviceCommand:
    return a_command("inject_fault", "device", device_id, kind=kind, **fields)


def unrecorded(dues: Iterable[Due]) -> list[tuple[int, Sample]]:
    """What is the same however many samples are asked for at once."""
    return [(due.intended_ms, due.sample._replace(recorded_timestamp=0)) for due in dues]


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self, at_ms: int = T0) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms

    def monotonic_s(self) -> float:
        return self.at_ms / 1000

    def move(self, by_ms: int) -> None:
        self.at_ms += by_ms


class Sent(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Sequence[tuple[str, bytes]]
    intended_ms: float | None

    @property
    def json(self) -> Any:
        assert self.value is not None
        return orjson.loads(self.value)


class RoomySender:
    """Keeps what it is given while there is `room`; acknowledges to the books when the test says so."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.sent: list[Sent] = []
        self.asked: list[str] = []

    async def partitions(self, topic: str) -> int:
        self.asked.append(topic)
        return 4

    def send_nowait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        intended_ms: float | None = None,
    ) -> bool:
        assert partition is None
        assert topic in self.asked
        if self.room <= 0:
            return False
        self.room -= 1
        self.sent.append(Sent(topic, key, value, timestamp_ms, headers, intended_ms))
        return True

    def of(self, topic: str) -> list[Sent]:
        return [each for each in self.sent if each.topic == topic]

    def acknowledge(self, books: Books) -> None:
        """Tell the books that every sample handed over so far was acknowledged."""
        books.delivered(books.topic, len(self.of(books.topic)) - books.delivered_records, None)


def pausing(clock: ManualClock, stop: asyncio.Event, until_ms: int, each: Callable[[], None] | None = None) -> Any:
    """A pause that moves the clock instead of waiting, and stops the loop at an instant."""

    async def pause(pause_s: float) -> None:
        clock.move(round(pause_s * 1000))
        if each is not None:
            each()
        if clock.at_ms >= until_ms:
            stop.set()
        await asyncio.sleep(0)

    return pause
