"""Laws of tables on a real broker and real RocksDB: kills, lost and damaged folders, compaction, zombies."""

import asyncio
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.rocks import DAMAGED, RocksFolder, RocksLimits
from app.errors import EnvironmentError_, Fenced
from app.ports import OutRecord
from tables.changelog import CLAIM, MARKER
from tables.partition import Changes, TablePartition
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import read_topic, values_of
from tests.helpers.table_worker import apply, now_ms, opened
from tests.helpers.tables import INPUT, fold, rows_of

pytestmark = pytest.mark.broker

COMPACT = {"cleanup_policy": "compact", "min_compaction_lag_ms": "600000"}


@pytest.fixture
async def producer(broker: str) -> AsyncIterator[BatchProducer]:
    async with BatchProducer(ProducerLimits(broker)) as running:
        yield running


@pytest.fixture
def changelog(new_topic: TopicFactory) -> str:
    return new_topic(1, **COMPACT)


@pytest.fixture
def output(new_topic: TopicFactory) -> str:
    return new_topic(1)


async def holds(broker: str, tables: TablePartition, output: str, inputs: int) -> None:
    """Every input is applied once, and every output was sent."""
    rows, outputs = fold(inputs)
    assert rows_of(tables) == rows
    assert tables.applied == {INPUT: inputs - 1}
    assert set(await values_of(broker, output)).issuperset(outputs)


# ---- one owner ----


async def test_folder_may_be_deleted_and_another_node_may_take_over(
    broker: str, changelog: str, output: str, producer: BatchProducer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tables")
    tables, restored = await opened(broker, tmp_path / "a", changelog, producer)
    assert (restored.records, restored.rows, tables.applied) == (0, 0, {})
    await apply(tables, output, 100)
    tables.close()

    same, restored = await opened(broker, tmp_path / "a", changelog, producer)
    assert (restored.rows, restored.emptied) == (0, False)
    await holds(broker, same, output, 100)
    same.close()

    shutil.rmtree(tmp_path / "a")
    for folder in ("a", "b"):
        again, restored = await opened(broker, tmp_path / folder, changelog, producer)
        assert restored.rows >= len(fold(100)[0])
        await holds(broker, again, output, 100)
        again.close()
    assert [getattr(one, "action", "") for one in caplog.records] == ["table_restored"] * 4


async def test_node_that_comes_back_reads_what_the_other_wrote(
    broker: str, changelog: str, output: str, producer: BatchProducer, tmp_path: Path
) -> None:
    for turn, folder in enumerate(("a", "b", "a", "b"), start=1):
        tables, restored = await opened(broker, tmp_path / folder, changelog, producer)
        assert not restored.emptied
        await apply(tables, output, turn * 20)
        await holds(broker, tables, output, turn * 20)
        tables.close()


async def test_reader_restores_as_much_as_the_limits_of_the_store_allow(
    broker: str, changelog: str, producer: BatchProducer, tmp_path: Path
) -> None:
    """Small memtables, so that rows lie in many files."""
    limits = RocksLimits(write_buffer_bytes=65_536, block_cache_bytes=0, sync_writes=True)
    tables, _ = await opened(broker, tmp_path / "a", changelog, producer, limits)
    for number in range(20):
        changes = Changes({b"%04d" % row: b"%d" % number * 100 for row in range(number * 50, number * 50 + 500)})
        await tables.settle(tables.write(changes, INPUT, number, timestamp_ms=now_ms()), timestamp_ms=now_ms())
    expected = rows_of(tables)
    assert len(expected) == 1_450
    tables.close()
    restored, _ = await opened(broker, tmp_path / "b", changelog, producer, limits)
    assert rows_of(restored) == expected
    restored.close()


# ---- killed at any step ----


@pytest.mark.parametrize("stage", ["outputs", "marker", "acknowledged"])
@pytest.mark.parametrize("first_back", ["same", "other"])
async def test_killed_owner_neither_loses_nor_applies_twice(
    broker: str, changelog: str, output: str, producer: BatchProducer, tmp_path: Path, stage: str, first_back: str
) -> None:
    """Between the write and the outputs, between these and the marker, and before the input is committed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.helpers.table_worker", broker, str(tmp_path / "same"), changelog, output, "60", "30", stage),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"paused\n"
    finally:
        process.kill()
        await process.wait()
    counted = 33 if stage == "acknowledged" or first_back == "same" else 30
    for folder in (first_back, "same", "other", "third"):
        tables, _ = await opened(broker, tmp_path / folder, changelog, producer)
        assert tables.applied == {INPUT: counted - 1}
        await holds(broker, tables, output, counted)
        counted += 15
        await apply(tables, output, counted)
        tables.close()


# ---- two owners ----


async def test_owner_that_was_overtaken_is_fenced_and_what_it_wrote_does_not_count(
    broker: str, changelog: str, output: str, tmp_path: Path
) -> None:
    limits = ProducerLimits(broker)
    async with BatchProducer(limits) as one, BatchProducer(limits) as two, BatchProducer(limits) as three:
        zombie, _ = await opened(broker, tmp_path / "zombie", changelog, one)
        await apply(zombie, output, 30)
        owner, _ = await opened(broker, tmp_path / "owner", changelog, two)
        await apply(owner, output, 60)
        with pytest.raises(Fenced, match=r"another process wrote \d+ records"):
            await apply(zombie, output, 45)
        # The owner learns that somebody wrote between its records, and opens again to repair them.
        with pytest.raises(Fenced, match="another process wrote"):
            await apply(owner, output, 75)
        zombie.close()
        owner.close()
        for folder in ("owner", "zombie", "third"):
            tables, _ = await opened(broker, tmp_path / folder, changelog, three)
            await holds(broker, tables, output, 63)  # what the owner had written before it was told
            tables.close()


# ---- compaction ----


async def test_compacted_changelog_restores_the_same_rows(
    broker: str, new_topic: TopicFactory, producer: BatchProducer, tmp_path: Path
) -> None:
    changelog = new_topic(
        1,
        cleanup_policy="compact",
        min_compaction_lag_ms="0",
        segment_bytes="1048576",
        min_cleanable_dirty_ratio="0.01",
        delete_retention_ms="0",
    )
    tables, _ = await opened(broker, tmp_path / "a", changelog, producer)
    for number in range(40):
        changes = Changes({b"%02d" % row: b"%d" % number * 2_000 for row in range(number % 10, 60)})
        changes.rows[b"%02d" % (number % 60)] = None
        await tables.settle(tables.write(changes, INPUT, number, timestamp_ms=now_ms()), timestamp_ms=now_ms())
    expected = rows_of(tables)
    tables.close()
    end = producer.last_offset(changelog, 0)
    assert end is not None
    async with asyncio.timeout(60):
        while len(found := (await read_topic(broker, changelog))[0]) > end // 2:
            continue
    assert len([record for record in found if record.key == MARKER]) < 40
    assert CLAIM in {record.key for record in found}
    restored, how = await opened(broker, tmp_path / "b", changelog, producer)
    assert rows_of(restored) == expected
    assert restored.applied == {INPUT: 39}
    assert not how.emptied
    restored.close()


# ---- damaged, locked ----


def rewrite(pattern: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.write_bytes(change(path.read_bytes()))

    return damage


def flip(pattern: str) -> Callable[[Path], None]:
    def flipped(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 64]) + content[middle + 64 :]

    return rewrite(pattern, flipped)


def remove(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return damage


DAMAGES = {
    "manifest removed": remove("MANIFEST-*"),
    "manifest flipped": rewrite("MANIFEST-*", lambda content: bytes(byte ^ 0xFF for byte in content)),
    "current removed": remove("CURRENT"),
    "current emptied": lambda folder: (folder / "CURRENT").write_text(""),
    "tables removed": remove("*.sst"),
    "tables flipped": flip("*.sst"),
    "tables cut": rewrite("*.sst", lambda content: content[:100]),
    "everything": rewrite("*", lambda content: content[:1]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_damaged_folder_is_restored_from_the_changelog_and_said_so(
    broker: str,
    changelog: str,
    output: str,
    producer: BatchProducer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    folder = tmp_path / "a"
    tables, _ = await opened(broker, folder, changelog, producer)
    await apply(tables, output, 60)
    tables.close()
    damage(folder)
    back, restored = await opened(broker, folder, changelog, producer)
    assert restored.emptied
    await holds(broker, back, output, 60)
    back.close()
    assert any("is damaged" in one.getMessage() for one in caplog.records if one.levelname == "WARNING")


async def test_manifest_damaged_in_the_middle_is_an_older_store_or_none_but_never_wrong_rows(
    broker: str, changelog: str, output: str, producer: BatchProducer, tmp_path: Path
) -> None:
    """RocksDB takes a damaged last record of it for one that was being written, and opens what was there before."""
    tables, _ = await opened(broker, tmp_path / "a", changelog, producer)
    await apply(tables, output, 60)
    tables.close()
    flip("MANIFEST-*")(tmp_path / "a")
    back, _ = await opened(broker, tmp_path / "a", changelog, producer)
    await holds(broker, back, output, 60)
    back.close()


async def test_block_found_damaged_while_it_is_read_is_an_error_and_mended_by_the_next_open(
    broker: str, changelog: str, producer: BatchProducer, tmp_path: Path
) -> None:
    folder, limits = tmp_path / "a", RocksLimits(write_buffer_bytes=65_536)
    tables, _ = await opened(broker, folder, changelog, producer, limits)
    for number in range(10):
        changes = Changes({b"%06d" % row: os.urandom(100) for row in range(number * 1_000, number * 1_000 + 1_000)})
        await tables.settle(tables.write(changes, INPUT, number, timestamp_ms=now_ms()), timestamp_ms=now_ms())
    expected = rows_of(tables)
    tables.close()
    store = RocksFolder(limits).open(folder)
    flip("*.sst")(folder)
    with pytest.raises(EnvironmentError_, match="is damaged") as found:
        dict(store.range(b"", b"\xff"))
    assert found.value.facts == {"damaged": True}
    store.close()
    assert (folder / DAMAGED).exists()
    back, restored = await opened(broker, folder, changelog, producer, limits)
    assert (restored.emptied, rows_of(back) == expected) == (True, True)
    back.close()


async def test_range_that_is_read_on_after_the_close_says_so_and_locks_nothing(
    broker: str, changelog: str, output: str, producer: BatchProducer, tmp_path: Path
) -> None:
    tables, _ = await opened(broker, tmp_path / "a", changelog, producer)
    await apply(tables, output, 9)
    walk = tables.range(b"", b"\xff")
    next(walk)
    tables.close()
    again, _ = await opened(broker, tmp_path / "a", changelog, producer)
    with pytest.raises(EnvironmentError_, match="closed meanwhile"):
        next(walk)
    again.close()


async def test_folder_in_use_is_one_sentence_and_is_left_alone(
    broker: str, changelog: str, output: str, producer: BatchProducer, tmp_path: Path
) -> None:
    tables, _ = await opened(broker, tmp_path / "a", changelog, producer)
    await apply(tables, output, 9)
    with pytest.raises(EnvironmentError_, match=r"in use by another process; stop it or set tables\.directory"):
        await opened(broker, tmp_path / "a", changelog, producer)
    assert rows_of(tables) == fold(9)[0]
    tables.close()


async def test_record_that_is_no_changelog_stops_the_restore_with_its_place(
    broker: str, changelog: str, producer: BatchProducer, tmp_path: Path
) -> None:
    await producer.publish([OutRecord(changelog, b"k", b"not ours", now_ms(), (), 0)])
    with pytest.raises(ValueError, match="version"):
        await opened(broker, tmp_path / "a", changelog, producer)
