"""Laws of going back: what the rows were before, what is done where nobody knows, and where the disk is damaged."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from app.errors import EnvironmentError_
from tables.meta import UNDO, UNDO_END
from tables.partition import Changes, SingleTrip, TablePartition
from tables.undo import pack_undo, unpack_undo
from tests.helpers.tables import INPUT, T0_MS, Disk, Log, LogPublisher, MemoryStore, open_tables, rows_of


@given(st.dictionaries(st.binary(max_size=40), st.none() | st.binary(max_size=200)))
def test_what_is_packed_is_unpacked(before: dict[bytes, bytes | None]) -> None:
    assert unpack_undo(pack_undo(before)) == before


def write(tables: TablePartition, key: bytes, value: bytes, offset: int) -> "asyncio.Task[None]":
    changes = Changes()
    changes.put(key, value)
    written = tables.write(changes, INPUT, offset, timestamp_ms=T0_MS)
    return asyncio.create_task(tables.settle(written, timestamp_ms=T0_MS))


async def owner(log: Log, disk: Disk) -> tuple[TablePartition, LogPublisher]:
    publisher = LogPublisher(log)
    tables, _ = await open_tables(log, disk, publisher, single_trip=SingleTrip())
    return tables, publisher


async def killed(tables: TablePartition, *tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tables.close()


async def overruled(log: Log, mine: Disk) -> None:
    """`mine` holds "uncounted", the changelog what another owner decided instead."""
    tables, publisher = await owner(log, mine)
    await write(tables, b"k", b"counted", 0)
    publisher.gate.allow(0)  # nothing leaves the process any more
    await killed(tables, write(tables, b"k", b"uncounted", 1))


async def other_decides(log: Log) -> None:
    other, _ = await owner(log, Disk())
    await write(other, b"j", b"1", 1)
    other.close()


def without_undo(disk: Disk) -> None:
    disk.states.append({key: value for key, value in disk.states[-1].items() if not UNDO <= key < UNDO_END})


async def test_a_take_over_that_cannot_know_what_was_before_is_not_undone_but_emptied() -> None:
    log, mine = Log(), Disk()
    await overruled(log, mine)
    without_undo(mine)
    # Its next owner is killed while it sends again what never counted.
    publisher = LogPublisher(log)
    publisher.gate.allow(2)  # its claim, and its acknowledgement
    opening = asyncio.create_task(open_tables(log, mine, publisher, single_trip=SingleTrip()))
    for _ in range(30):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    mine.user = None
    await other_decides(log)

    again, restored = await open_tables(log, mine, LogPublisher(log), single_trip=SingleTrip())
    assert rows_of(again) == {b"k": b"counted", b"j": b"1"}
    assert restored.emptied
    again.close()


class _Damaged(MemoryStore):
    """Its blocks with what was before are damaged."""

    def range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        if start.startswith(UNDO):
            raise EnvironmentError_("a block is damaged", damaged=True)
        return super().range(start, end)


class _DamagedDisk(Disk):
    def open(self, path: Path) -> MemoryStore:
        super().open(path)
        self.user = _Damaged(self) if self.states[-1] else MemoryStore(self)
        return self.user


async def test_damage_that_is_met_on_the_way_back_empties_the_store() -> None:
    log, mine = Log(), _DamagedDisk()
    await overruled(log, mine)
    await other_decides(log)
    again, restored = await open_tables(log, mine, LogPublisher(log), single_trip=SingleTrip())
    assert rows_of(again) == {b"k": b"counted", b"j": b"1"}
    assert restored.emptied
    again.close()
