"""The examples of docs/devices.md are what the program reads."""

from pathlib import Path

import orjson
import yaml

from app.domain.command import DeviceCommand, read_command
from app.domain.faults import FAULT_KINDS
from config.mapping import ReplayMapping

PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text("utf-8")
CODE = [line[4:] for line in PAGE.splitlines() if line.startswith("    ")]


def test_the_commands_on_the_page_are_commands() -> None:
    examples = [line for line in CODE if line.startswith("{")]
    assert len(examples) == 4
    for line in examples:
        assert isinstance(read_command(orjson.loads(line)), DeviceCommand)


def test_the_mapping_on_the_page_is_a_mapping() -> None:
    begin = CODE.index('delimiter: ";"')
    mapping = ReplayMapping.model_validate(yaml.safe_load("\n".join(CODE[begin:])))
    assert mapping.time.zone == "Europe/Berlin"
    assert mapping.labels.windows is not None


def test_every_fault_is_on_the_page() -> None:
    for kind in FAULT_KINDS:
        assert f"| `{kind}` |" in PAGE
