"""Laws of finding a Java: the setting, JAVA_HOME, PATH; new enough, or one clear sentence."""

from pathlib import Path

import pytest

from app.adapters.embedded.java import find_java, probe
from app.errors import EnvironmentError_


def a_java(home: Path, version: str) -> Path:
    """A folder with a `bin/java` that says this version, as real ones do: on standard error."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("said", "version"), [("17.0.15", 17), ("25", 25), ("21-ea", 21), ("1.8.0_392", 8)])
def test_version_is_read_from_the_banner(tmp_path: Path, said: str, version: int) -> None:
    java = probe(a_java(tmp_path, said))
    assert java is not None
    assert java.version == version


def test_what_is_no_java_is_passed_over(tmp_path: Path) -> None:
    stub = tmp_path / "bin" / "java"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho 'No Java runtime present' >&2; exit 1\n")
    stub.chmod(0o755)
    assert probe(stub) is None
    assert probe(tmp_path / "absent") is None


def test_java_home_comes_before_path(tmp_path: Path) -> None:
    chosen = a_java(tmp_path / "home", "21.0.1")
    other = a_java(tmp_path / "path", "25.0.1")
    environ = {"JAVA_HOME": str(tmp_path / "home"), "PATH": str(other.parent)}
    assert find_java(None, tmp_path, environ).program == chosen


def test_too_old_java_home_gives_way_to_path(tmp_path: Path) -> None:
    a_java(tmp_path / "home", "11.0.2")
    newer = a_java(tmp_path / "path", "17.0.1")
    environ = {"JAVA_HOME": str(tmp_path / "home"), "PATH": f"/nowhere:{newer.parent}"}
    assert find_java(None, tmp_path, environ).program == newer


def test_setting_comes_before_all(tmp_path: Path) -> None:
    chosen = a_java(tmp_path / "set", "17.0.1")
    a_java(tmp_path / "home", "21.0.1")
    assert find_java(str(tmp_path / "set"), tmp_path, {"JAVA_HOME": str(tmp_path / "home")}).program == chosen


def test_set_java_that_is_too_old_is_one_sentence(tmp_path: Path) -> None:
    a_java(tmp_path, "11.0.2")
    with pytest.raises(EnvironmentError_, match=r"java_home is Java 11, but Kafka needs 17 or newer"):
        find_java(str(tmp_path), tmp_path, {})


def test_set_java_that_is_absent_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError_, match="no Java in it that runs"):
        find_java(str(tmp_path), tmp_path, {})
