"""Laws of the changelog: what counts, what is disputed, and what is no changelog at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.changelog import CLAIM, MARKER, TAG_BYTES, Replay, Tag, claim_value, marker_value, pack_tag, unpack_tag
from tests.helpers.streams import Record

numbers = st.integers(0, 2**64 - 1)
tags = st.builds(Tag, numbers, numbers)


class Written:
    """Builds a log record by record."""

    def __init__(self, first_offset: int = 0) -> None:
        self.records: list[Record] = []
        self.next = first_offset

    def _add(self, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...] = ()) -> int:
        self.records.append(Record("stage.state", 0, self.next, 0, key, value, headers))
        self.next += 1
        return self.next - 1

    def claim(self) -> int:
        """Returns the epoch of the claim."""
        return self._add(CLAIM, claim_value()) + 1

    def row(self, epoch: int, number: int, key: bytes, value: bytes | None) -> None:
        tag = pack_tag(Tag(epoch, number))
        self._add(key, None if value is None else tag + value, (("t", tag),) if value is None else ())

    def marker(self, epoch: int, number: int, applied: int) -> None:
        self._add(MARKER, marker_value(Tag(epoch, number), {"in": applied}))


@given(tags, st.binary(max_size=8))
def test_tag_comes_back(tag: Tag, row: bytes) -> None:
    assert unpack_tag(pack_tag(tag) + row) == tag
    assert len(pack_tag(tag)) == TAG_BYTES


@given(tags, tags)
def test_tags_order_by_epoch_then_number_as_their_bytes_do(a: Tag, b: Tag) -> None:
    assert (a < b) == (pack_tag(a) < pack_tag(b))


@pytest.mark.parametrize("value", [b"", b"\x02short", b"\x01" + bytes(TAG_BYTES - 1), b"\x03" + bytes(40)])
def test_value_of_another_version_or_too_short_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="of another version"):
        unpack_tag(value)


def test_record_without_key_and_tombstone_without_tag_are_refused_with_their_place() -> None:
    with pytest.raises(ValueError, match=r"stage\.state-0@5 has no key"):
        Replay().feed([Record("stage.state", 0, 5, 0, None, b"")])
    with pytest.raises(ValueError, match=r"stage\.state-0@6 has no tag"):
        Replay().feed([Record("stage.state", 0, 6, 0, b"k", None, (("other", b""),))])


def test_rows_count_from_the_marker_on_and_not_before() -> None:
    log = Written()
    epoch = log.claim()
    log.row(epoch, 1, b"a", b"1")
    log.row(epoch, 2, b"a", b"2")
    replay = Replay()
    assert replay.feed(log.records) == {}
    log.records.clear()
    log.marker(epoch, 1, 10)
    assert replay.feed(log.records) == {b"a": b"1"}
    assert (replay.applied, replay.finish()) == ({"in": 10}, {b"a"})


def test_tombstone_deletes() -> None:
    log = Written()
    epoch = log.claim()
    log.row(epoch, 1, b"a", b"1")
    log.row(epoch, 2, b"a", None)
    log.marker(epoch, 2, 1)
    assert Replay().feed(log.records) == {b"a": None}


def test_what_a_zombie_writes_behind_a_claim_never_counts_and_is_disputed() -> None:
    log = Written()
    old = log.claim()
    log.row(old, 1, b"a", b"old")
    log.marker(old, 1, 1)
    new = log.claim()
    log.row(old, 2, b"a", b"zombie")
    log.marker(old, 2, 2)
    replay = Replay()
    assert replay.feed(log.records) == {b"a": b"old"}
    assert (replay.applied, replay.finish(), replay.claimed) == ({"in": 1}, {b"a"}, new)


def test_repaired_key_is_no_longer_disputed_but_one_written_again_by_the_zombie_is() -> None:
    log = Written()
    old = log.claim()
    new = log.claim()
    log.row(old, 1, b"a", b"zombie")
    log.row(old, 1, b"b", b"zombie")
    log.row(new, 1, b"a", b"new")
    log.row(new, 1, b"b", b"new")
    log.row(old, 2, b"b", b"zombie again")
    log.marker(new, 1, 1)
    replay = Replay()
    assert replay.feed(log.records) == {b"a": b"new", b"b": b"new"}
    assert replay.finish() == {b"b"}


def test_repeat_of_a_row_behind_its_marker_is_disputed() -> None:
    """A client that was replaced sends again what it had under way; the broker may have both."""
    log = Written()
    epoch = log.claim()
    log.row(epoch, 1, b"a", b"1")
    log.row(epoch, 2, b"a", b"2")
    log.marker(epoch, 2, 2)
    log.row(epoch, 1, b"a", b"1")
    replay = Replay()
    assert replay.feed(log.records) == {b"a": b"2"}
    assert replay.finish() == {b"a"}


def test_rows_of_older_epochs_count_with_the_next_marker_as_compaction_leaves_no_other() -> None:
    log = Written(first_offset=20)
    log.row(3, 9, b"a", b"1")
    new = log.claim()
    log.row(new, 10, b"b", b"2")
    log.marker(new, 10, 7)
    assert Replay().feed(log.records) == {b"a": b"1", b"b": b"2"}


def test_store_is_given_only_what_it_has_not() -> None:
    log = Written()
    epoch = log.claim()
    for number in (1, 2, 3):
        log.row(epoch, number, b"%d" % number, b"x")
    log.marker(epoch, 3, 3)
    replay = Replay(disk=Tag(epoch, 2), marked=Tag(epoch, 0), claimed=epoch)
    assert replay.feed(log.records) == {b"3": b"x"}
    assert (replay.ahead, replay.overruled, replay.disk_marked) == (True, False, 3)


def test_store_with_transactions_that_do_not_count_is_overruled_only_by_later_ones_that_do() -> None:
    log = Written()
    epoch = log.claim()
    log.row(epoch, 1, b"a", b"1")
    log.marker(epoch, 1, 1)
    replay = Replay(disk=Tag(epoch, 2), claimed=epoch)
    replay.feed(log.records)
    assert (replay.ahead, replay.overruled) == (False, False)
    log.records.clear()
    other = log.claim()
    log.marker(other, 2, 1)
    replay.feed(log.records)
    assert (replay.ahead, replay.overruled) == (True, True)


def test_rows_that_wait_in_great_number_are_returned_before_their_marker() -> None:
    log = Written()
    epoch = log.claim()
    for number in range(1, 8):
        log.row(epoch, number, b"%d" % number, b"x")
    replay = Replay(waiting_rows=5)
    assert len(replay.feed(log.records)) == 7
    assert replay.overrun
    log.records.clear()
    log.marker(epoch, 7, 7)
    assert replay.feed(log.records) == {}
    assert not replay.overrun


def test_second_reading_knows_what_counts() -> None:
    log = Written()
    epoch = log.claim()
    for number in range(1, 8):
        log.row(epoch, number, b"%d" % number, b"x")
    log.marker(epoch, 4, 4)
    replay = Replay(last=Tag(epoch, 4), waiting_rows=5)
    assert sorted(replay.feed(log.records)) == [b"1", b"2", b"3", b"4"]
    assert (replay.overrun, replay.finish()) == (False, {b"5", b"6", b"7"})
