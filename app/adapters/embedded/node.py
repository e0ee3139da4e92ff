"""One Kafka process: started tied to us, waited for, stopped in order or killed."""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from app.adapters.embedded.kraft import HOST, NodePlan
from app.errors import EnvironmentError_

log = logging.getLogger(__name__)

_TIED = Path(__file__).with_name("tied.py")
_POLL_S = 0.02
_TAIL_BYTES = 65_536
_CRASHES = tuple(-number for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL))
# What the JVM and Kafka say, and what it means to a user.
_CAUSES = (
    (re.compile(r"No space left on device|Disk quota exceeded"), "the disk of {folder} is full; make room"),
    (
        re.compile(r"Address already in use"),
        "port {port} or {controller_port} was taken by another program; set embedded.port or embedded.controller_port",
    ),
    (
        re.compile(r"OutOfMemoryError|Could not reserve enough space|Cannot allocate memory|insufficient memory"),
        "there is not enough memory; change embedded.heap_mib",
    ),
    (
        re.compile(r"Inconsistent|InconsistentClusterId|Invalid cluster\.id|doesn't match"),
        "{folder} belongs to another cluster; move it away",
    ),
    (re.compile(r"NoClassDefFoundError|ClassNotFoundException"), "its class path is not complete; start again"),
)


class Node:
    """One broker process. Needs no event loop of its own, so that it outlives the one that started it."""

    def __init__(self, plan: NodePlan) -> None:
        self.plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start_bytes = 0

    @property
    def pid(self) -> int | None:
        """The process id of the JVM; None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    @property
    def crashed(self) -> bool:
        """Whether the JVM itself broke, rather than Kafka ended or somebody killed it."""
        return self.exit_code in _CRASHES

    def spawn(self, command: Sequence[str], *, keep_open_fd: int, tie: str | None = None) -> None:
        """Start the JVM in a session of its own, so that Ctrl-C reaches us alone and we stop it in order.

        It inherits `keep_open_fd`, the lock of the data folder: the lock lasts as long as any JVM does.
        Call from the main thread; on Linux the JVM dies with the thread that started it.
        """
        assert self.pid is None, "the node runs already"
        tie = tie or ("signal" if sys.platform == "linux" else "pipe")
        kafka_log = self.plan.folder / "kafka.log"
        self._log_start_bytes = kafka_log.stat().st_size if kafka_log.exists() else 0
        with (self.plan.folder / "console.log").open("wb") as console:
            self._process = subprocess.Popen(  # noqa: S603 - our own Java with our own arguments
                [sys.executable, "-I", "-S", _TIED, tie, str(os.getpid()), *command],
                stdin=subprocess.PIPE if tie == "pipe" else subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(keep_open_fd,),
            )

    async def wait_listening(self, timeout_s: float) -> None:
        """Return when the broker takes connections. Raises `EnvironmentError_` with the cause if it ends first."""
        give_up = time.monotonic() + timeout_s
        while self.pid is not None:
            try:
                _, writer = await asyncio.open_connection(HOST, self.plan.port)
            except OSError:
                if time.monotonic() > give_up:
                    raise EnvironmentError_(
                        f"Kafka is not ready after {timeout_s:g} s (embedded.start_timeout_s); "
                        f"its log is {self.plan.folder / 'kafka.log'}."
                    ) from None
                await asyncio.sleep(_POLL_S)
            else:
                writer.close()
                await writer.wait_closed()
                return
        raise EnvironmentError_(f"Kafka did not start: {self._cause()}.", exit_code=self.exit_code)

    def terminate(self) -> None:
        """Ask for an orderly stop."""
        if self.pid is not None:
            assert self._process is not None, "a process id means a process"
            self._process.send_signal(signal.SIGTERM)

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the JVM ended by itself within the time; after that it is killed."""
        give_up = time.monotonic() + timeout_s
        try:
            while self.pid is not None:
                if time.monotonic() > give_up:
                    log.warning(
                        "Kafka did not stop in %g s and is killed; it recovers at the next start",
                        timeout_s,
                        extra={"action": "kafka_killed", "node_id": self.plan.node_id},
                    )
                    return False
                await asyncio.sleep(_POLL_S)
            return True
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def _cause(self) -> str:
        """Why the JVM ended, in words, from the ends of its two logs."""
        texts = [_tail(self.plan.folder / "console.log"), _tail(self.plan.folder / "kafka.log", self._log_start_bytes)]
        facts = {"folder": self.plan.folder, "port": self.plan.port, "controller_port": self.plan.controller_port}
        for pattern, meaning in _CAUSES:
            if any(pattern.search(text) for text in texts):
                return meaning.format(**facts)
        said = [line for text in texts for line in text.splitlines() if re.search(r"ERROR|FATAL|Error|Exception", line)]
        last = f": {said[-1].strip()[:200]}" if said else ""
        return f"it ended with code {self.exit_code}{last} (see {self.plan.folder / 'kafka.log'})"


def _tail(path: Path, start_bytes: int = 0) -> str:
    """The last lines of a log, of this run only: `start_bytes` is its size before, less when it was rolled."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(0, start_bytes if start_bytes <= size else 0, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
