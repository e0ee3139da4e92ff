"""Laws of the words of `headrace dlq`, and of reading dead letters and times."""

import json

import pytest

from app.adapters.dead_letters import MARK, Place, marked, read_letter
from app.cli.broker import as_time, instant_ms
from app.cli.dlq import readable
from app.codec import encode_dead_letter, encode_dead_letter_record
from app.domain.deadletter import Origin, dead_letter
from app.errors import UserError
from tests.helpers.cli import refused
from tests.helpers.streams import Record

NOW_MS = 1_763_689_000_000


def at(value: bytes | None, *headers: tuple[str, bytes]) -> Record:
    return Record("device.deadletter", 3, 42, NOW_MS, b"k", value, headers)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("redrive",), "Say which"),
        (("redrive", "--all"), "There is nobody to ask here"),
        (("redrive", "0-1", "--yes"), "0-1: a place is PARTITION:OFFSET"),
        (("show", "42"), "42: a place is PARTITION:OFFSET"),
        (("list", "--since", "soon"), "--since soon: not a time"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_connected(capsys, arguments, told) -> None:
    assert refused(capsys, "dlq", *arguments).startswith(told)


def test_a_broker_that_is_away_is_one_sentence(capsys) -> None:
    hasty = ("--bootstrap", "127.0.0.1:1", "--set=kafka.startup_timeout_s=0.1")
    told = refused(capsys, "dlq", "list", *hasty, code=4)
    assert told.startswith("No Kafka broker answers at 127.0.0.1:1")


def test_both_shapes_of_a_dead_letter_are_read() -> None:
    origin = Origin("device.telemetry", 1, 7, NOW_MS, b"press-0001", b"\xff" * 9, (("a", b"b"),))
    letter = dead_letter(origin, stage="transform", reason="too_large", detail="d", now_ms=NOW_MS, keep_bytes=4)
    found = read_letter(at(encode_dead_letter_record(letter)))
    assert found is not None
    assert (found.place, found.topic, found.partition, found.offset) == (Place(3, 42), "device.telemetry", 1, 7)
    assert (found.original, found.value_bytes, found.truncated) == (b"\xff" * 4, 9, True)
    assert (found.key, found.headers, found.device_id) == (b"press-0001", (("a", b"b"),), "press-0001")
    row = read_letter(at(encode_dead_letter("malformed_row", "d", b"a;b", line=7, file="x.csv")))
    assert row is not None
    assert (row.topic, row.file, row.line, row.original, row.truncated) == (None, "x.csv", 7, b"a;b", False)


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"[]", b"1", b'"x"', b"{}", b'{"reason": 1}', json.dumps({"original": "!"}).encode()]
)
def test_what_is_no_dead_letter_is_none(value: bytes | None) -> None:
    assert read_letter(at(value)) is None


def test_a_mark_names_the_dead_letter_in_its_own_partition() -> None:
    assert marked(at(None, (MARK, b"17"))) == Place(3, 17)
    for other in (at(None), at(b"x", (MARK, b"17")), at(None, (MARK, b"x")), at(None, ("other", b"17"))):
        assert marked(other) is None


def test_bytes_are_shown_as_people_read_them_and_never_obeyed() -> None:
    assert readable(b'{"a":1}') == '{\n  "a": 1\n}'
    assert readable(None) == "(no value: a tombstone)"
    assert readable(b"\xff\x00") == "\\xff\\x00"
    assert readable(b"a\x1b[31mred\nb") == "a\\x1b[31mred\nb"
    assert "\x1b" not in readable(json.dumps({"a": "\x1b[31m"}).encode())


def test_times_are_read_as_written() -> None:
    assert instant_ms("15m", NOW_MS) == NOW_MS - 900_000
    assert instant_ms("2d", NOW_MS) == NOW_MS - 172_800_000
    assert instant_ms(str(NOW_MS), 0) == NOW_MS
    assert instant_ms("2026-01-31T08:00Z", 0) == instant_ms("2026-01-31T09:00+01:00", 0) == 1_769_846_400_000
    assert instant_ms("2026-01-31 08:00", 0) == 1_769_846_400_000
    for wrong in ("", "m", "yesterday", "1.5h", "-2h"):
        with pytest.raises(UserError):
            instant_ms(wrong, NOW_MS)
    assert as_time(1_769_846_400_000) == "2026-01-31 08:00:00.000Z"
    assert as_time(None) == "–"
