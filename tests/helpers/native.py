"""The services of docker-compose.yml as native processes: their own commands, free ports, temporary folders."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.adapters.embedded import tied
from app.adapters.embedded.cache import cache_folder
from app.adapters.embedded.jars import ensure_jars
from app.adapters.embedded.java import find_java
from tests.helpers.compose import entrypoint, is_ours, seconds
from tests.helpers.databases import free_port
from tests.helpers.processes import until

# `headrace` and `python` of this environment come first, as those of the image do in the image.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


class Service:
    """One service: its compose definition, what is replaced in it, and its process."""

    def __init__(self, name: str, definition: Mapping[str, Any], folder: Path, replaced: Mapping[str, str]) -> None:
        """`replaced` maps texts of the definition (`kafka:9092`) to what they are here (`127.0.0.1:40123`)."""
        self.name = name
        self.definition = definition
        self.folder = folder
        self._replaced = replaced
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def here(self, text: str) -> str:
        """A text of the definition as it is meant on this machine."""
        # In one pass, as a free port may hold the digits of another.
        longest_first = sorted(self._replaced, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda match: self._replaced[match[0]], text)

    @property
    def command(self) -> list[str]:
        before = entrypoint() if is_ours(self.definition) else [self.name]
        return [*before, *(self.here(part) for part in self.definition["command"])]

    @property
    def environment(self) -> dict[str, str]:
        """What the container would have: nothing of the caller's, but where programs are found."""
        given = {key: self.here(value) for key, value in self.definition.get("environment", {}).items()}
        return {"PATH": PATH, "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **given}

    @property
    def log(self) -> str:
        return self._log_file.read_text("utf-8", errors="replace")

    @property
    def _log_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def start(self, command: Sequence[str] | None = None) -> None:
        """Start it in its folder; on Linux it dies with us even if we are killed."""
        program, *arguments = command or self.command
        found = shutil.which(program, path=PATH)
        assert found, f"{program} is not installed"
        tie = [sys.executable, "-I", "-S", tied.__file__, "signal", str(os.getpid())]
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*(tie if sys.platform == "linux" else []), found, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def probe(self) -> subprocess.CompletedProcess[str]:
        """Run the health check once, as it is written."""
        kind, *command = (self.here(part) for part in self.definition["healthcheck"]["test"])
        assert kind == "CMD"
        found = shutil.which(command[0], path=PATH)
        assert found, f"{command[0]} is not installed"
        timeout_s = 4 * seconds(self.definition["healthcheck"]["timeout"])  # this machine runs all of them at once
        return subprocess.run(
            [found, *command[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def wait_healthy(self, deadline_s: float = 90.0) -> None:
        """Probe until the answer is good; a process that ends has failed."""
        assert self.process is not None
        last: list[subprocess.CompletedProcess[str]] = []

        def look() -> bool:
            if self.process is not None and self.process.poll() is not None:
                return True
            last[:] = [self.probe()]
            return last[0].returncode == 0

        try:
            until(look, f"{self.name} is healthy", deadline_s)
        except AssertionError:
            pytest.fail(f"{self.name} is not healthy: {last}\n{self.log[-4000:]}", pytrace=False)
        if self.process.poll() is not None:
            pytest.fail(f"{self.name} ended with {self.process.returncode}:\n{self.log[-4000:]}", pytrace=False)

    def memory_bytes(self) -> int:
        assert self.process is not None
        found: int = psutil.Process(self.process.pid).memory_info().rss
        return found

    def stop(self) -> tuple[int, float]:
        """Send the stop signal; the exit code and the seconds it took. Whatever is left after the grace is killed."""
        assert self.process is not None
        family = _family(self.process.pid)
        started_s = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(seconds(self.definition["stop_grace_period"]))
        finally:
            took_s = time.monotonic() - started_s
            left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
            self.kill(left)
        assert not left, f"{self.name} left {left}"
        return code, took_s

    def kill(self, family: Sequence[psutil.Process] = ()) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


class Kafka(Service):
    """The broker of the file: its environment, made into settings by the program that the image does it with."""

    def __init__(self, definition: Mapping[str, Any], folder: Path, replaced: Mapping[str, str]) -> None:
        cache = cache_folder(None)
        self._java = str(find_java(None, cache).program)
        self._class_path = os.pathsep.join(str(jar) for jar in ensure_jars(cache))
        super().__init__("kafka", definition, folder, replaced)

    def start(self, command: Sequence[str] | None = None) -> None:
        """Set up as the image does, then run the broker."""
        folders = {name: self.folder / name for name in ("default", "mounted", "final")}
        for folder in folders.values():
            folder.mkdir()
        options = [part for name, folder in folders.items() for part in (f"--{name}-configs-dir", str(folder))]
        done = subprocess.run(
            [self._java, "-cp", self._class_path, "kafka.docker.KafkaDockerWrapper", "setup", *options],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        heap = self.environment["KAFKA_HEAP_OPTS"].split()
        properties = str(folders["final"] / "server.properties")
        super().start(command or [self._java, *heap, "-cp", self._class_path, "kafka.Kafka", properties])


class Ports:
    """A free port for each name, the same whenever it is asked for."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> str:
        with self._lock:
            if name not in self._taken:
                port = str(free_port())
                while port in self._taken.values():
                    port = str(free_port())
                self._taken[name] = port
            return self._taken[name]
