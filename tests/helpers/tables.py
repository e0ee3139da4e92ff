"""A log, a publisher and a disk in memory that a test can stop at any record, and an owner of tables over them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path

from app.errors import EnvironmentError_, PublishFailed
from app.ports import OutRecord
from tables.changelog import WAITING_ROWS
from tables.partition import Changes, SingleTrip, TablePartition
from tables.restore import Opening, Place, Restored, open_partition
from tests.helpers.streams import Record

CHANGELOG = "stage.state"
INPUT = "stage.input"
OUTPUT = "stage.output"
PLACE = Place(Path("memory"), CHANGELOG, 0)
T0_MS = 1_763_689_000_000


class Log:
    """Topics as Kafka keeps them: offsets stay when compaction takes records away."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Record]] = defaultdict(list)
        self._ends: dict[str, int] = defaultdict(int)

    def append(self, record: OutRecord) -> int:
        offset = self._ends[record.topic]
        self._ends[record.topic] = offset + 1
        headers = tuple(record.headers)
        self.topics[record.topic].append(
            Record(record.topic, 0, offset, record.timestamp_ms, record.key, record.value, headers)
        )
        return offset

    def end(self, topic: str) -> int:
        return self._ends[topic]

    def compact(self, topic: str, upto: int) -> None:
        """Keep the last record of each key before `upto`, and everything from there."""
        kept: dict[bytes | None, Record] = {}
        for record in self.topics[topic]:
            if record.offset < upto:
                kept[record.key] = record
        rest = [record for record in self.topics[topic] if record.offset >= upto]
        self.topics[topic] = [*sorted(kept.values(), key=lambda record: record.offset), *rest]

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """As `tables.restore.ChangelogReader`, three records at a time."""
        found = [record for record in self.topics[topic] if start <= record.offset < end]
        for at in range(0, len(found), 3):
            yield found[at : at + 3]


class Gate:
    """Lets a process take a number of steps, then holds it where it is."""

    def __init__(self) -> None:
        self._steps: int | None = None
        self._open = asyncio.Event()
        self._open.set()
        self.failure: BaseException | None = None

    def allow(self, steps: int | None) -> None:
        """`steps` more, or any number (None)."""
        self._steps = steps
        if steps is None or steps > 0:
            self._open.set()
        else:
            self._open.clear()

    async def step(self) -> None:
        while not self._open.is_set():
            await self._open.wait()
        if self.failure is not None:
            raise self.failure
        if self._steps is not None:
            self._steps -= 1
            if self._steps <= 0:
                self._open.clear()


class LogPublisher:
    """Appends record by record; every append and every acknowledgement is a step of a gate.

    The topics' records travel independently: `output_gate` may hold the outputs while the changelog goes on. What
    comes behind a `publish` that was not appended whole is refused, as the real one does where order is unbroken.
    """

    def __init__(self, log: Log, gate: Gate | None = None, output_gate: Gate | None = None) -> None:
        self.gate = gate or Gate()
        self.output_gate = output_gate or self.gate
        self._log = log
        self._last: dict[str, int] = {}
        self._foreign: dict[str, int] = defaultdict(int)
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._broken = False

    async def publish(self, records: Sequence[OutRecord]) -> None:
        if self.output_gate is self.gate:
            await self._append("", records)
            return
        topics: dict[str, list[OutRecord]] = {}
        for record in records:
            topics.setdefault(record.topic, []).append(record)
        await asyncio.gather(*(self._append(topic, some) for topic, some in topics.items()))

    async def partitions(self, topic: str) -> int:
        return 1

    async def _append(self, turn: str, records: Sequence[OutRecord]) -> None:
        async with self._turns[turn]:
            gate = self.gate if turn in {"", CHANGELOG} else self.output_gate
            try:
                for record in records:
                    await gate.step()
                    if self._broken and record.topic == CHANGELOG:
                        raise PublishFailed("order_broken", 1)
                    self._note(record, self._log.append(record))
            except BaseException:
                self._broken = True
                raise
            await gate.step()

    def _note(self, record: OutRecord, offset: int) -> None:
        last = self._last.get(record.topic)
        if last is not None:
            self._foreign[record.topic] += offset - last - 1
        self._last[record.topic] = offset

    def unbroken(self, topic: str, partition: int) -> None:
        self._broken = False

    def last_offset(self, topic: str, partition: int) -> int | None:
        return self._last.get(topic)

    def foreign_records(self, topic: str, partition: int) -> int:
        return self._foreign[topic]


class Disk:
    """What survives a process; `states` remembers every write, so that a power cut can lose the last ones."""

    def __init__(self) -> None:
        self.states: list[dict[bytes, bytes]] = [{}]
        self.user: MemoryStore | None = None
        self.damaged = False

    def open(self, path: Path) -> "MemoryStore":
        if self.user is not None:
            raise EnvironmentError_("in use")
        if self.damaged:
            raise EnvironmentError_("damaged", damaged=True)
        self.user = MemoryStore(self)
        return self.user

    def empty(self, path: Path) -> None:
        self.states = [{}]
        self.damaged = False

    def forget(self, writes: int) -> None:
        """A power cut: the last writes never reached the disk."""
        self.states = self.states[: max(1, len(self.states) - writes)]


class MemoryStore:
    """A sorted dictionary; each write is atomic."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def get(self, key: bytes) -> bytes | None:
        return self._disk.states[-1].get(key)

    def write(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        assert self._disk.user is self, "closed"
        state = dict(self._disk.states[-1])
        for key, value in changes:
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        self._disk.states.append(state)

    def range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        state = self._disk.states[-1]
        yield from [(key, state[key]) for key in sorted(state) if start <= key < end]

    def close(self) -> None:
        if self._disk.user is self:
            self._disk.user = None


async def open_tables(
    log: Log,
    disk: Disk,
    publisher: LogPublisher,
    now_ms: int = T0_MS,
    waiting_rows: int = WAITING_ROWS,
    single_trip: SingleTrip | None = None,
    warm: Opening | None = None,
    holding: Callable[[Callable[[], int]], None] = lambda _: None,
) -> tuple[TablePartition, Restored]:
    return await open_partition(
        PLACE, disk, log, publisher, lambda: True, lambda: now_ms, waiting_rows, single_trip, warm, holding
    )


def rows_of(tables: TablePartition) -> dict[bytes, bytes]:
    return dict(tables.range(b"", b"\xff"))


# ---- a stage that sums its inputs: input i adds to one of five keys, and a sum divisible by seven is deleted ----

KEYS = 5


def amount(offset: int) -> int:
    return offset * offset % 11 + 1


def decide(offset: int, before: bytes | None) -> tuple[bytes, bytes | None, bytes]:
    """The row an input changes, its new value, and the output."""
    total = int(before or b"0") + amount(offset)
    return b"k%d" % (offset * 3 % KEYS), None if total % 7 == 0 else b"%d" % total, b"%d:%d" % (offset, total)


def fold(inputs: int) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Rows and outputs of the first `inputs` inputs, each applied once."""
    rows: dict[bytes, bytes] = {}
    outputs = []
    for offset in range(inputs):
        key = b"k%d" % (offset * 3 % KEYS)
        _, row, output = decide(offset, rows.pop(key, None))
        if row is not None:
            rows[key] = row
        outputs.append(output)
    return rows, outputs


def apply_inputs(tables: TablePartition, count: int) -> Changes:
    """The changes of the next `count` inputs."""
    changes = Changes()
    first = tables.applied.get(INPUT, -1) + 1
    for offset in range(first, first + count):
        key = b"k%d" % (offset * 3 % KEYS)
        before = changes.rows[key] if key in changes.rows else tables.get(key)
        _, row, output = decide(offset, before)
        changes.rows[key] = row
        changes.outputs.append(OutRecord(OUTPUT, None, output, T0_MS, (("n", b"\x00\xff"),), 0))
    return changes
