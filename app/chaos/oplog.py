"""What the driver meant to do and what came of it: JSON lines, the intent on disk before anything is sent.

`intent`, then `ok` (acknowledged), `fail` (surely not taken) or `info` (nobody knows) for the same `op`. Intents that
wait together share one fsync. An outcome is not synced by itself: one that is lost leaves its intent open, which
reads as `info`.
"""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import orjson

Outcome = Literal["ok", "fail", "info"]


class OpLog:
    """One file of the run's folder; a context manager. One task at a time syncs, for all that wait."""

    def __init__(self, path: Path, what: str) -> None:
        """`what` is done by the ops of this log."""
        self.path = path
        self._what = what
        self._file = path.open("ab")
        self._ops = 0
        self._written = self._synced = 0
        self._syncing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._sync()
        self._file.close()

    async def intend(self, intents: Sequence[Mapping[str, Any]]) -> list[int]:
        """Write what is about to be done; return the numbers of the ops when the disk has them."""
        first = self._ops + 1
        self._ops += len(intents)
        for op, fields in enumerate(intents, first):
            self._write(op, "intent", fields)
        mark = self._written
        async with self._syncing:
            if self._synced < mark:
                await asyncio.to_thread(self._sync)
        return list(range(first, first + len(intents)))

    def outcome(self, op: int, phase: Outcome, fields: Mapping[str, Any]) -> None:
        """Write what came of it."""
        self._write(op, phase, fields)

    def _write(self, op: int, phase: str, fields: Mapping[str, Any]) -> None:
        row = {"op": op, "what": self._what, "phase": phase, "at_ns": time.time_ns(), **fields}
        self._file.write(orjson.dumps(row) + b"\n")
        self._written += 1

    def _sync(self) -> None:
        mark = self._written
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = max(self._synced, mark)
