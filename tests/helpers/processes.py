"""Real processes under test: started, waited for on a condition, and always ended."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import psutil

DEADLINE_S = 30.0
T = TypeVar("T")


def until(found: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first answer that is true, asked again and again."""
    ends_s = time.monotonic() + deadline_s
    pause = threading.Event()
    while time.monotonic() < ends_s:
        answer = found()
        if answer:
            return answer
        pause.wait(0.02)
    raise AssertionError(f"not within {deadline_s} s: {what}")


class Started:
    """A process with its output, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def said(self, pattern: str) -> re.Match[str]:
        """The first match in the output, once it is there."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            if found is None and self.process.poll() is not None:
                self._reader.join(5)
                found = re.search(pattern, self.output)
                assert found is not None, f"ended without saying {pattern!r}:\n{self.output}"
            return found

        return until(look, f"{pattern!r} in:\n{self.output}")

    def children(self) -> dict[str, psutil.Process]:
        """The children by role."""
        return {child.cmdline()[3]: child for child in psutil.Process(self.pid).children() if len(child.cmdline()) > 3}

    def close(self) -> None:
        """Read the output to its end; the process has ended."""
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        code = self.process.wait(deadline_s)
        self._reader.join(5)
        return code


@contextmanager
def started(*arguments: str) -> Iterator[Started]:
    """`python -m tests.helpers.roles ARGUMENTS`; it and what it started are gone after the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.roles", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    running = Started(process)
    family: list[psutil.Process] = []
    try:
        yield running
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait(10)
        for child in family:
            if child.is_running():
                child.kill()
        running.close()


def get(url: str, **headers: str) -> httpx.Response | None:
    """An answer, or None while nobody answers."""
    try:
        return httpx.get(url, headers=headers, timeout=5, trust_env=False)
    except httpx.HTTPError:
        return None


def answered(url: str, status: int, accept: Callable[[Any], bool] = lambda _: True) -> Any:
    """The JSON of the first answer with this status that is acceptable."""
    last: list[str] = ["no answer"]

    def look() -> tuple[Any] | None:
        answer = get(url)
        if answer is not None:
            last[0] = f"{answer.status_code} {answer.text}"
        if answer is None or answer.status_code != status:
            return None
        body = answer.json()
        return (body,) if accept(body) else None

    try:
        return until(look, f"{status} of {url}")[0]
    except AssertionError as error:
        raise AssertionError(f"{error}; the last answer was {last[0]}") from None
