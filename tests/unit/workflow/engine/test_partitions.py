"""Laws of the number of partitions that executions are placed among: it cannot change under them unseen."""

import pytest

from agents.engine_partitions import PLACED, keep_partitions
from app.errors import UserError
from tables.partition import Changes
from tests.helpers.tables import T0_MS, Disk, Log, LogPublisher, open_tables


async def test_the_number_is_noted_once_and_the_same_is_welcome() -> None:
    log, disk = Log(), Disk()
    tables, _ = await open_tables(log, disk, LogPublisher(log), T0_MS)
    await keep_partitions(tables, 4, T0_MS)
    number = tables.write(Changes(), timestamp_ms=T0_MS)
    await tables.settle(number, timestamp_ms=T0_MS)
    await keep_partitions(tables, 4, T0_MS)
    assert tables.write(Changes(), timestamp_ms=T0_MS).number == number.number + 1, "nothing was written for it"
    disk.user = None
    moved, _ = await open_tables(log, Disk(), LogPublisher(log), T0_MS)
    assert moved.get(PLACED) == b"\0\0\0\4", "on another machine too"


@pytest.mark.parametrize("row", [b"xone", b"fone", b"sschedule:one"])
async def test_another_number_is_refused_while_there_is_somebody_to_be_lost(row: bytes) -> None:
    log, disk = Log(), Disk()
    tables, _ = await open_tables(log, disk, LogPublisher(log), T0_MS)
    await keep_partitions(tables, 4, T0_MS)
    await keep_partitions(tables, 6, T0_MS)
    await tables.settle(tables.write(Changes({row: b"1"}), timestamp_ms=T0_MS), timestamp_ms=T0_MS)
    with pytest.raises(UserError, match=r"has 8 partitions, and the executions .* were placed among 6"):
        await keep_partitions(tables, 8, T0_MS)
    assert tables.get(PLACED) == b"\0\0\0\6"


async def test_rows_from_before_the_number_was_noted_take_the_one_there_is() -> None:
    log, disk = Log(), Disk()
    tables, _ = await open_tables(log, disk, LogPublisher(log), T0_MS)
    await tables.settle(tables.write(Changes({b"xone": b"1"}), timestamp_ms=T0_MS), timestamp_ms=T0_MS)
    await keep_partitions(tables, 4, T0_MS)
    assert tables.get(PLACED) == b"\0\0\0\4"
