"""Laws of the bytes of rollups, late samples, dead letters and states."""

import base64
import json

import jsonschema
import pytest
from hypothesis import given

from app.codec import encode_dead_letter, encode_dead_letter_record, encode_late, encode_rollup
from app.domain.deadletter import Origin, dead_letter
from app.domain.rollup import DeviceState, Outcome, Rollup, process_device
from config.schemas import DEAD_LETTER, LATE_READING, ROLLUP
from tables import telemetry
from tests.helpers.telemetry import START_MS, disorders, run, sample, small_spec

ROLLUPS = jsonschema.Draft202012Validator(ROLLUP)
LATES = jsonschema.Draft202012Validator(LATE_READING)
DEAD_LETTERS = jsonschema.Draft202012Validator(DEAD_LETTER)


@given(disorders(9_000))
def test_rollups_and_late_samples_fit_their_schemas(samples) -> None:
    out = run(samples, small_spec(1_000))
    for rollup in out.rollups:
        fields = json.loads(encode_rollup(rollup))
        ROLLUPS.validate(fields)
        assert Rollup(**fields) == rollup
    for late in out.late:
        fields = json.loads(encode_late(late, "device.telemetry", 3))
        LATES.validate(fields)
        assert (fields["partition"], fields["offset"]) == (3, late.offset)


@pytest.mark.parametrize("value", [None, b"", b"\xff\x00", b"x" * 2_000])
def test_a_dead_letter_keeps_the_original_or_says_how_much_of_it(value) -> None:
    origin = Origin("device.telemetry", 1, 7, START_MS, b"\xfe", value, [("ce_id", b"\x01")])
    letter = dead_letter(origin, stage="transform", reason="not_finite", detail="…", now_ms=START_MS, keep_bytes=1_000)
    fields = json.loads(encode_dead_letter_record(letter))
    DEAD_LETTERS.validate(fields)
    original = fields["original"] and base64.b64decode(fields["original"])
    assert (original or None) == (None if not value else value[:1_000])
    assert fields["truncated"] == (value is not None and len(value) > 1_000)
    assert fields["value_bytes"] == len(value or b"")
    assert base64.b64decode(fields["key"]) == b"\xfe"


def test_the_dead_letter_of_a_row_fits_the_same_schema() -> None:
    DEAD_LETTERS.validate(json.loads(encode_dead_letter("malformed_row", "…", b"a;b", line=3, file="a.csv")))


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        telemetry.load_device("a", {telemetry.device_key("a"): b"\x09[]"}.get, small_spec())


def test_a_header_without_its_window_is_refused() -> None:
    spec, out = small_spec(), Outcome()
    process_device(DeviceState("press-0001", spec), [(0, sample(1, 0))], spec, START_MS, out)
    table = dict(telemetry.encode_changes(*out.changed[0], spec))
    header = {key: value for key, value in table.items() if key == telemetry.device_key("press-0001")}
    assert len(table) == 2
    with pytest.raises(ValueError, match="no window"):
        telemetry.load_device("press-0001", header.get, spec)


def test_windows_of_a_rung_that_is_gone_are_dropped() -> None:
    spec, out = small_spec(), Outcome()
    samples = [(n, sample(n + 1, 1_100 * n)) for n in range(8)]
    process_device(DeviceState("press-0001", spec), samples, spec, START_MS, out)
    table = dict(telemetry.encode_changes(*out.changed[0], spec))
    shorter = small_spec(rungs=spec.rungs[:2])
    state = telemetry.load_device("press-0001", table.get, shorter)
    assert [len(windows) for windows in state.open] == [len(windows) for windows in out.changed[0][0].open[:2]]


def test_keys_of_a_device_are_one_range_and_headers_another() -> None:
    assert telemetry.device_of(telemetry.device_key("präß-1")) == "präß-1"
    keys = [
        telemetry.window_key(device, size, slot) for device in ("a", "a1", "b") for size in (10, 999) for slot in (0, 5)
    ]
    assert keys == sorted(keys)
