"""Laws of size: functions of at most 70 lines, files of at most 500."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.repo.tree import ROOT, python_files

FUNCTION_LINES = 70
FILE_LINES = 500


def _long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"


def test_functions_are_at_most_70_lines() -> None:
    assert [found for path in python_files() for found in _long_functions(path)] == []


def test_files_are_at_most_500_lines() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {name: size for name, size in sizes.items() if size > FILE_LINES} == {}
