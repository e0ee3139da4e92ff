"""docs/cli.md tells of every command what the command itself tells."""

import pytest

from app.cli import EXIT_CODES
from app.cli.manual import MARK, PAGE, commands, page
from tests.repo.tree import ROOT

TEXT = (ROOT / PAGE).read_text("utf-8")
COMMANDS = dict(commands())


def test_the_reference_is_that_of_the_commands() -> None:
    assert page(TEXT) == TEXT, "run `python -m app.cli.manual`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_and_says_what_it_does(name: str) -> None:
    assert f"### `{name}" in TEXT.partition(MARK)[2]
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.rsplit(" ", 1)[-1] in {"list", "show", "check"}])
def test_every_read_answers_programs(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


def test_every_exit_code_is_on_the_page() -> None:
    for code in ("0", "1", "2", "3", "4", "130"):
        assert f"| {code} |" in TEXT
        assert f"{code} " in EXIT_CODES
