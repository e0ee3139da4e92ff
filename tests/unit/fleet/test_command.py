"""Laws of device commands: what is read is what was meant, and all else is refused with a reason."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import decode_command, encode_command
from app.domain.command import COMMANDS, SCOPES, CommandRefused, DeviceCommand
from app.domain.faults import FAULT_KINDS, METRIC_FAULTS, problem_of
from tests.helpers.fleet import T0, a_command

GOOD = {"command_id": "c1", "command": "stop", "scope": "device", "target": "press-0001", "issued_at": T0}
NAMES = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())


@st.composite
def senseful(draw: st.DrawFn) -> DeviceCommand:
    command = draw(st.sampled_from(COMMANDS))
    scope = draw(st.sampled_from(SCOPES))
    built = DeviceCommand(draw(NAMES), command, scope, None if scope == "all" else draw(NAMES), T0)
    if command == "set_interval":
        return built._replace(interval_ms=draw(st.integers(10, 86_400_000)))
    if command == "clear_fault":
        return built._replace(kind=draw(st.sampled_from([None, *FAULT_KINDS])), fault_id=draw(st.none() | NAMES))
    if command == "inject_fault":
        kind = draw(st.sampled_from(FAULT_KINDS))
        metric = draw(NAMES) if kind in METRIC_FAULTS and draw(st.booleans()) else None
        magnitude = draw(st.none() | st.floats(-200, 200).filter(lambda each: problem_of(kind, metric, each) is None))
        duration_ms = draw(st.none() | st.integers(1, 86_400_000))
        return built._replace(kind=kind, metric=metric, magnitude=magnitude, duration_ms=duration_ms)
    return built


@given(senseful())
def test_a_command_survives_the_way_through_kafka(command: DeviceCommand) -> None:
    assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"command": "explode"}, "there is no command"),
        ({"command": None}, "command is a text"),
        ({"command_id": ""}, "command_id is a text"),
        ({"scope": "planet"}, "there is no scope"),
        ({"target": None}, "a target is named"),
        ({"scope": "all"}, "a target is named"),
        ({"target": 7}, "target is a text"),
        ({"issued_at": "now"}, "issued_at"),
        ({"issued_at": True}, "issued_at"),
        ({"colour": "red"}, "no field colour"),
        ({"command": "set_interval"}, "interval_ms is from"),
        ({"command": "set_interval", "interval_ms": 9}, "interval_ms is from"),
        ({"command": "set_interval", "interval_ms": 1.5}, "whole milliseconds"),
        ({"command": "inject_fault"}, "names its kind"),
        ({"command": "inject_fault", "kind": "melt"}, "there is no fault"),
        ({"command": "inject_fault", "kind": "late", "metric": "flow"}, "whole device"),
        ({"command": "inject_fault", "kind": "late", "magnitude": "much"}, "finite number"),
        ({"command": "inject_fault", "kind": "late", "duration_ms": 0}, "duration_ms is from"),
    ],
)
def test_a_senseless_command_is_refused_with_its_reason(change: dict[str, Any], part: str) -> None:
    refused = decode_command(orjson.dumps(GOOD | change))
    assert isinstance(refused, CommandRefused)
    assert part in refused.detail


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"7", b"\xff", b'{"magnitude": NaN}'])
def test_what_is_no_json_object_is_refused(value: bytes | None) -> None:
    assert isinstance(decode_command(value), CommandRefused)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail(value: bytes) -> None:
    assert isinstance(decode_command(value), CommandRefused | DeviceCommand)


def test_fields_that_a_command_does_not_use_are_not_written() -> None:
    assert orjson.loads(encode_command(a_command("stop"))) == {
        "command_id": "c1",
        "command": "stop",
        "scope": "all",
        "issued_at": T0,
    }
