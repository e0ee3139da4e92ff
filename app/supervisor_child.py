"""One child process: its command, its announcements, its end."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

import app
from app.http.view import SUPERVISOR_URL
from app.lifecycle import ANNOUNCE_FD, BEATS_FD, SUPERVISOR_PID

log = logging.getLogger(__name__)

Relay = Callable[[str, str], None]
# Role, pid, and the end of the pipe at which the beats come in, which is the taker's.
Watch = Callable[[str, int, int], None]


def worker_command(role: str) -> list[str]:
    """The command of a role's process, the same that a person would type."""
    return [sys.executable, "-m", "app", "worker", "--roles", role]


def environment(inherited: Mapping[str, str], supervisor_url: str) -> dict[str, str]:
    """The child's environment; our own code is found first, whatever lies in the working folder."""
    root = str(Path(app.__file__).resolve().parent.parent)
    paths = [root, *(path for path in inherited.get("PYTHONPATH", "").split(os.pathsep) if path and path != root)]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        SUPERVISOR_PID: str(os.getpid()),
        SUPERVISOR_URL: supervisor_url,
    }


class Child:
    """A running child; made by `start`, gone when `wait` returns."""

    def __init__(self, role: str, process: Process, started_s: float) -> None:
        self.role = role
        self.process = process
        self.pid: int = process.pid
        self.started_s = started_s
        self.url: str | None = None
        self.ledger: dict[str, float] | None = None
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        role: str,
        command: Sequence[str],
        env: Mapping[str, str],
        started_s: float,
        relay: Relay | None,
        watch: Watch | None = None,
    ) -> "Child":
        """Start it in a session of its own, so that the terminal's Ctrl-C reaches only the supervisor.

        It beats only where there is a `watch` to hear it.
        """
        reading, writing = os.pipe()
        hearing, beating = (-1, -1) if watch is None else os.pipe()
        beats = {} if watch is None else {BEATS_FD: str(beating)}
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**env, ANNOUNCE_FD: str(writing), **beats},
                pass_fds=(writing,) if watch is None else (writing, beating),
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if relay else None,
                stderr=asyncio.subprocess.STDOUT if relay else None,
            )
        except BaseException:
            _close(reading, hearing)
            raise
        finally:
            _close(writing, beating)
        if watch is not None:
            watch(role, process.pid, hearing)
        child = cls(role, process, started_s)
        child._readers.append(asyncio.create_task(child._hear(reading), name=f"announcements of {role}"))
        if relay and process.stdout:
            child._readers.append(asyncio.create_task(_relay(role, process.stdout, relay), name=f"output of {role}"))
        return child

    async def wait(self) -> int:
        """The exit code, after the last announcement and line of output were read."""
        code = await self.process.wait()
        # Something the child left behind may hold the pipe open: its words are not waited for.
        _, late = await asyncio.wait(self._readers, timeout=1.0)
        for task in late:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        return code

    def signal(self, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(which)

    async def _hear(self, fd: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        try:
            while line := await reader.readline():
                self._take(line)
        finally:
            transport.close()

    def _take(self, line: bytes) -> None:
        try:
            message: dict[str, Any] = orjson.loads(line)
        except orjson.JSONDecodeError:
            log.exception("a child announced what is no JSON", extra={"action": "announce_invalid", "role": self.role})
            return
        self.url = message.get("health_url", self.url)
        self.ledger = message.get("ledger", self.ledger)


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


async def _relay(role: str, stream: asyncio.StreamReader, relay: Relay) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the reader's limit: the rest of it follows as another line
            continue
        if not line:
            return
        relay(role, line.decode(errors="replace").rstrip("\n"))
