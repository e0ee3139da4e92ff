"""Values of the outside world as JSON, and bounds on how much of it one result holds."""

import base64
import datetime as dt
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal

from app.errors import TaskFailed

Decimals = Literal["number", "text"]

_INT64: Final = 1 << 63
_UINT64: Final = 1 << 64
_FIELD_BYTES: Final = 8


def plain(value: Any, decimals: Decimals = "number") -> Any:
    """`value` as JSON: times as ISO 8601, durations in seconds, bytes as base64, whole numbers beyond 64 bits as text.

    Decimals become numbers (a double holds 15 digits) or, asked for, text. NaN and infinities become null.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _UINT64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        if decimals == "text":
            return str(value)
        return plain(float(value)) if value.is_finite() else None
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, Mapping):
        return {str(key): plain(item, decimals) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, decimals) for item in value]
    return str(value)


class Budget:
    """Counts what a source reads. Raises `TaskFailed` of type `TooManyRows` or `TooLarge` beyond its bounds."""

    def __init__(self, rows: int, size: int) -> None:
        self.rows = 0
        self._most_rows = rows
        self._left = size
        self._size = size

    @property
    def full(self) -> bool:
        """No further row is allowed."""
        return self.rows >= self._most_rows

    def add(self, row: Any) -> None:
        """Count one row and its bytes, roughly as JSON."""
        self.rows += 1
        if self.rows > self._most_rows:
            raise too_many_rows(self._most_rows)
        self.spend(size_of(row))

    def spend(self, size: int) -> None:
        """Count bytes."""
        self._left -= size
        if self._left < 0:
            raise too_large(self._size)


def too_many_rows(limit: int) -> TaskFailed:
    """The error of a result with more rows than are allowed."""
    return TaskFailed(
        "TooManyRows",
        f"there are more than {limit} rows: raise max_rows (at most tasks.source_rows), or say on_more: cut",
        retryable=False,
        detail={"max_rows": limit},
    )


def too_large(limit: int) -> TaskFailed:
    """The error of a result with more bytes than are allowed."""
    return TaskFailed(
        "TooLarge",
        f"what was read has more than {limit} bytes (tasks.source_bytes)",
        retryable=False,
        detail={"max_bytes": limit},
    )


def size_of(value: Any) -> int:
    """About how many bytes a JSON value takes as text."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, Mapping):
        return 2 + sum(len(key) + 4 + size_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return 2 + sum(1 + size_of(item) for item in value)
    return _FIELD_BYTES


def field_of(row: Any, path: str) -> Any:
    """The value at a dotted path; a field whose name holds the dots itself comes first. None when it is not there."""
    if isinstance(row, Mapping):
        if path in row:
            return row[path]
        for part in path.split("."):
            if not isinstance(row, Mapping) or part not in row:
                return None
            row = row[part]
        return row
    return None
