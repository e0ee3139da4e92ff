"""Laws of the spool's form: what was written is read, and damage costs no more than what it touched."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import as_historical, decode_sample, encode_sample
from app.domain.reading import Limits, Reading, Sample
from app.domain.spool import (
    Extent,
    Kept,
    SpoolLimits,
    batches,
    decode_batch,
    decode_position,
    encode_batch,
    encode_position,
    fallen_to_age,
    fallen_to_bytes,
)

T0_MS = 1_763_689_000_000
BYTES = st.one_of(st.none(), st.binary(max_size=20))
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=2).map(tuple)
RECORDS = st.builds(
    Kept,
    BYTES,
    BYTES,
    st.integers(-(2**63), 2**63 - 1),
    HEADERS,
    st.one_of(st.none(), st.floats(allow_nan=False)),
)
SEGMENTS = st.lists(st.lists(RECORDS, min_size=1, max_size=2), min_size=1, max_size=4)
LIMITS = SpoolLimits(max_bytes=100, max_age_ms=1_000, segment_bytes=10)


def a_segment(contents: Sequence[Sequence[Kept]]) -> tuple[bytes, list[int]]:
    """The bytes of a segment, and where each batch begins, with the end behind the last."""
    data, starts, first = b"", [], 0
    for records in contents:
        starts.append(len(data))
        data += encode_batch(records, first, 7)
        first += len(records)
    return data, [*starts, len(data)]


def numbers(data: bytes) -> list[int]:
    """The first record of each sound batch."""
    return [found.head.first for found in batches(data) if found.payload is not None]


def read(data: bytes) -> list[list[Kept]]:
    return [decode_batch(found.payload, found.head.records) for found in batches(data) if found.payload is not None]


@given(SEGMENTS)
def test_what_was_written_is_read_in_its_order(contents: list[list[Kept]]) -> None:
    data, starts = a_segment(contents)
    found = list(batches(data))
    assert read(data) == contents
    assert [each.at for each in found] == starts[:-1]
    assert (found[0].head.first, found[0].head.at_ms) == (0, 7)
    assert found[-1].head.end == sum(map(len, contents))


@given(SEGMENTS, st.data())
def test_a_truncated_segment_gives_every_batch_that_is_whole(contents: list[list[Kept]], data: st.DataObject) -> None:
    segment, starts = a_segment(contents)
    cut = data.draw(st.integers(0, len(segment)))
    whole = sum(end <= cut for end in starts[1:])
    assert read(segment[:cut]) == contents[:whole]


@given(SEGMENTS, st.data())
def test_a_flipped_bit_costs_the_batch_it_is_in_and_no_other(contents: list[list[Kept]], data: st.DataObject) -> None:
    segment, starts = a_segment(contents)
    at = data.draw(st.integers(0, len(segment) * 8 - 1))
    damaged = bytearray(segment)
    damaged[at // 8] ^= 1 << at % 8
    hit = next(index for index, end in enumerate(starts[1:]) if at // 8 < end)
    assert read(bytes(damaged)) == contents[:hit] + contents[hit + 1 :]


@given(SEGMENTS, st.data())
def test_bytes_that_are_gone_cost_the_batches_they_were_of(contents: list[list[Kept]], data: st.DataObject) -> None:
    segment, starts = a_segment(contents)
    first = data.draw(st.integers(0, len(segment)))
    last = data.draw(st.integers(first, len(segment)))
    firsts = numbers(segment)
    left = [number for number, at, end in zip(firsts, starts, starts[1:], strict=False) if end <= first or at >= last]
    found = numbers(segment[:first] + segment[last:])
    # What begins as the batch that is gone may be whole again with the rest of the next.
    assert set(left) <= set(found) <= set(firsts)
    assert found == sorted(found)


@given(SEGMENTS, st.binary(max_size=80))
def test_what_is_no_batch_is_passed_over(contents: list[list[Kept]], rubbish: bytes) -> None:
    segment, starts = a_segment(contents)
    between = starts[len(starts) // 2]
    assert read(segment[:between] + rubbish + segment[between:]) == contents


@given(st.binary(max_size=200), st.integers(0, 10))
def test_no_payload_whatever_makes_more_than_a_value_error(payload: bytes, count: int) -> None:
    try:
        assert len(decode_batch(payload, count)) == count
    except (ValueError, UnicodeDecodeError):
        return


@given(st.integers(0, 2**64 - 1), st.data())
def test_a_position_is_what_was_written_or_nothing(number: int, data: st.DataObject) -> None:
    written = encode_position(number)
    assert decode_position(written) == number
    at = data.draw(st.integers(0, len(written) * 8 - 1))
    damaged = bytearray(written)
    damaged[at // 8] ^= 1 << at % 8
    assert decode_position(bytes(damaged)) is None
    assert decode_position(written[:-1]) is None


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_sample_sent_late_is_the_same_but_for_saying_so(device_id: str, metric: str) -> None:
    readings = (Reading(metric, 1.5, "CEL", "GOOD", 0),)
    sample = Sample(device_id, 5, 6, 7, 8, is_historical=False, metrics=readings)
    assert as_historical(encode_sample(sample)) == encode_sample(sample._replace(is_historical=True))


def test_a_sample_that_says_it_is_late_passes_for_one() -> None:
    sample = Sample(
        "press-1", 5, 6, 1_763_689_000_000, 1_763_689_000_001, False, (Reading("t", 1.5, "CEL", "GOOD", 0),)
    )
    found = decode_sample(as_historical(encode_sample(sample)), b"press-1", Limits(), 1_763_689_000_001)
    assert found == sample._replace(is_historical=True)


# ---- limits ----

EXTENTS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3_000), st.booleans()), max_size=8).map(
    lambda found: [Extent(first, *each) for first, each in enumerate(found)]
)


@given(EXTENTS, st.integers(0, 60))
def test_the_oldest_loose_segments_go_and_no_more_than_must(extents: list[Extent], more: int) -> None:
    fallen = fallen_to_bytes(extents, more, LIMITS)
    loose = [extent for extent in extents if not extent.pinned]
    total = sum(extent.size for extent in extents) + more
    if fallen is None:
        assert total - sum(extent.size for extent in loose) > LIMITS.max_bytes
        return
    assert fallen == loose[: len(fallen)]
    assert total - sum(extent.size for extent in fallen) <= LIMITS.max_bytes
    if fallen:
        assert total - sum(extent.size for extent in fallen[:-1]) > LIMITS.max_bytes


@given(EXTENTS, st.integers(0, 4_000))
def test_what_falls_to_age_is_old_to_its_last_record(extents: list[Extent], now_ms: int) -> None:
    fallen = fallen_to_age(extents, now_ms, LIMITS)
    loose = [extent for extent in extents if not extent.pinned]
    assert fallen == loose[: len(fallen)]
    assert all(extent.newest_ms < now_ms - LIMITS.max_age_ms for extent in fallen)
    assert fallen == loose or loose[len(fallen)].newest_ms >= now_ms - LIMITS.max_age_ms


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_a_record_without_key_or_value_is_not_one_with_empty_ones(length: int) -> None:
    records = [Kept(None, b"v" * length, 1), Kept(b"", None, 2), Kept(b"k", b"", 3, (("n", b""),), 4.5)]
    (found,) = batches(encode_batch(records, 9, 1))
    assert found.payload is not None
    assert decode_batch(found.payload, 3) == records
