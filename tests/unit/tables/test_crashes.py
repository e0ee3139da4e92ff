"""Laws of tables under crashes: whatever ends, wherever, each input is applied once and each output is sent."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.errors import EnvironmentError_, Fenced
from app.ports import Followed
from tables.changelog import Replay
from tables.meta import UNDO, UNDO_END
from tables.outbox import unpack_outbox
from tables.partition import SingleTrip, TablePartition, Transaction
from tables.restore import Opening
from tables.standby import REMEMBER_EVERY_MS, Standbys
from tests.helpers.tables import (
    CHANGELOG,
    INPUT,
    OUTPUT,
    PLACE,
    T0_MS,
    Disk,
    Gate,
    Log,
    LogPublisher,
    apply_inputs,
    fold,
    open_tables,
    rows_of,
)

INPUTS = 40
IDLE_TURNS = 30
T = TypeVar("T")


class Process:
    """One owner: it opens the tables of a disk and applies inputs until it is killed."""

    def __init__(
        self, log: Log, disk: Disk, single_trip: SingleTrip | None = None, warm: Opening | None = None
    ) -> None:
        self.disk = disk
        self.gate = Gate()
        self.output_gate = Gate()
        self.single_trip = single_trip
        self.tables: TablePartition | None = None
        self.publisher = LogPublisher(log, self.gate, self.output_gate if single_trip else None)
        self.claimed_at = log.end(CHANGELOG)
        self.tasks = [asyncio.create_task(self._open(log, warm))]

    async def _open(self, log: Log, warm: Opening | None) -> None:
        self.tables, _ = await open_tables(log, self.disk, self.publisher, single_trip=self.single_trip, warm=warm)

    @property
    def failed(self) -> bool:
        return any(task.done() and task.exception() is not None for task in self.tasks)

    def apply(self, count: int) -> None:
        if self.tables is None or self.failed:
            return
        count = min(count, INPUTS - 1 - self.tables.applied.get(INPUT, -1))
        if count > 0:
            changes = apply_inputs(self.tables, count)
            written = self.tables.write(changes, INPUT, self.tables.applied.get(INPUT, -1) + count, timestamp_ms=T0_MS)
            self.tasks.append(asyncio.create_task(self._settle(self.tables, written)))

    async def _settle(self, tables: TablePartition, written: Transaction) -> None:
        await tables.settle(written, timestamp_ms=T0_MS)
        await tables.deliver(timestamp_ms=T0_MS)

    async def kill(self) -> None:
        """End at once; only what is on the disk and on the log stays."""
        self.disk.user = None
        if self.tables is not None:
            if self.tables._marking is not None:
                self.tasks.append(self.tables._marking)
            # Or a marker that waits, or that the end of this one would have wait, is written after its process has
            # ended, where the machine is slow enough.
            self.tables.give_up()
        for task in self.tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self.tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, (asyncio.CancelledError, Fenced, EnvironmentError_)), outcome


async def turns() -> None:
    """Let everything run until it is held at a gate or done."""
    for _ in range(IDLE_TURNS):
        await asyncio.sleep(0)


class Crashes(RuleBasedStateMachine):
    """Up to three owners that do not know of each other, of which the last to claim is the real one."""

    modes: tuple[SingleTrip | None, ...] = (None,)

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.log = Log()
        self.disks = [Disk() for _ in range(3)]
        self.alive: list[Process] = []
        self.repaired_upto = 0

    def run(self, steps: Coroutine[None, None, T]) -> T:
        return self.loop.run_until_complete(steps)

    @precondition(lambda self: len(self.alive) < 3)
    @rule(
        which=st.integers(0, 2),
        held_after=st.none() | st.none() | st.integers(0, 12),
        outputs_held_after=st.none() | st.none() | st.integers(0, 6),
        mode=st.integers(0, 3),
    )
    def start(self, which: int, held_after: int | None, outputs_held_after: int | None, mode: int) -> None:
        """A new owner on a disk that nobody uses; others live on as zombies."""
        free = [disk for disk in self.disks if all(one.disk is not disk for one in self.alive)]

        async def begin() -> Process:
            disk = free[which % len(free)]
            process = Process(self.log, disk, self.modes[mode % len(self.modes)], self.warm_tables_of(disk))
            process.gate.allow(held_after)
            process.output_gate.allow(outputs_held_after)
            await turns()
            return process

        process = self.run(begin())
        self.alive.append(process)
        self._note_repairs(process)

    def warm_tables_of(self, disk: Disk) -> Opening | None:
        """What a standby on this disk hands over; there are none here."""
        assert disk.user is None
        return None

    @precondition(lambda self: self.alive)
    @rule(
        which=st.integers(0, 2),
        counts=st.lists(st.integers(1, 3), max_size=3),
        steps=st.none() | st.integers(0, 14),
        output_steps=st.none() | st.integers(0, 6),
    )
    def apply(self, which: int, counts: list[int], steps: int | None, output_steps: int | None) -> None:
        """Decide some batches, one behind the other, and get as far as `steps` allow."""
        process = self.alive[which % len(self.alive)]

        async def work() -> None:
            process.gate.allow(steps)
            process.output_gate.allow(output_steps)
            await turns()
            with contextlib.suppress(Fenced):
                for count in counts:
                    process.apply(count)
            await turns()

        self.run(work())
        self._note_repairs(process)

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 2))
    def rest(self, which: int) -> None:
        """Nothing was written for a while: the last deliveries are told."""
        process = self.alive[which % len(self.alive)]

        async def tell() -> None:
            if process.tables is not None and process.tables._trailing is not None:
                process.tables._trailing.cancel()
                process.tables._trail(T0_MS)
            await turns()

        self.run(tell())

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 2), lost_writes=st.sampled_from((0, 0, 1, 3)))
    def kill(self, which: int, lost_writes: int) -> None:
        process = self.alive.pop(which % len(self.alive))
        self.run(process.kill())
        process.disk.forget(lost_writes)

    @rule(which=st.integers(0, 2))
    def damage(self, which: int) -> None:
        if self.disks[which].user is None and not any(one.disk is self.disks[which] for one in self.alive):
            self.disks[which].damaged = True

    @rule(which=st.integers(0, 2))
    def age(self, which: int) -> None:
        """It is the disk of a version that wrote down nothing to undo (before decision 0017)."""
        disk = self.disks[which]
        if disk.user is None and not any(one.disk is disk for one in self.alive):
            kept = {key: value for key, value in disk.states[-1].items() if not UNDO <= key < UNDO_END}
            disk.states.append(kept)

    @precondition(lambda self: self.repaired_upto > 0)
    @rule()
    def compact(self) -> None:
        """Compaction leaves alone what is younger than the ten minutes in which an owner repairs it."""
        self.log.compact(CHANGELOG, self.repaired_upto)

    def _note_repairs(self, process: Process) -> None:
        if process.tables is not None and process is self.alive[-1] and not process.failed:
            self.repaired_upto = max(self.repaired_upto, process.claimed_at)

    @invariant()
    def outputs_of_what_counts_were_sent_or_are_on_the_changelog(self) -> None:
        replay = Replay()
        replay.feed(self.log.topics[CHANGELOG])
        applied = replay.applied.get(INPUT, -1)
        sent = {record.value for record in self.log.topics[OUTPUT]}
        sent |= {record.value for packed in replay.undelivered() for record in unpack_outbox(packed)[1]}
        _, outputs = fold(applied + 1)
        assert sent.issuperset(outputs)
        if all(mode is not None and mode.slots > INPUTS for mode in self.modes):
            assert {record.value for record in self.log.topics[OUTPUT]} <= set(outputs), "an output was taken back"

    def teardown(self) -> None:
        for process in self.alive:
            self.run(process.kill())
        for disk in [*self.disks, Disk()]:
            self.run(self._finish(disk))
        self.run(self._finish(Disk()))
        self.loop.close()

    async def _finish(self, disk: Disk, warm: Opening | None = None) -> None:
        """An owner that nothing disturbs applies the rest: the tables are the fold, every output was sent."""
        process = Process(self.log, disk, self.modes[-1], warm)
        await process.tasks[0]
        assert process.tables is not None
        applied = process.tables.applied.get(INPUT, -1)
        assert rows_of(process.tables) == fold(applied + 1)[0]
        process.apply(min(5, INPUTS))
        await asyncio.gather(*process.tasks)
        rows, outputs = fold(process.tables.applied.get(INPUT, -1) + 1)
        assert rows_of(process.tables) == rows
        assert {record.value for record in self.log.topics[OUTPUT]}.issuperset(outputs)
        process.tables.close()


class CrashesInOneTrip(Crashes):
    """The same with transactions that settle in one trip, and owners that do and do not; few slots, used often."""

    modes = (SingleTrip(slots=2), SingleTrip(), None, SingleTrip(bytes=150, slots=2, pieces=1))


class CrashesOfOneTripAlone(Crashes):
    """Every transaction in one trip: what others have seen of a decision is never taken back."""

    modes = (SingleTrip(slots=100), SingleTrip(bytes=60, slots=100))


class NoFollower:
    """The records come by hand."""

    def follow(self, starts: Mapping[int, int]) -> None:
        assert set(starts) <= {PLACE.partition}

    async def poll(self) -> Sequence[Followed]:
        return ()


class CrashesWithStandbys(CrashesInOneTrip):
    """Free disks may be kept warm by standbys, as far behind as they happen to be, and be taken over from there."""

    def __init__(self) -> None:
        super().__init__()
        self.standbys: dict[int, Standbys] = {}
        self.now_ms = T0_MS

    @rule(which=st.integers(0, 2))
    def stand_by(self, which: int) -> None:
        """A standby opens what lies on a disk that nobody uses."""
        disk = self.disks[which]
        if which not in self.standbys and disk.user is None and all(one.disk is not disk for one in self.alive):
            standbys = self.standbys[which] = Standbys(lambda _: PLACE, disk, NoFollower(), lambda: self.now_ms)
            standbys.keep({PLACE.partition})

    @precondition(lambda self: self.standbys)
    @rule(which=st.integers(0, 2), records=st.none() | st.integers(1, 9))
    def follow(self, which: int, records: int | None) -> None:
        """The next records, or all there are; time enough passes for the standby to remember where it is."""
        standbys = self.standbys.get(which)
        if standbys is None:
            return
        self.now_ms += REMEMBER_EVERY_MS
        found = [r for r in self.log.topics[CHANGELOG] if r.offset >= standbys.held()[PLACE.partition]][:records]
        standbys.feed(Followed(PLACE.partition, found, self.log.end(CHANGELOG)))

    @precondition(lambda self: self.standbys)
    @rule(which=st.integers(0, 2), lost_writes=st.sampled_from((0, 0, 1, 3)))
    def end_standby(self, which: int, lost_writes: int) -> None:
        if self.standbys.pop(which, None) is not None:
            self.disks[which].user = None
            self.disks[which].forget(lost_writes)

    def warm_tables_of(self, disk: Disk) -> Opening | None:
        standbys = self.standbys.pop(self.disks.index(disk), None)
        return None if standbys is None else standbys.take(PLACE.partition)

    def teardown(self) -> None:
        """Each standby takes over from where it is."""
        for process in self.alive:
            self.run(process.kill())
        self.alive = []
        for which, standbys in list(self.standbys.items()):
            self.run(self._finish(self.disks[which], standbys.take(PLACE.partition)))
        super().teardown()


Crashes.TestCase.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
TestCrashes = Crashes.TestCase
CrashesInOneTrip.TestCase.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
TestCrashesInOneTrip = CrashesInOneTrip.TestCase
CrashesWithStandbys.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestCrashesWithStandbys = CrashesWithStandbys.TestCase
CrashesOfOneTripAlone.TestCase.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)
TestCrashesOfOneTripAlone = CrashesOfOneTripAlone.TestCase
