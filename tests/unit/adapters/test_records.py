"""Laws of unpacking a fetch: what the wire holds comes out, whatever a header's name is made of."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.record._crc32c import crc
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from app.adapters.records import FetchedRecord, KeptRecords, LightPartitionRecords

PLAIN, LZ4 = 0, 3
BAD_NAME = b"\xff\xfe\xfd\xfc"


def a_batch(base: int, names: Sequence[str], *, bad: str | None = None, codec: int = PLAIN) -> bytes:
    """A record batch from offset `base`, one header name a record; the name `bad` is no UTF-8 in it."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
    for number, name in enumerate(names):
        builder.append(number, 1_000 + number, b"key", b"value %d" % (base + number), [(name, b"x")])
    raw = bytearray(builder.build())
    if bad is not None:
        at = raw.index(bad.encode())
        raw[at : at + len(bad)] = BAD_NAME
        struct.pack_into(">I", raw, 17, crc(bytes(raw[21:])))
    struct.pack_into(">q", raw, 0, base)
    return bytes(raw)


def unpacked(raw: bytes, start: int = 0) -> list[FetchedRecord]:
    where: Any = TopicPartition("device.telemetry", 0)
    return list(LightPartitionRecords(where, KeptRecords(raw), None, start, None, None, True, 0))


@pytest.mark.parametrize("codec", [PLAIN, LZ4])
def test_records_come_out_as_they_were_put_in(codec: int) -> None:
    found = unpacked(a_batch(5, ["a", "b"], codec=codec))
    assert [(record.offset, record.timestamp, record.key, record.value) for record in found] == [
        (5, 1_000, b"key", b"value 5"),
        (6, 1_001, b"key", b"value 6"),
    ]
    assert list(found[1].headers) == [("b", b"x")]


def test_a_header_whose_name_is_no_utf8_stops_nothing_and_costs_no_record() -> None:
    first = a_batch(0, ["a", "b"])
    rest = a_batch(2, ["c", "ABCD", "e"], bad="ABCD") + a_batch(5, ["f"], codec=LZ4)
    found = unpacked(first + rest)
    assert [record.offset for record in found] == [0, 1, 2, 3, 4, 5]
    assert [record.value for record in found] == [b"value %d" % offset for offset in range(6)]
    assert all(type(record.value) is bytes and type(record.key) is bytes for record in found)
    assert next(iter(found[3].headers)) == ("�" * 4, b"x")
    assert [record.offset for record in unpacked(rest, start=4)] == [4, 5]
