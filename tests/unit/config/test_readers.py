"""Law of the settings: each key has a reader, or it promises what nothing does."""

import ast
from pathlib import Path

import pytest

from config import tree
from config.settings import Settings

ROOT = Path(__file__).parents[3]


def _names_read() -> frozenset[str]:
    """Every attribute that the code outside `config` reads."""
    found: set[str] = set()
    for room in ("app", "agents", "tables"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
    return frozenset(found)


NAMES_READ = _names_read()


@pytest.mark.parametrize("key", [leaf.dotted for leaf in tree.leaves(Settings)])
def test_each_key_is_read_somewhere(key: str) -> None:
    assert key.rpartition(".")[2] in NAMES_READ
