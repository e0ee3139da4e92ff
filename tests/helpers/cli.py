"""The command line under test: in this process for its words, as processes of their own for its work."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.cli import main
from tests.helpers.broker import REUSE
from tests.helpers.processes import Started

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
DEADLINE_S = 90


class Answer(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Answer:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return Answer(int(ended.value.code or 0), out, err)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one sentence of a command that cannot do as it is asked."""
    answer = said(capsys, *arguments)
    assert (answer.code, answer.out) == (code, ""), answer
    lines = answer.err.splitlines()
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("headrace: ")
    return lines[0].removeprefix("headrace: ")


class Headrace:
    """`headrace` in a folder of its own, against one broker."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self.folder = folder
        self.bootstrap = bootstrap

    def __call__(self, *arguments: str) -> Answer:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Started]:
        """A command that goes on; gone after the block."""
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running = Started(process)
        try:
            yield running
        finally:
            process.kill()
            process.wait(10)
            running.close()

    def _environment(self) -> dict[str, str]:
        added = {"KAFKA_BOOTSTRAP_SERVERS": self.bootstrap, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        return {**{name: value for name, value in os.environ.items() if name != REUSE}, **added}
