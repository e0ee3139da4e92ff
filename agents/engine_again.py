"""What an owner had in hand when it ended is ordered anew; what may have ended it comes apart the next time.

A task that ends its process (`os._exit`, a crash in C) would end every owner that it is given to. So a new owner notes
each execution with work in hand, in a row `o` + id, before it orders that anew. What was noted a short while ago
already has seen two owners end, and is ordered as `isolated`: a stranger's code then runs in a task process, whose end
is a failed attempt with its cause.
"""

import struct
from typing import Final

from tables import executions as rows
from tables.partition import Changes, TablePartition

AGAIN: Final = b"o"
# Two deployments come further apart than two crashes of one cause: a supervisor waits 30 s at most between two.
SHORT_MS: Final = 300_000
_AT: Final = struct.Struct(">Q")


class Again:
    """The notes of one partition."""

    def __init__(self, tables: TablePartition) -> None:
        found = tables.range(AGAIN, bytes((AGAIN[0] + 1,)))
        self._noted = {rows.id_of(key): _AT.unpack(row)[0] for key, row in found}

    def note(self, execution_id: str, changes: Changes, now_ms: int) -> bool:
        """Note that it is ordered anew; whether it was a short while ago."""
        before_ms = self._noted.pop(execution_id, None)
        changes.put(AGAIN + execution_id.encode(), _AT.pack(now_ms))
        return before_ms is not None and abs(now_ms - before_ms) < SHORT_MS

    def forget(self, changes: Changes) -> None:
        """All that is in hand has been noted: what else was noted has ended."""
        for execution_id in self._noted:
            changes.delete(AGAIN + execution_id.encode())
        self._noted.clear()
