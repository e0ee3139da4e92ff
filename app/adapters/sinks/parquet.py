"""The Parquet sink: each batch becomes one file for each partition, complete or not there at all.

A file is named `<kind>/<topic>-<partition>-<first offset>-<last offset>.parquet`. It is written under
a hidden name, synced and renamed. A record whose offset lies in the range of a file that is there is
not written again, so a repeat after a crash adds nothing, wherever its batches begin and end.

Small files are the price of durability: what is acknowledged must be on disk, so a batch ends when
`batch_size`, `batch_bytes` or `flush_interval_ms` says so, and many small files are slow to query.
A Parquet sink wants a large `batch_size` (100,000) and a long `flush_interval_ms` (60,000), which
bound both the memory it holds and the lag of its files; or merge the files of a closed day.

Files are never changed: of the rows with one identity the highest `version` is in force.
"""

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from app.adapters.sinks.jsonl import sync_folder
from app.domain.sink_rows import SHAPES, ColumnType, Shape, refusal
from app.errors import SinkRejected, SinkUnavailable
from app.ports import SinkRow

log = logging.getLogger(__name__)

TYPES: dict[ColumnType, Any] = {
    "text": pa.string(),
    "json": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "flag": pa.bool_(),
}
# Twenty digits hold any 64-bit offset, so that the order of names is the order of offsets.
NAME = re.compile(r"(?P<stem>.+)-(?P<first>\d{20})-(?P<last>\d{20})\.parquet")


class ParquetSink:
    """Writes one Parquet file a batch, kind, topic and partition."""

    def __init__(self, name: str, folder: Path, compression: str = "zstd") -> None:
        self.name = name
        self._folder = folder.expanduser()
        self._compression = compression
        self._schemas = {kind: schema_of(shape) for kind, shape in SHAPES.items()}

    async def open(self) -> None:
        """Create the folders. Raises `SinkUnavailable`."""
        try:
            await asyncio.to_thread(self._prepare)
        except OSError as error:
            raise SinkUnavailable(f"sink {self.name}: {self._folder} cannot be used: {error}") from error

    async def write(self, rows: Sequence[SinkRow]) -> None:
        """Write `rows`; see `app.ports.Sink`. All rows of one Kafka record must come in one call."""
        reasons: dict[int, str] = {}
        files: dict[tuple[str, str, int], list[SinkRow]] = {}
        for index, row in enumerate(rows):
            shape = SHAPES.get(row.kind)
            reason = f"there are no columns for {row.kind}" if shape is None else refusal(shape, row.row)
            if reason is None:
                files.setdefault((row.kind, row.source[0], row.source[1]), []).append(row)
            else:
                reasons[index] = reason
        # To its end even when we are cancelled: a thread cannot be stopped half-way.
        await asyncio.shield(asyncio.to_thread(self._write_all, files))
        if reasons:
            raise SinkRejected(reasons)

    async def close(self) -> None:
        """Nothing stays open between two batches."""

    def _prepare(self) -> None:
        for kind in SHAPES:
            (self._folder / kind).mkdir(parents=True, exist_ok=True)

    def _write_all(self, files: dict[tuple[str, str, int], list[SinkRow]]) -> None:
        try:
            for (kind, topic, partition), rows in files.items():
                self._write_file(kind, f"{topic}-{partition}", rows)
        except OSError as error:
            raise SinkUnavailable(f"sink {self.name}: {self._folder} takes no files: {error}") from error

    def _write_file(self, kind: str, stem: str, rows: list[SinkRow]) -> None:
        folder = self._folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        written = _ranges(folder, stem)
        fresh = [row for row in rows if not any(first <= row.source[2] <= last for first, last in written)]
        if len(fresh) < len(rows):
            log.warning(
                "rows written before are left out",
                extra={"action": "sink_repeat", "sink": self.name, "partition": stem, "rows": len(rows) - len(fresh)},
            )
        for part in _unbroken(fresh, written):
            offsets = [row.source[2] for row in part]
            name = f"{stem}-{min(offsets):020d}-{max(offsets):020d}.parquet"
            hidden = folder / f".{name}.new"
            pq.write_table(self._table(kind, part), hidden, compression=self._compression)
            with hidden.open("rb") as file:
                os.fsync(file.fileno())
            hidden.replace(folder / name)
        if fresh:
            sync_folder(folder)

    def _table(self, kind: str, rows: list[SinkRow]) -> pa.Table:
        shape, schema = SHAPES[kind], self._schemas[kind]
        known = {column.name for column in shape.columns}
        arrays = [
            pa.array([_cell(column.type, row.row.get(column.name)) for row in rows], type=TYPES[column.type])
            for column in shape.columns
        ]
        extra = [{name: value for name, value in row.row.items() if name not in known} for row in rows]
        arrays += [
            pa.array([_cell("json", more or None) for more in extra], type=pa.string()),
            pa.array([row.source[0] for row in rows], type=pa.string()),
            pa.array([row.source[1] for row in rows], type=pa.int64()),
            pa.array([row.source[2] for row in rows], type=pa.int64()),
            pa.array([row.version for row in rows], type=pa.int64()),
        ]
        return pa.Table.from_arrays(arrays, schema=schema)


def schema_of(shape: Shape) -> pa.Schema:
    """Return the columns of one kind; they are those of the SQL tables."""
    fields = [pa.field(column.name, TYPES[column.type], nullable=not column.required) for column in shape.columns]
    fields += [
        pa.field("extra", pa.string()),
        pa.field("source_topic", pa.string(), nullable=False),
        pa.field("source_partition", pa.int64(), nullable=False),
        pa.field("source_offset", pa.int64(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
    ]
    return pa.schema(fields)


def _cell(kind: ColumnType, value: Any) -> Any:
    if value is None:
        return None
    if kind == "json":
        return orjson.dumps(value).decode()
    return float(value) if kind == "number" else value


def _ranges(folder: Path, stem: str) -> list[tuple[int, int]]:
    """Return the offset ranges of the partition's files."""
    ranges = []
    for entry in os.scandir(folder):
        found = NAME.fullmatch(entry.name)
        if found is not None and found["stem"] == stem:
            ranges.append((int(found["first"]), int(found["last"])))
    return ranges


def _unbroken(rows: list[SinkRow], written: list[tuple[int, int]]) -> list[list[SinkRow]]:
    """Split rows so that no new file's range covers an older file's: its name would claim rows it does not hold."""
    parts: list[list[SinkRow]] = []
    starts = sorted(first for first, _ in written)
    before = -1
    for row in sorted(rows, key=lambda row: row.source[2]):
        group = sum(1 for start in starts if start <= row.source[2])
        if group != before:
            parts.append([])
            before = group
        parts[-1].append(row)
    return parts
