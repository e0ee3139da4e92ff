"""Laws of the locks: every dependency pinned with digests, and no word of where it comes from."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.repo.tree import ROOT, files, text_of

PYTHON_LOCKS = [path for path in files() if re.fullmatch(r"requirements.*\.lock", path.name)]
JARS = ROOT / "app/adapters/embedded/kafka.lock.toml"
LOCATION = re.compile(r"://|--(?:extra-)?index-url|--find-links|--trusted-host| @ ")
# Hosts of package registries; parts are joined here so that this file does not name one.
REGISTRIES = re.compile(
    "|".join(("py" + r"pi\.org", "python" + "hosted", "maven" + r"\.(?:apache\.)?org", "repo" + "1\\."))
)


@pytest.mark.parametrize("path", [*PYTHON_LOCKS, JARS], ids=lambda path: path.name)
def test_lock_names_no_place(path: Path) -> None:
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if LOCATION.search(line)] == []


@pytest.mark.parametrize("path", PYTHON_LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_an_exact_version_and_a_hash(path: Path) -> None:
    entries = re.split(r"^(?=\w)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    loose = [
        entry
        for entry in entries
        if entry.strip() and not re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+.*\\\n\s+--hash=sha256:", entry)
    ]
    assert loose == []


def test_every_direct_dependency_is_locked() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    locked = {
        name.lower()
        for name in re.findall(r"^([\w.-]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    }
    wanted = {_name(one) for one in document["project"]["dependencies"]}
    assert wanted - locked == set(), "run `make lock`"
    locked_dev = {
        name.lower()
        for name in re.findall(
            r"^([\w.-]+)", (ROOT / "requirements-dev.lock").read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert {_name(one) for one in document["dependency-groups"]["dev"]} - locked_dev == set(), "run `make lock`"


def test_runtime_and_development_locks_agree() -> None:
    runtime, development = (
        dict(re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==(\S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    )
    assert {name: version for name, version in runtime.items() if development.get(name) != version} == {}


def test_every_jar_has_a_size_and_a_digest() -> None:
    jars = tomllib.loads(JARS.read_text(encoding="utf-8"))["jar"]
    assert len({(jar["group"], jar["artifact"]) for jar in jars}) == len(jars)
    assert all(jar["size_bytes"] > 0 and re.fullmatch(r"[0-9a-f]{64}", jar["sha256"]) for jar in jars)


def test_no_file_names_a_registry() -> None:
    named = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files()
        if (text := text_of(path)) is not None and (match := REGISTRIES.search(text))
    ]
    assert named == []


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()
