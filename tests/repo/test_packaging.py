"""Laws of packaging: our four top-level names are ours, and the wheel holds nothing else."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.repo.tree import PACKAGES, ROOT


@pytest.mark.parametrize("name", PACKAGES)
def test_no_dependency_owns_a_name_of_ours(name: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(name, []))
    assert owners <= {"headrace"}, f"another package installs a top-level {name!r} over ours"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def test_wheel_holds_our_packages_and_their_files_only(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed here; `make` installs it")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    for data in ("kafka.lock.toml", "requirements-java.lock", "tied.py"):
        assert f"app/adapters/embedded/{data}" in names


def test_python_versions_are_the_supported_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] < (3, 14)" in (ROOT / "scripts/find-python").read_text(encoding="utf-8")
