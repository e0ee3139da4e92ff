"""The committed schemas are those of the code, and real records hold to them."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from jsonschema import Draft202012Validator

from app.codec import encode_command, encode_metadata, encode_sample, encode_truth
from app.domain.command import COMMANDS, CommandRefused, read_command
from app.domain.device import TYPES
from app.domain.faults import FAULT_KINDS, FaultPlan
from app.domain.reading import Limits, Sample, validate
from app.domain.replay import Interval, Recorded, Survey, expanded
from config.asyncapi import FOLDER, document, rendered_document
from config.device import DeviceSettings
from config.schemas import SCHEMAS, rendered
from config.topics import ALL_TOPICS
from tests.helpers.fleet import T0, a_command, a_started_fleet, an_injection

DOCS = Path(__file__).parents[2] / "docs"


def validator(name: str) -> Draft202012Validator:
    Draft202012Validator.check_schema(SCHEMAS[name])
    return Draft202012Validator(SCHEMAS[name])


def assert_exact(name: str, value: bytes) -> None:
    """Valid, and with exactly the fields that the schema has."""
    decoded = orjson.loads(value)
    validator(name).validate(decoded)
    assert set(decoded) == set(SCHEMAS[name]["properties"])


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_committed_schema_is_the_generated_one(name: str) -> None:
    path = DOCS / FOLDER / f"{name}.json"
    assert path.read_text("utf-8") == rendered(SCHEMAS[name]), "run `python -m config.asyncapi docs`"


def test_the_committed_asyncapi_document_is_the_generated_one() -> None:
    text = (DOCS / "asyncapi.yaml").read_text("utf-8")
    assert text == rendered_document(DOCS / FOLDER), "run `python -m config.asyncapi docs`"


def test_every_committed_schema_is_a_schema_and_belongs_to_a_topic() -> None:
    for path in (DOCS / FOLDER).glob("*.json"):
        Draft202012Validator.check_schema(orjson.loads(path.read_bytes()))
        # `workflow` is that of a file people write, which is part of a topic's value.
        assert path.stem in {*(topic.schema for topic in ALL_TOPICS), "workflow"}


def test_every_reference_of_the_document_leads_somewhere() -> None:
    tree = yaml.safe_load((DOCS / "asyncapi.yaml").read_text("utf-8"))

    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                lead(node["$ref"])
            for inner in node.values():
                check(inner)
        elif isinstance(node, list):
            for inner in node:
                check(inner)

    def lead(reference: str) -> None:
        if reference.startswith("#/"):
            found = tree
            for part in reference[2:].split("/"):
                found = found[part]
        else:
            assert (DOCS / reference).is_file()

    check(tree)
    assert tree["asyncapi"] == "3.0.0"


def test_the_document_has_a_channel_for_each_topic_with_a_schema() -> None:
    described = document({"telemetry": {}, "truth": {}})
    assert set(described["channels"]) == {"device.telemetry", "device.truth"}


def test_samples_of_a_faulty_fleet_hold_to_the_schema_and_to_the_transform_s_own_test() -> None:
    fleet = a_started_fleet(plan=FaultPlan(7, 20_000, FAULT_KINDS, 2_000, 8_000, 1000))
    qualities = set()
    for due in fleet.due(T0 + 60_000):
        value = encode_sample(due.sample)
        assert_exact("telemetry", value)
        read = validate(orjson.loads(value), due.sample.device_id.encode(), Limits(), T0 + 60_000)
        assert isinstance(read, Sample), read
        assert read == due.sample
        qualities |= {reading.quality for reading in due.sample.metrics}
    assert qualities == {"GOOD", "UNCERTAIN", "BAD"}
    for fault in fleet.take_truth():
        assert_exact("truth", encode_truth(fault))
    for metadata in fleet.metadata():
        assert_exact("device-metadata", encode_metadata(metadata))


def test_records_of_a_replay_hold_to_the_schema() -> None:
    survey = Survey()
    survey.add(Recorded(T0, "d", (), frozenset({"anomaly"})))
    survey.end_file()
    for metadata in survey.metadata({"site": "s"}, T0):
        assert_exact("device-metadata", encode_metadata(metadata))
    for _, fault in expanded([*survey.intervals(), Interval("d", "x", "m", T0, T0 + 1)], 0):
        assert_exact("truth", encode_truth(fault))


@pytest.mark.parametrize(
    "command",
    [
        a_command("start"),
        a_command("stop", "device", "press-0001"),
        a_command("set_interval", "line", "plant-a-line-1", interval_ms=100),
        *(an_injection(kind, "press-0001", duration_ms=1000) for kind in FAULT_KINDS),
        a_command("clear_fault", kind="late"),
        a_command("clear_fault", fault_id="c1-press-0001"),
    ],
)
def test_commands_hold_to_the_schema(command: Any) -> None:
    validator("device-command").validate(orjson.loads(encode_command(command)))


@pytest.mark.parametrize(
    "change",
    [
        {"command": "explode"},
        {"scope": "all"},
        {"target": None},
        {"issued_at": "now"},
        {"colour": "red"},
        {"command": "set_interval"},
        {"command": "set_interval", "interval_ms": 1},
        {"command": "inject_fault"},
        {"command": "inject_fault", "kind": "melt"},
    ],
)
def test_the_schema_refuses_the_commands_that_the_fleet_refuses(change: dict[str, Any]) -> None:
    wrong = orjson.loads(encode_command(a_command("stop", "device", "press-0001"))) | change
    assert not validator("device-command").is_valid(wrong)
    assert isinstance(read_command(wrong), CommandRefused)


def test_lists_that_are_written_twice_agree() -> None:
    properties = SCHEMAS["device-command"]["properties"]
    assert tuple(properties["command"]["enum"]) == COMMANDS
    assert set(properties["kind"]["enum"]) == {*FAULT_KINDS, None}
    assert set(SCHEMAS["device-metadata"]["properties"]["device_type"]["enum"]) == {*TYPES, "recorded"}
    assert set(DeviceSettings().mix) == set(TYPES)
    assert set(DeviceSettings().fault_kinds) == set(FAULT_KINDS)
