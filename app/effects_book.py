"""Counts effects by what names them, on disk: a million keys cost no memory to speak of."""

import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class EffectsBook:
    """A scratch file of keys; use as a context manager. `take` what is accounted for, then ask what is `unseen`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-effects-")
        self._rows = sqlite3.connect(Path(self._folder.name) / "effects.sqlite", isolation_level=None)
        # A scratch file needs no safety: it is gone with the process.
        self._rows.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        self._rows.execute("CREATE TABLE effects (key TEXT PRIMARY KEY, count INT, seen INT) WITHOUT ROWID")
        self.total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._rows.close()
        self._folder.cleanup()

    def add(self, keys: Sequence[str]) -> None:
        """One more effect of each."""
        self.total += len(keys)
        self._rows.execute("BEGIN")
        self._rows.executemany(
            "INSERT INTO effects VALUES (?, 1, 0) ON CONFLICT (key) DO UPDATE SET count = count + 1",
            [(key,) for key in keys],
        )
        self._rows.execute("COMMIT")

    def take(self, key: str) -> int:
        """How many effects have this key; they are accounted for from now on."""
        found = self._rows.execute("UPDATE effects SET seen = 1 WHERE key = ? RETURNING count", (key,)).fetchone()
        return found[0] if found else 0

    def unseen(self, limit: int) -> list[str]:
        """Keys that nobody took, as many as `limit`."""
        rows = self._rows.execute("SELECT key FROM effects WHERE seen = 0 ORDER BY key LIMIT ?", (limit,))
        return [key for (key,) in rows]
