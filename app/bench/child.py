"""One side as a process of its own: started with a specification, heard line by line, always ended.

A side gets the path of a JSON file as its last argument and prints one JSON object a line:
`{"event": "ready"}` when it is about to work, then, if it ends by itself, `{"event": "result", …}`.
Other lines are its own talk and are kept for the reason of a failure.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from app.adapters.embedded import tied

STOP_TIMEOUT_S = 6.0
LINE_LIMIT_BYTES = 1 << 20


class SideFailed(Exception):
    """A side ended or stalled before its work was done; the text holds its last lines."""


@dataclass(slots=True)
class Usage:
    """What a process took: CPU seconds (user and system, its children included) and its largest resident size."""

    cpu_s: float = 0.0
    rss_mb: float = 0.0


@dataclass(slots=True)
class Child:
    """A running side; make it with `start` and leave it to `stop`."""

    process: asyncio.subprocess.Process
    started_s: float
    usage: Usage = field(default_factory=Usage)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    heard: deque[str] = field(default_factory=lambda: deque(maxlen=30))
    ears: list[asyncio.Task[None]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def sample_usage(self) -> Usage:
        """Read the CPU time and memory so far; call it while the process lives."""
        # The process may end between two looks; the last one stands.
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            cpu_s, rss = 0.0, 0
            for one in (process, *process.children(recursive=True)):
                times = one.cpu_times()
                cpu_s += times.user + times.system
                rss += one.memory_info().rss
            self.usage.cpu_s = max(self.usage.cpu_s, cpu_s)
            self.usage.rss_mb = max(self.usage.rss_mb, rss / 1e6)
        return self.usage

    def check(self) -> None:
        """Raise `SideFailed` when the process has ended with an error."""
        code = self.process.returncode
        if code:
            raise SideFailed(f"ended with code {code}: {' | '.join(list(self.heard)[-6:]) or 'no output'}")

    async def until(
        self, event: str, timeout_s: float, waited: Callable[[float], None] = lambda _: None
    ) -> dict[str, Any]:
        """The named event's object, once it was printed; `waited` hears of the seconds so far."""
        deadline = time.monotonic() + timeout_s
        while event not in self.events:
            self.check()
            if self.process.returncode is not None and all(ear.done() for ear in self.ears):
                raise SideFailed(f"ended without {event}: {' | '.join(list(self.heard)[-6:]) or 'no output'}")
            rest = deadline - time.monotonic()
            if rest <= 0:
                raise SideFailed(f"no {event} in {timeout_s:.0f} s: {' | '.join(list(self.heard)[-6:]) or 'no output'}")
            self.sample_usage()
            waited(timeout_s - rest)
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(rest, 0.25)):
                    await self.changed.wait()
        return self.events[event]

    async def ended(self, timeout_s: float) -> None:
        """Return when the process has ended well and all it said was heard; raise `SideFailed` otherwise."""
        deadline = time.monotonic() + timeout_s
        while not all(ear.done() for ear in self.ears):
            if time.monotonic() > deadline:
                raise SideFailed(f"still running after {timeout_s:.0f} s")
            self.sample_usage()
            await asyncio.wait(self.ears, timeout=0.25)
        await self.process.wait()
        self.check()

    async def stop(self) -> None:
        """Ask by SIGTERM, then kill; every process it started goes with it."""
        for send in (signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is None:
                _signal_group(self.process.pid, send)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self.process.wait()
                    break
        _signal_group(self.process.pid, signal.SIGKILL)
        for ear in self.ears:
            ear.cancel()
        await asyncio.gather(*self.ears, return_exceptions=True)


def _signal_group(pid: int, number: signal.Signals) -> None:
    # The group is gone when every process in it has ended, which is what is wanted.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


async def start(argv: Sequence[str], folder: Path, specification: Mapping[str, Any] | None = None) -> Child:
    """Start a side in `folder`; the specification is written there and its path given as the last argument."""
    arguments = list(argv)
    if specification is not None:
        path = folder / "specification.json"
        path.write_text(json.dumps(specification), encoding="utf-8")
        arguments.append(str(path))
    # Killed outright, this process cannot stop its sides: then the kernel, or a watcher, does.
    mode = "signal" if sys.platform == "linux" else "pipe"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", tied.__file__, mode, str(os.getpid()), *arguments),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT_BYTES,
        start_new_session=True,
        env=_environment(),
    )
    child = Child(process, time.monotonic())
    assert process.stdout is not None
    assert process.stderr is not None
    child.ears = [asyncio.create_task(_hear(child, process.stdout)), asyncio.create_task(_hear(child, process.stderr))]
    return child


def _environment() -> dict[str, str]:
    """The caller's, without what would point a peer at our own environment or settings."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith(("HEADRACE_", "FAUST_"))}


async def _hear(child: Child, stream: asyncio.StreamReader) -> None:
    while line := await stream.readline():
        text = line.decode("utf-8", "replace").rstrip()
        event = _event(text)
        if event is None:
            child.heard.append(text)
        else:
            child.events[event["event"]] = event
        child.changed.set()


def _event(text: str) -> dict[str, Any] | None:
    if not text.startswith('{"event"'):
        return None
    try:
        parsed: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return parsed
