"""A stage over tables in memory, with a clock that a test sets, and logic that tells what it was asked."""

import asyncio
from collections.abc import Callable, Sequence

from agents.stage import Stage
from app.ports import InRecord, OutRecord
from tables.changelog import CLAIM, claim_value
from tables.partition import Changes, SingleTrip, TablePartition
from tests.helpers.streams import Record
from tests.helpers.tables import CHANGELOG, INPUT, T0_MS, Disk, Log, LogPublisher, open_tables


class SetClock:
    """Stands still until it is set."""

    def __init__(self, ms: int = T0_MS) -> None:
        self.ms = ms

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


class StageBatch:
    """One event of the transport."""

    def __init__(self, first: int, count: int = 1, highwater: int | None = None) -> None:
        self.topic = INPUT
        self.partition = 0
        self.records = [Record(INPUT, 0, offset, T0_MS, b"k", b"v") for offset in range(first, first + count)]
        self.highwater = highwater
        self.acks = 0

    def ack(self) -> None:
        self.acks += 1


class Told:
    """Logic that keeps what it was asked, and moves the clock by `step_ms` at each batch."""

    def __init__(self, clock: SetClock, step_ms: int = 0, *, tick_writes: bool = False) -> None:
        self.taken: list[int] = []
        self.behind: list[bool] = []
        self.ticks: list[int] = []
        self._clock = clock
        self._step_ms = step_ms
        self._tick_writes = tick_writes

    def take(self, records: Sequence[InRecord], now_ms: int, *, behind: bool) -> Changes:
        self.taken += [record.offset for record in records]
        self.behind.append(behind)
        self._clock.ms += self._step_ms
        return Changes(rows={b"k": b"v"})

    def tick(self, now_ms: int) -> Changes | None:
        self.ticks.append(now_ms)
        return Changes(rows={b"tick": b"v"}) if self._tick_writes else None


class Scene:
    """A stage of one partition."""

    def __init__(self, *, tick_s: float = 0.5, step_ms: int = 0, tick_writes: bool = False) -> None:
        self.clock = SetClock()
        self.logic = Told(self.clock, step_ms, tick_writes=tick_writes)
        self.log = Log()
        self.publisher = LogPublisher(self.log)
        self.disk = Disk()
        self.single_trip: SingleTrip | None = None
        self.stage = Stage("stage", self._open, lambda _: self.logic, self.clock, lambda: tick_s)

    async def _open(self, partition: int) -> TablePartition:
        opened, _ = await open_tables(self.log, self.disk, self.publisher, single_trip=self.single_trip)
        return opened

    async def begin(self) -> None:
        await self.stage.assigned([0], kept=False)
        await until(lambda: self.stage.ready)

    def claim_as_another(self) -> None:
        """Another owner was here."""
        self.log.append(OutRecord(CHANGELOG, CLAIM, claim_value(), T0_MS, (), 0))


async def until(holds: Callable[[], bool]) -> None:
    """Turn the loop until something holds, for ten seconds at most."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a condition over several objects
            await asyncio.sleep(0)
