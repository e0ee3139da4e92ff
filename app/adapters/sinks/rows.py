"""Turns a Kafka record into the rows that a sink takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from app.codec import DEPTH_MAX, is_too_deep
from app.domain.sink_rows import IdentifiedRow, reading_rows, rollup_row, signal_row
from app.errors import UserError
from app.ports import InRecord, SinkRow
from config.topics import DEVICE_LATE, DEVICE_ROLLUPS, DEVICE_SIGNALS, DEVICE_TELEMETRY

ReadRows = Callable[[Any], IdentifiedRow | tuple[IdentifiedRow, ...] | str]

READERS: Mapping[str, ReadRows] = {
    DEVICE_ROLLUPS.name: rollup_row,
    DEVICE_SIGNALS.name: signal_row,
    DEVICE_TELEMETRY.name: reading_rows,
    DEVICE_LATE.name: reading_rows,
}


def rows_of(
    topics: Sequence[str], readers: Mapping[str, ReadRows] = READERS, *, min_window_ms: int = 0
) -> Callable[[InRecord], Sequence[SinkRow] | str]:
    """Return the function that gives a record's rows, or the reason (text) why it has none.

    Rollups of windows shorter than `min_window_ms` have no row, and that is no fault of theirs.

    Raises `UserError` for a topic whose records are no rows.
    """
    unknown = [topic for topic in topics if topic not in readers]
    if unknown:
        raise UserError(f"No sink can take {', '.join(unknown)}; it takes {', '.join(sorted(readers))}.")

    def to_rows(record: InRecord) -> Sequence[SinkRow] | str:
        if record.value is None:
            return "a tombstone has no row"
        try:
            decoded = orjson.loads(record.value)
        except orjson.JSONDecodeError as error:
            return f"not JSON: {error}"
        if is_too_deep(record.value, decoded):
            return f"nested more than {DEPTH_MAX} levels deep"
        if min_window_ms and _is_shorter(decoded, min_window_ms):
            return ()
        read = readers[record.topic](decoded)
        if isinstance(read, str):
            return read
        source = (record.topic, record.partition, record.offset)
        if isinstance(read, IdentifiedRow):
            return (SinkRow(*read, source),)
        return tuple(SinkRow(*row, source) for row in read)

    return to_rows


def _is_shorter(decoded: Any, min_window_ms: int) -> bool:
    window_ms = decoded.get("window_ms") if isinstance(decoded, dict) else None
    return isinstance(window_ms, int) and window_ms < min_window_ms
