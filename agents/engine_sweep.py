"""Forgets executions that ended longer ago than `workflow.retention_s`, a few rows at a time.

A walk over the rows costs less than a row of its own for each end: it goes on where it stopped, quickly where it
finds what has to go, slowly where it does not. Marks of debounces and of rates go the same way.
"""

from collections.abc import Callable
from typing import Final

from agents.engine_aside import UNREADABLE, Broken
from agents.engine_debounce import MARKS, is_over
from agents.engine_gate import BEGINS, is_past
from tables import executions as rows
from tables.partition import Changes, TablePartition

QUICK_MS: Final = 20
SLOW_MS: Final = 1_000
# After an absence starts are delivered again: until they are, what they have started must be known.
GRACE_MS: Final = 600_000
_AFTER: Final = {rows.ENDED: MARKS, MARKS: BEGINS, BEGINS: rows.ENDED}


class Sweep:
    """The walk through one partition."""

    def __init__(self, tables: TablePartition, now_ms: int, found_broken: Callable[[Broken], None]) -> None:
        self.next_ms = now_ms + SLOW_MS
        self._opened_ms = now_ms
        self._tables = tables
        self._found_broken = found_broken
        self._at = rows.ENDED

    def step(self, changes: Changes, retention_ms: int, most: int, now_ms: int) -> None:
        """Look at `most` rows, and delete those whose time is over."""
        begins_ms = self._opened_ms + min(retention_ms, GRACE_MS)
        if self._opened_ms <= now_ms < begins_ms:
            self.next_ms = min(begins_ms, now_ms + GRACE_MS // 10)
            return
        seen = gone = 0
        last = self._at
        prefix = self._at[:1]
        for key, value in self._tables.range(self._at, bytes((prefix[0] + 1,))):
            last = key
            seen += 1
            if prefix != rows.ENDED:
                if is_over(value, retention_ms, now_ms) if prefix == MARKS else is_past(value, now_ms):
                    changes.delete(key)
                    gone += 1
            elif key not in changes.rows:
                gone += self._look(changes, key, value, now_ms - retention_ms)
            if seen >= most:
                break
        if seen >= most:
            self._at = last + b"\x00"
        else:
            self._at = _AFTER[prefix]
        self.next_ms = now_ms + (QUICK_MS if gone * 4 >= most else SLOW_MS)

    def _look(self, changes: Changes, key: bytes, value: bytes, before_ms: int) -> int:
        try:
            header = rows.header_of(value)
        except UNREADABLE as error:
            self._found_broken(Broken(rows.id_of(key), rows.ENDED, value, error))
            return 0
        if header.at >= before_ms:
            return 0
        changes.delete(key)
        for chunk in range(header.chunks):
            changes.delete(rows.chunk_key(rows.id_of(key), chunk))
        return 1
