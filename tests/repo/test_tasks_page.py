"""docs/tasks.md tells of every task type and failure what the code says."""

import ast
import re

import pytest

from app.adapters.tasks.manual import PAGE, page
from app.adapters.tasks.registry import BUILT_IN
from tests.repo.tree import ROOT

TEXT = (ROOT / PAGE).read_text("utf-8")
TYPES = ROOT / "app/adapters/tasks"


def raised() -> set[str]:
    """The names that the built-in types give their failures, read from their source."""
    names: set[str] = set()
    for path in [*(TYPES / "types").glob("*.py"), TYPES / "secrets.py", TYPES / "registry.py", TYPES / "protocol.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TaskFailed":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    names.add(str(first.value))
            elif isinstance(node, ast.Constant) and re.fullmatch(r"Sql[A-Z][a-z]+", str(node.value)):
                names.add(str(node.value))
    return names


def test_the_reference_is_that_of_the_models() -> None:
    assert page(TEXT) == TEXT, "run `python -m app.adapters.tasks.manual`"


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_type_is_on_the_page(name: str) -> None:
    assert f"\n## {name}\n" in TEXT


def test_the_failures_on_the_page_are_those_that_are_raised() -> None:
    table = TEXT.partition("## Failures")[2].partition("Of any type")[0]
    told = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert told - raised() <= {"RecordRefused", "KafkaUnavailable", "ExpressionError"}
    assert raised() - told == set()


def test_the_example_plug_in_is_the_one_that_is_tested() -> None:
    example = TEXT.partition("# acme_tasks.py\n")[2].partition("```")[0]
    tested = (ROOT / "tests/unit/workflow/tasks/test_registry.py").read_text("utf-8")
    for line in example.splitlines():
        assert line.partition("  #")[0].strip() in tested
