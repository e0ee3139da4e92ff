"""Every definition in docs/workflows.md and in the README is valid."""

import re
from pathlib import Path

import pytest

from app.adapters.tasks.registry import Registry
from app.definitions.reading import read_definition

ROOT = Path(__file__).parents[4]
BLOCKS = [
    block
    for page in ("docs/workflows.md", "README.md")
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_of_the_page_is_valid(block: str) -> None:
    text = f"id: example\n{block}" if block.startswith("tasks:") else block
    assert [problem.at("page") for problem in read_definition(text, Registry(plug_ins=())).problems] == []


def test_the_page_has_examples() -> None:
    assert len(BLOCKS) >= 10
