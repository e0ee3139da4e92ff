"""Laws of layout: where packages may be, how modules open, and what a committed file may not say."""

import ast
import re
import subprocess
import sys

from tests.repo.tree import PACKAGES, ROOT, files, python_files, text_of

# Built from parts, so that this file does not say them itself.
MACHINE_PATHS = re.compile("|".join(f"(?<![\\w.])/{name}/" for name in ("work", "root", "home/[a-z]+", "Users")))
UNFINISHED = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error")) + r")\b")


def test_no_package_of_ours_has_a_twin_deeper_down() -> None:
    twins = [
        str(path.relative_to(ROOT))
        for path in python_files()
        for part in path.relative_to(ROOT).parent.parts[1:]
        if part in PACKAGES and not path.relative_to(ROOT).is_relative_to("tests")
    ]
    assert twins == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files()
        if (source := path.read_text(encoding="utf-8")).strip() and not ast.get_docstring(ast.parse(source))
    ]
    assert silent == []


def test_no_file_names_a_place_of_one_machine() -> None:
    assert _lines_matching(MACHINE_PATHS) == []


def test_nothing_is_left_unfinished() -> None:
    assert _lines_matching(UNFINISHED, suffix=".py") == []


def test_no_exception_is_swallowed() -> None:
    swallowed = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(one, ast.Pass) for one in node.body)
    ]
    assert swallowed == []


def test_domain_and_agents_load_no_vendor() -> None:
    code = (
        "import sys, pkgutil, importlib, app.domain, agents\n"
        "for package in (app.domain, agents):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "print([name for name in ('faust', 'aiokafka', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def _lines_matching(pattern: re.Pattern[str], suffix: str = "") -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files()
        if path.name.endswith(suffix) and (text := text_of(path)) is not None
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
