"""Laws of one partition's tables, step by step."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EnvironmentError_, Fenced, PublishFailed
from app.ports import OutRecord
from tables.changelog import MARKER, unpack_tag
from tables.meta import META, PENDING, ROWS, Meta
from tables.outbox import pack_outbox, unpack_outbox
from tables.partition import Changes, TablePartition, Transaction
from tables.restore import TRUSTED_AGE_MS
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
    MemoryStore,
    apply_inputs,
    fold,
    open_tables,
    rows_of,
)

blobs = st.none() | st.binary(max_size=20)
outputs = st.builds(
    OutRecord,
    topic=st.text(max_size=8),
    key=blobs,
    value=blobs,
    timestamp_ms=st.integers(0, 2**53),
    headers=st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=3).map(tuple),
    partition=st.none() | st.integers(0, 1000),
    intended_ms=st.none(),
)


async def opened(log: Log, disk: Disk, gate: Gate | None = None) -> TablePartition:
    tables, _ = await open_tables(log, disk, LogPublisher(log, gate))
    return tables


def put(tables: TablePartition, key: bytes, value: bytes | None, offset: int = 0) -> Transaction:
    changes = Changes(outputs=[OutRecord(OUTPUT, key, value, T0_MS, (), 0)])
    if value is None:
        changes.delete(key)
    else:
        changes.put(key, value)
    return tables.write(changes, INPUT, offset, timestamp_ms=T0_MS)


async def settle(tables: TablePartition, *written: Transaction) -> None:
    await asyncio.gather(*(tables.settle(one, timestamp_ms=T0_MS) for one in written))


@given(st.lists(st.binary(max_size=12)), st.lists(outputs, max_size=6))
def test_outbox_comes_back(keys: list[bytes], records: list[OutRecord]) -> None:
    assert unpack_outbox(pack_outbox(keys, records)) == (keys, records)


@given(
    st.builds(
        Meta,
        *[st.integers(0, 2**62)] * 5,
        st.dictionaries(st.text(max_size=5), st.integers(-1, 2**62), max_size=3),
    )
)
def test_meta_comes_back(meta: Meta) -> None:
    assert Meta.from_bytes(meta.to_bytes()) == meta


async def test_rows_are_read_by_key_and_in_order_without_the_store_s_own() -> None:
    tables = await opened(Log(), Disk())
    for key in (b"b", b"a", b"c", b"a\x00"):
        put(tables, key, key.upper())
    put(tables, b"c", None)
    assert list(tables.range(b"", b"\xff")) == [(b"a", b"A"), (b"a\x00", b"A\x00"), (b"b", b"B")]
    assert [key for key, _ in tables.range(b"a\x00", b"b")] == [b"a\x00"]
    assert (tables.get(b"b"), tables.get(b"c"), tables.get(META)) == (b"B", None, None)


async def test_one_write_holds_rows_applied_offset_and_outputs() -> None:
    disk = Disk()
    tables = await opened(Log(), disk)
    before = len(disk.states)
    put(tables, b"k", b"1", offset=41)
    assert len(disk.states) == before + 1
    state = disk.states[-1]
    (pending,) = [value for key, value in state.items() if key.startswith(PENDING) and value != pack_outbox([], [])]
    assert unpack_outbox(pending)[0] == [b"k"]
    assert Meta.from_bytes(state[META]).applied == {INPUT: 41}
    assert state[ROWS + b"k"] == b"1"


async def test_failed_write_changes_nothing() -> None:
    disk = Disk()
    tables = await opened(Log(), disk)
    await settle(tables, put(tables, b"k", b"1", offset=1))
    store, disk.user = disk.user, None
    with pytest.raises(AssertionError):
        put(tables, b"k", b"2", offset=2)
    disk.user = store
    assert (tables.applied, tables.get(b"k")) == ({INPUT: 1}, b"1")
    await settle(tables, put(tables, b"k", b"2", offset=2))


async def test_pending_outputs_are_forgotten_once_they_count() -> None:
    disk = Disk()
    tables = await opened(Log(), disk)
    for offset in range(5):
        await settle(tables, put(tables, b"k", b"%d" % offset, offset))
    put(tables, b"k", b"last", 5)
    assert len([key for key in disk.states[-1] if key.startswith(PENDING)]) == 1


async def test_outputs_and_rows_are_acknowledged_before_the_marker() -> None:
    log, gate = Log(), Gate()
    tables = await opened(log, Disk(), gate)
    markers = len([one for one in log.topics[CHANGELOG] if one.key == MARKER])
    gate.allow(2)  # the output and the row are appended, not acknowledged
    settling = asyncio.create_task(settle(tables, put(tables, b"k", b"1")))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len([one for one in log.topics[CHANGELOG] if one.key == MARKER]) == markers
    assert not settling.done()
    gate.allow(None)
    await settling
    assert log.topics[CHANGELOG][-1].key == MARKER


async def test_one_marker_stands_for_many_transactions_and_never_passes_an_unsettled_one() -> None:
    log, gate = Log(), Gate()
    tables = await opened(log, Disk(), gate)
    before = [one.key for one in log.topics[CHANGELOG]].count(MARKER)
    gate.allow(7)  # two transactions of two records, acknowledged, and one record of the marker or the third
    waiting = [asyncio.create_task(settle(tables, put(tables, b"k", b"%d" % offset, offset))) for offset in range(4)]
    for _ in range(30):
        await asyncio.sleep(0)
    assert [one.key for one in log.topics[CHANGELOG]].count(MARKER) == before
    assert not any(task.done() for task in waiting)
    gate.allow(None)
    await asyncio.gather(*waiting)
    assert [one.key for one in log.topics[CHANGELOG]].count(MARKER) < before + 4
    assert unpack_tag(log.topics[CHANGELOG][-1].value or b"").number == tables._number


async def test_transactions_are_settled_in_the_order_they_were_written() -> None:
    tables = await opened(Log(), Disk())
    first, second = put(tables, b"a", b"1", 0), put(tables, b"a", b"2", 1)
    with pytest.raises(AssertionError, match="in the order"):
        await settle(tables, second)
    await settle(tables, first, second)


async def test_failed_publish_fails_what_waits_behind_it_and_all_that_comes() -> None:
    gate = Gate()
    tables = await opened(Log(), Disk(), gate)
    gate.allow(0)
    waiting = [asyncio.create_task(settle(tables, put(tables, b"a", b"1", offset))) for offset in range(3)]
    for _ in range(20):
        await asyncio.sleep(0)
    gate.failure = PublishFailed("refused", 1)
    gate.allow(1)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {PublishFailed}
    gate.failure = None
    gate.allow(None)
    with pytest.raises(Fenced):
        await settle(tables, put(tables, b"c", b"1", 3))


async def test_failed_marker_fails_whoever_waits_for_it() -> None:
    gate = Gate()
    tables = await opened(Log(), Disk(), gate)
    settling = asyncio.create_task(settle(tables, put(tables, b"a", b"1")))
    gate.allow(3)  # output, row and their acknowledgement; then the marker is refused
    for _ in range(20):
        await asyncio.sleep(0)
    gate.failure = PublishFailed("refused", 1)
    gate.allow(None)
    with pytest.raises(PublishFailed):
        await settling


async def test_closed_or_lost_partition_is_fenced() -> None:
    log, disk = Log(), Disk()
    tables = await opened(log, disk)
    late = put(tables, b"k", b"1")
    tables.close()
    with pytest.raises(Fenced):
        put(tables, b"k", b"2")
    with pytest.raises(Fenced):
        await settle(tables, late)
    lost = TablePartition(MemoryStore(disk), LogPublisher(log), CHANGELOG, 0, Meta(), owned=lambda: False)
    with pytest.raises(Fenced, match="no longer owned"):
        put(lost, b"k", b"3")


async def test_record_of_another_process_on_the_changelog_fences_the_owner() -> None:
    log = Log()
    tables = await opened(log, Disk())
    await settle(tables, put(tables, b"k", b"1"))
    await opened(log, Disk())
    with pytest.raises(Fenced, match="another process wrote"):
        await settle(tables, put(tables, b"k", b"2"))


async def test_unmarked_changes_are_sent_again_by_the_same_disk_and_thrown_away_by_an_overruled_one() -> None:
    log, disk = Log(), Disk()
    tables = await opened(log, disk)
    await settle(tables, put(tables, b"k", b"counts", 0))
    put(tables, b"k", b"unmarked", 1)
    tables.close()
    again = await opened(log, disk)
    assert (again.get(b"k"), again.applied) == (b"unmarked", {INPUT: 1})
    assert [record.value for record in log.topics[OUTPUT]] == [b"counts", b"unmarked"]
    put(again, b"k", b"overruled", 2)
    again.close()
    other = await opened(log, Disk())
    assert (other.get(b"k"), other.applied) == (b"unmarked", {INPUT: 1})
    await settle(other, put(other, b"k", b"other", 2))
    other.close()
    back = await opened(log, disk)
    assert (back.get(b"k"), back.applied) == (b"other", {INPUT: 2})
    assert b"overruled" not in [record.value for record in log.topics[OUTPUT]]


async def test_disk_that_lost_its_last_writes_is_filled_from_the_changelog() -> None:
    log, disk = Log(), Disk()
    tables = await opened(log, disk)
    for offset in range(4):
        await settle(tables, put(tables, b"k%d" % offset, b"1", offset))
    tables.close()
    disk.forget(3)
    back, restored = await open_tables(log, disk, LogPublisher(log))
    assert not restored.emptied
    assert rows_of(back) == {b"k0": b"1", b"k1": b"1", b"k2": b"1", b"k3": b"1"}
    assert back.applied == {INPUT: 3}


async def test_same_disk_reads_only_what_it_has_not_seen() -> None:
    log, disk = Log(), Disk()
    tables = await opened(log, disk)
    for offset in range(10):
        await settle(tables, put(tables, b"k%d" % offset, b"1", offset))
    tables.close()
    _, restored = await open_tables(log, disk, LogPublisher(log))
    assert (restored.rows, restored.emptied) == (0, False)
    assert restored.records <= 3


async def test_damaged_disk_is_emptied_and_restored_but_a_locked_one_is_left_alone() -> None:
    log, disk = Log(), Disk()
    tables = await opened(log, disk)
    await settle(tables, put(tables, b"k", b"1", 7))
    with pytest.raises(EnvironmentError_, match="in use"):
        await open_tables(log, disk, LogPublisher(log))
    tables.close()
    disk.damaged = True
    back, restored = await open_tables(log, disk, LogPublisher(log))
    assert (restored.emptied, rows_of(back), back.applied) == (True, {b"k": b"1"}, {INPUT: 7})


async def test_restore_that_did_not_end_begins_again_from_nothing() -> None:
    log, disk = Log(), Disk()
    disk.states.append({ROWS + b"ghost": b"deleted since"})
    back, restored = await open_tables(log, disk, LogPublisher(log))
    assert (restored.emptied, rows_of(back)) == (True, {})


async def test_changelog_made_anew_is_not_mixed_with_the_disk() -> None:
    disk = Disk()
    tables = await opened(Log(), disk)
    for offset in range(5):
        await settle(tables, put(tables, b"k", b"%d" % offset, offset))
    tables.close()
    back, restored = await open_tables(Log(), disk, LogPublisher(Log()))
    assert (restored.emptied, rows_of(back), back.applied) == (True, {}, {})


async def test_disk_older_than_the_tombstones_is_not_trusted() -> None:
    log, disk = Log(), Disk()
    tables = await opened(log, disk)
    await settle(tables, put(tables, b"k", b"1", 0))
    tables.close()
    other = await opened(log, Disk())
    await settle(other, put(other, b"k", None, 1))
    other.close()
    log.topics[CHANGELOG] = [one for one in log.topics[CHANGELOG] if one.key != b"k"]
    back, restored = await open_tables(log, disk, LogPublisher(log), T0_MS + TRUSTED_AGE_MS + 1)
    assert (restored.emptied, rows_of(back), back.applied) == (True, {}, {INPUT: 1})


async def test_open_that_fails_lets_go_of_the_disk() -> None:
    log, disk, gate = Log(), Disk(), Gate()
    gate.allow(2)  # the claim goes out, the take-over does not
    opening = asyncio.create_task(open_tables(log, disk, LogPublisher(log, gate)))
    for _ in range(20):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert disk.user is None
    tables = await opened(log, disk)
    tables.close()


async def test_restore_of_a_great_unmarked_tail_reads_twice_and_keeps_it_out() -> None:
    log = Log()
    tables = await opened(log, Disk())
    await settle(tables, put(tables, b"k", b"1", 0))
    gate = tables._publisher.gate  # type: ignore[attr-defined]
    big = Changes(rows={b"%06d" % number: b"x" for number in range(60)})
    written = tables.write(big, INPUT, 1, timestamp_ms=T0_MS)
    gate.allow(50)
    settling = asyncio.create_task(settle(tables, written))
    for _ in range(20):
        await asyncio.sleep(0)
    settling.cancel()
    back, restored = await open_tables(log, Disk(), LogPublisher(log), waiting_rows=20)
    assert restored.emptied
    assert (rows_of(back), back.applied) == ({b"k": b"1"}, {INPUT: 0})


async def test_inputs_of_the_model_fold_to_the_same_rows_in_any_batches() -> None:
    tables = await opened(Log(), Disk())
    for count in (1, 3, 2, 7):
        last = tables.applied.get(INPUT, -1) + count
        changes = apply_inputs(tables, count)
        await settle(tables, tables.write(changes, INPUT, last, timestamp_ms=T0_MS))
    assert rows_of(tables) == fold(13)[0]
    assert PLACE.partition == tables.partition
