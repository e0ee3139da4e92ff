"""The peers' own environments, made at need under the user's cache folder, outside the project's."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jgo import EnvironmentBuilder
from jgo.maven import MavenContext

from app.adapters.embedded.cache import cache_folder as embedded_cache
from app.adapters.embedded.java import Java, find_java
from app.errors import EnvironmentError_

PEERS_FOLDER = Path(__file__).parent / "peers"
STREAMS_FOLDER = PEERS_FOLDER / "streams"
INSTALL_TIMEOUT_S = 600
KAFKA_VERSION = "4.1.0"
JACKSON_VERSION = "2.19.2"

PYTHON_PEERS: dict[str, tuple[str, ...]] = {
    "confluent": ("confluent-kafka==2.16.1",),
    "aiokafka": ("aiokafka==0.14.0", "uvloop==0.23.0"),
    "quix": ("quixstreams==3.28.1",),
    "faust": ("faust-streaming==0.15.3", "rocksdict==0.3.29", "orjson==3.13.0", "uvloop==0.23.0"),
    "restate": ("restate-sdk==1.3.0", "hypercorn==0.18.0", "uvloop==0.23.0"),
    "dbos": ("dbos==3.4.0", "uvloop==0.23.0"),
}
RESTATE_SERVER = "@restatedev/restate-server@1.7.12"
JVM_PEERS: dict[str, str] = {
    "kafka-tools": f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
    "kafka-streams": (
        f"org.apache.kafka:kafka-streams:{KAFKA_VERSION}"
        f"+com.fasterxml.jackson.core:jackson-databind:{JACKSON_VERSION}+org.slf4j:slf4j-nop:1.7.36"
    ),
}

Say = Callable[[str], None]


class PeerMissing(Exception):
    """A peer cannot be run here; the text says why. The benchmark goes on without it."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a peer is started: its arguments and the versions of what it is made of."""

    argv: tuple[str, ...]
    versions: str


def cache_folder() -> Path:
    """Where peers live: `$XDG_CACHE_HOME/headrace/bench-peers`, by default under `~/.cache`."""
    return embedded_cache(None) / "bench-peers"


def python_peer(name: str, script: str, say: Say) -> Command:
    """The interpreter of the peer's own environment and its script, installed first when it is not there."""
    requirements = PYTHON_PEERS[name]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = hashlib.sha256(json.dumps(requirements).encode()).hexdigest()[:8]
    folder = cache_folder() / f"{name}-py{version}-{key}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "installed").exists():
        say(f"installing {', '.join(requirements)}")
        started = time.monotonic()
        _install(folder, python, requirements)
        (folder / "installed").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        say(f"installed {name} in {time.monotonic() - started:.0f} s")
    return Command((str(python), str(PEERS_FOLDER / script)), " ".join(requirements))


def _install(folder: Path, python: Path, requirements: tuple[str, ...]) -> None:
    """Make the environment by uv where there is one, else by the standard library's venv and pip."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv")
    base = getattr(sys, "_base_executable", sys.executable)
    if uv:
        _run([uv, "venv", "--quiet", "--python", base, str(folder)])
        _run([uv, "pip", "install", "--quiet", "--python", str(python), *requirements])
    else:
        _run([base, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissing(f"{argv[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise PeerMissing(f"could not be installed: {last}")


def restate_server(say: Say) -> Path:
    """The server's program out of its npm package, fetched first when it is not there; no script of a package runs."""
    key = hashlib.sha256(RESTATE_SERVER.encode()).hexdigest()[:8]
    folder = cache_folder() / f"restate-server-{key}"
    if not (folder / "installed").exists():
        npm = shutil.which("npm")
        if npm is None:
            raise PeerMissing("its server comes as an npm package, and npm was not found")
        say(f"installing {RESTATE_SERVER}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run([npm, "install", "--silent", "--ignore-scripts", "--prefix", str(folder), RESTATE_SERVER])
        (folder / "installed").touch()
    found = sorted(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not found:
        raise PeerMissing("npm has no server program for this kind of machine")
    return found[0]


# ---- the JVM ----


def java_program() -> Java:
    """The Java that the embedded Kafka runs on: JAVA_HOME, the path, or one that is installed for it."""
    try:
        return find_java(None, embedded_cache(None))
    except EnvironmentError_ as error:
        raise PeerMissing(str(error)) from error


def java_compiler(java: Java) -> str | None:
    """`javac` beside that Java, of JAVA_HOME, or of the path."""
    home = os.environ.get("JAVA_HOME")
    folders = [str(java.program.parent), *([str(Path(home) / "bin")] if home else [])]
    return shutil.which("javac", path=os.pathsep.join(folders)) or shutil.which("javac")


def class_path(name: str, say: Say) -> str:
    """Class path of a JVM peer, its jars fetched from Maven Central first when they are not there."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    say(f"resolving {JVM_PEERS[name].replace('+', ', ')}")
    try:
        context = MavenContext(repo_cache=folder / "m2", timeout=60)
        environment = EnvironmentBuilder(context=context, cache_dir=folder / "jvm").from_endpoint(JVM_PEERS[name])
    except Exception as error:
        raise PeerMissing(f"the jars could not be fetched: {error}") from error
    jars = sorted(str(jar) for jar in environment.path.rglob("*.jar"))
    if not jars:
        raise PeerMissing(f"no jar was found for {JVM_PEERS[name]}")
    return os.pathsep.join(jars)


def producer_performance(say: Say) -> Command:
    """Kafka's own kafka-producer-perf-test."""
    java = java_program()
    jars = class_path("kafka-tools", say)
    main_class = "org.apache.kafka.tools.ProducerPerformance"
    return Command((str(java.program), "-cp", jars, main_class), f"kafka-tools {KAFKA_VERSION}, {_first_line(java)}")


def kafka_streams(main_class: str, say: Say) -> Command:
    """A Kafka Streams application out of `peers/streams`, compiled by the JDK's own compiler."""
    java = java_program()
    javac = java_compiler(java)
    if javac is None:
        raise PeerMissing("its source needs a JDK to compile it; only a Java runtime was found")
    jars = class_path("kafka-streams", say)
    classes = _compiled(javac, jars, say)
    return Command(
        (str(java.program), "-cp", os.pathsep.join((str(classes), jars)), main_class),
        f"kafka-streams {KAFKA_VERSION}, jackson {JACKSON_VERSION}, {_first_line(java)}",
    )


def _compiled(javac: str, jars: str, say: Say) -> Path:
    sources = sorted(STREAMS_FOLDER.glob("*.java"))
    text = b"".join(source.read_bytes() for source in sources) + jars.encode()
    folder = cache_folder() / f"classes-{hashlib.sha256(text).hexdigest()[:12]}"
    if not (folder / "compiled").exists():
        say("compiling the Kafka Streams applications")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run([javac, "--release", "17", "-cp", jars, "-d", str(folder), *map(str, sources)])
        (folder / "compiled").touch()
    return folder


def _first_line(java: Java) -> str:
    return java.banner.splitlines()[0].replace('"', "")
