"""Laws of tables that settle in one trip: what goes along with its marker, what does not, and who sends it again."""

import asyncio
from collections.abc import Sequence

import orjson
import pytest

from app.errors import Fenced, PublishFailed
from app.ports import OutRecord
from tables.changelog import (
    CLAIM,
    MARKER,
    OUTBOX,
    TAG_BYTES,
    Replay,
    Tag,
    claim_value,
    marker_value,
    outbox_key,
    pack_tag,
)
from tables.meta import META, PENDING, Meta
from tables.outbox import unpack_outbox
from tables.partition import Changes, SingleTrip, TablePartition, Transaction
from tests.helpers.streams import Record
from tests.helpers.tables import CHANGELOG, INPUT, OUTPUT, T0_MS, Disk, Gate, Log, LogPublisher, open_tables, rows_of


class Calls(LogPublisher):
    """Notes what was published together."""

    def __init__(self, log: Log, outputs: Gate | None = None) -> None:
        super().__init__(log, Gate(), outputs or Gate())
        self.calls: list[Sequence[OutRecord]] = []

    async def publish(self, records: Sequence[OutRecord]) -> None:
        self.calls.append(records)
        await super().publish(records)


async def opened(log: Log, disk: Disk, publisher: LogPublisher, trip: SingleTrip | None = None) -> TablePartition:
    tables, _ = await open_tables(log, disk, publisher, single_trip=trip or SingleTrip())
    return tables


def put(tables: TablePartition, offset: int, size: int = 1) -> Transaction:
    value = b"%d" % offset
    changes = Changes(outputs=[OutRecord(OUTPUT, None, value * size, T0_MS, (), 0)])
    changes.put(b"k", value)
    return tables.write(changes, INPUT, offset, timestamp_ms=T0_MS)


def begin(tables: TablePartition, *written: Transaction) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(carry(tables, one)) for one in written]


async def carry(tables: TablePartition, written: Transaction) -> None:
    """To its end."""
    await tables.settle(written, timestamp_ms=T0_MS)
    await tables.deliver(timestamp_ms=T0_MS)


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def sent(log: Log) -> list[bytes]:
    return [record.value or b"" for record in log.topics[OUTPUT]]


def will_tell(tables: TablePartition) -> bool:
    return tables._trailing is not None


async def end(tables: TablePartition, *tasks: asyncio.Task[None]) -> None:
    """As a killed process: only disk and log stay."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tables.close()


async def test_rows_outbox_and_marker_go_in_this_order_and_the_outputs_only_once_they_count() -> None:
    log = Log()
    publisher = Calls(log)
    tables = await opened(log, Disk(), publisher)
    publisher.calls.clear()
    await tables.settle(put(tables, 0), timestamp_ms=T0_MS)
    (call,) = publisher.calls
    assert [record.key for record in call] == [b"k", outbox_key(2, 64), MARKER]
    assert sent(log) == []
    await tables.deliver(timestamp_ms=T0_MS)
    assert sent(log) == [b"0"]
    tables.close()


async def test_what_another_owner_overruled_is_undone_and_the_disk_kept() -> None:
    log, mine, others = Log(), Disk(), Disk()
    publisher = LogPublisher(log)
    tables = await opened(log, mine, publisher)
    await carry(tables, put(tables, 0))
    publisher.gate.allow(0)  # from here on nothing leaves the process
    changes = Changes()
    changes.put(b"new", b"7")
    changes.delete(b"k")
    dying = begin(tables, put(tables, 1), tables.write(changes, INPUT, 2, timestamp_ms=T0_MS))
    await turns()
    await end(tables, *dying)
    successor = await opened(log, others, LogPublisher(log))
    assert rows_of(successor) == {b"k": b"0"}
    await carry(successor, put(successor, 5))
    successor.close()

    again, restored = await open_tables(log, mine, LogPublisher(log), single_trip=SingleTrip())
    assert not restored.emptied
    assert rows_of(again) == {b"k": b"5"}
    assert again.applied == {INPUT: 5}
    again.close()


async def test_transaction_without_outputs_has_no_outbox() -> None:
    log = Log()
    publisher = Calls(log)
    tables = await opened(log, Disk(), publisher)
    changes = Changes()
    changes.put(b"k", b"v")
    publisher.calls.clear()
    await tables.settle(tables.write(changes, timestamp_ms=T0_MS), timestamp_ms=T0_MS)
    assert [[record.key for record in call] for call in publisher.calls] == [[b"k", MARKER]]
    tables.close()


async def test_large_outbox_takes_two_trips_and_so_does_what_follows_until_it_counts() -> None:
    log, outputs = Log(), Gate()
    publisher = Calls(log, outputs)
    tables = await opened(log, Disk(), publisher, SingleTrip(bytes=200, pieces=1))
    publisher.calls.clear()
    outputs.allow(0)
    first = begin(tables, put(tables, 0, size=500), put(tables, 1))
    await turns()
    assert [any(record.key == MARKER for record in call) for call in publisher.calls] == [False, False]
    assert Replay().feed(log.topics[CHANGELOG]) == {}
    outputs.allow(None)
    await asyncio.gather(*first)
    await carry(tables, put(tables, 2))
    assert publisher.calls[-2][-1].key == MARKER
    assert sent(log) == [b"0" * 500, b"1", b"2"]
    tables.close()


async def test_large_outbox_goes_in_pieces_that_are_gone_once_it_is_delivered() -> None:
    log, outputs = Log(), Gate()
    tables = await opened(log, Disk(), Calls(log, outputs), SingleTrip(bytes=200))
    outputs.allow(0)
    first = begin(tables, put(tables, 0, size=1_000))
    await turns()
    found = [record for record in log.topics[CHANGELOG] if (record.key or b"").startswith(OUTBOX)]
    assert len(found) > 5
    assert all(len(record.value or b"") <= 200 for record in found)
    assert sent(log) == []
    replay = Replay()
    replay.feed(log.topics[CHANGELOG])
    (outbox,) = replay.undelivered()
    assert [record.value for record in unpack_outbox(outbox)[1]] == [b"0" * 1_000]
    outputs.allow(None)
    await asyncio.gather(*first)

    def left() -> list[int]:
        log.compact(CHANGELOG, log.end(CHANGELOG))
        boxes = [record for record in log.topics[CHANGELOG] if (record.key or b"").startswith(OUTBOX)]
        return [len(record.key or b"") for record in boxes if record.value]

    await carry(tables, put(tables, 1))
    assert len(left()) == len(found) + 1, "before a marker says that they are delivered they are needed"
    await carry(tables, put(tables, 2))
    assert left() == [len(outbox_key(0, 64))] * 3, "the first of each"
    tables.close()


@pytest.mark.parametrize("same_disk", [True, False])
async def test_a_large_outbox_that_was_not_delivered_is_sent_by_the_next_owner(same_disk: bool) -> None:
    log, disk, outputs = Log(), Disk(), Gate()
    tables = await opened(log, disk, Calls(log, outputs), SingleTrip(bytes=200))
    outputs.allow(0)
    tasks = begin(tables, put(tables, 0, size=1_000), put(tables, 1, size=2_000))
    await turns()
    await end(tables, *tasks)
    back = await opened(log, disk if same_disk else Disk(), Calls(log), SingleTrip(bytes=200))
    assert sent(log) == [b"0" * 1_000, b"1" * 2_000]
    back.close()


async def test_what_a_take_over_sends_goes_out_only_once_the_take_over_counts() -> None:
    """Else who takes over from it, on another disk, decides anew what others have seen already."""
    log, disk = Log(), Disk()
    publisher = Calls(log)
    tables = await opened(log, disk, publisher)
    publisher.gate.allow(0)
    dying = begin(tables, put(tables, 0))
    await turns()
    await end(tables, *dying)
    again = Calls(log, Gate())
    again.gate.allow(3)  # its claim, and the first record of its take-over
    opening = asyncio.create_task(opened(log, disk, again))
    await turns()
    assert sent(log) == []
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    disk.user = None
    other = await opened(log, Disk(), Calls(log))
    assert other.applied == {}
    await carry(other, put(other, 5))
    assert sent(log) == [b"5"]
    other.close()


async def test_more_undelivered_outboxes_than_slots_wait_for_their_turn_and_take_two_trips() -> None:
    log, outputs = Log(), Gate()
    publisher = Calls(log, outputs)
    tables = await opened(log, Disk(), publisher, SingleTrip(slots=2))
    publisher.calls.clear()
    outputs.allow(0)
    tasks = begin(tables, *(put(tables, number) for number in range(4)))
    await turns()
    markers = [any(record.key == MARKER for record in call) for call in publisher.calls if call[0].topic == CHANGELOG]
    assert markers == [True, True]
    outputs.allow(None)
    await asyncio.gather(*tasks)
    assert sent(log) == [b"0", b"1", b"2", b"3"]
    tables.close()


@pytest.mark.parametrize("same_disk", [True, False])
async def test_what_counts_and_was_not_delivered_is_sent_by_the_next_owner(same_disk: bool) -> None:
    log, disk, outputs = Log(), Disk(), Gate()
    tables = await opened(log, disk, Calls(log, outputs))
    outputs.allow(0)
    tasks = begin(tables, put(tables, 0), put(tables, 1), put(tables, 2))
    await turns()
    replay = Replay()
    replay.feed(log.topics[CHANGELOG])
    assert (replay.applied, len(replay.undelivered()), sent(log)) == ({INPUT: 2}, 3, [])
    await end(tables, *tasks)
    back = await opened(log, disk if same_disk else Disk(), Calls(log))
    assert sent(log) == [b"0", b"1", b"2"]
    assert (back.get(b"k"), back.applied) == (b"2", {INPUT: 2})
    back.close()


async def test_disk_neither_forgets_nor_passes_over_what_is_not_delivered() -> None:
    """Else a disk that loses its last writes, and is then behind, would find the outbox neither here nor there."""
    log, disk, outputs = Log(), Disk(), Gate()
    tables = await opened(log, disk, Calls(log, outputs))
    outputs.allow(0)
    tasks = begin(tables, put(tables, 0))
    await turns()
    quiet = tables.write(Changes(rows={b"q": b"1"}), INPUT, 1, timestamp_ms=T0_MS)
    tasks += begin(tables, quiet)
    await turns()
    assert (tables._marked, tables._delivered) == (3, 1)
    put(tables, 2)
    state = disk.states[-1]
    assert PENDING + (2).to_bytes(8, "big") in state
    outbox = next(record for record in log.topics[CHANGELOG] if (record.key or b"").startswith(OUTBOX))
    assert Meta.from_bytes(state[META]).changelog_next <= outbox.offset
    await end(tables, *tasks)
    disk.forget(2)
    (await opened(log, disk, Calls(log))).close()
    assert sent(log) == [b"0"]


async def test_same_disk_sends_again_what_was_marked_and_not_delivered_when_it_was_last_written() -> None:
    log, disk, outputs = Log(), Disk(), Gate()
    tables = await opened(log, disk, Calls(log, outputs))
    outputs.allow(0)
    tasks = begin(tables, put(tables, 0))
    await turns()
    quiet = tables.write(Changes(rows={b"q": b"1"}), INPUT, 1, timestamp_ms=T0_MS)
    tasks += begin(tables, quiet)
    await turns()
    put(tables, 2)
    meta = Meta.from_bytes(disk.states[-1][META])
    assert meta.delivered < meta.marked, "the outputs of 0 count and are on their way"
    await end(tables, *tasks)
    back = await opened(log, disk, Calls(log))
    assert sent(log) == [b"0", b"2"]
    assert back.applied == {INPUT: 2}
    back.close()


async def test_told_deliveries_are_not_sent_again() -> None:
    log = Log()
    tables = await opened(log, Disk(), Calls(log))
    await carry(tables, put(tables, 0))
    assert tables._trailing is not None
    tables._trailing.cancel()
    tables._trail(T0_MS)
    await turns()
    tables.close()
    (await opened(log, Disk(), Calls(log))).close()
    assert sent(log) == [b"0"]


async def test_tables_that_may_be_given_up_say_nothing_behind_the_next_claim() -> None:
    log = Log()
    tables = await opened(log, Disk(), Calls(log))
    await carry(tables, put(tables, 0))
    await tables.hush(5.0, timestamp_ms=T0_MS)
    assert not will_tell(tables)
    await carry(tables, put(tables, 1))
    assert not will_tell(tables), "a later one is told by nobody"
    tables.go_on()
    await carry(tables, put(tables, 2))
    assert will_tell(tables)
    tables.close()
    told = [record for record in log.topics[CHANGELOG] if record.key == MARKER]
    assert orjson.loads((told[2].value or b"")[TAG_BYTES:])["delivered"] == 2, "what was delivered is told at once"


async def test_nothing_counts_behind_a_transaction_that_could_not_be_sent() -> None:
    log, disk, outputs = Log(), Disk(), Gate()
    publisher = Calls(log, outputs)
    tables = await opened(log, disk, publisher)
    publisher.gate.failure = PublishFailed("refused", 1)
    tasks = begin(tables, put(tables, 0), put(tables, 1))
    await turns()
    publisher.gate.failure = None
    tasks += begin(tables, put(tables, 2))
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, (PublishFailed, Fenced)) for outcome in outcomes)
    tables.close()
    (await opened(log, disk, Calls(log))).close()
    assert sent(log)[-3:] == [b"0", b"1", b"2"]


def _record(offset: int, key: bytes, value: bytes) -> Record:
    return Record(CHANGELOG, 0, offset, 0, key, value)


def _outbox(offset: int, epoch: int, number: int) -> Record:
    return _record(offset, outbox_key(number, 64), pack_tag(Tag(epoch, number)) + b"%d/%d" % (epoch, number))


def _marker(offset: int, epoch: int, number: int, delivered: int | None) -> Record:
    return _record(offset, MARKER, marker_value(Tag(epoch, number), {}, delivered))


def test_outboxes_of_zombies_of_older_owners_and_of_what_never_counted_are_nobodys() -> None:
    claim = claim_value()
    log = [_record(0, CLAIM, claim), _outbox(1, 1, 1), _outbox(2, 1, 2), _outbox(3, 1, 3), _marker(4, 1, 2, 1)]
    replay = Replay()
    replay.feed(log)
    assert replay.undelivered() == [b"1/2"]
    replay.feed([_outbox(4, 1, 9), _record(5, CLAIM, claim), _outbox(6, 1, 8)])
    assert replay.undelivered() == [b"1/2"]
    replay.feed([_marker(7, 6, 3, 3), _outbox(8, 6, 4), _outbox(9, 1, 7), _marker(10, 6, 4, 3)])
    assert replay.undelivered() == [b"6/4"]
    replay.feed([_marker(11, 6, 4, 4)])
    assert replay.undelivered() == []


def test_marker_that_says_nothing_of_deliveries_is_one_of_two_trips() -> None:
    replay = Replay()
    replay.feed([_record(0, CLAIM, claim_value()), _outbox(1, 1, 1), _marker(2, 1, 1, None)])
    assert replay.undelivered() == []


async def test_outbox_on_the_changelog_is_what_was_to_be_sent() -> None:
    log, outputs = Log(), Gate()
    tables = await opened(log, Disk(), Calls(log, outputs))
    outputs.allow(0)
    tasks = begin(tables, put(tables, 0))
    await turns()
    replay = Replay()
    replay.feed(log.topics[CHANGELOG])
    assert [unpack_outbox(packed)[1] for packed in replay.undelivered()] == [
        [OutRecord(OUTPUT, None, b"0", T0_MS, (), 0)]
    ]
    await end(tables, *tasks)
