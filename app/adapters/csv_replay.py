"""Recorded CSV files: their rows in the order of time, what is wrong with them, and their labels."""

import csv
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zoneinfo import ZoneInfo

from app.domain.replay import (
    Interval,
    MetricColumn,
    Recorded,
    RowMapping,
    RowReader,
    RowRejected,
    Survey,
    missing_columns,
    read_time,
)
from app.errors import ConfigError, UserError
from config.mapping import LabelWindows, ReplayMapping

MAX_LINE_BYTES = 65_536  # a longer line is no row; it also keeps a dead letter well under a record's limit


class BadRow(NamedTuple):
    """A line that is no sample, with its bytes (the first `MAX_LINE_BYTES` of them)."""

    file: str
    line: int
    reason: str
    detail: str
    original: bytes


Row = Recorded | BadRow


class Recording(NamedTuple):
    """Files with their mapping, once surveyed: `survey` knows times, devices and labels."""

    files: tuple[Path, ...]
    mapping: ReplayMapping
    survey: Survey

    def rows(self) -> Iterator[Row]:
        """Every row of every file, files merged by time; a bad row stands where its file has it."""
        return _merged(self.files, _row_mapping(self.mapping))


def open_recording(files: Sequence[str | Path], mapping: ReplayMapping) -> Recording:
    """Read the files once for times and labels.

    Raises `ConfigError` with every problem at once (a file or a column that is not there, labels
    that cannot be read), `UserError` when no row of any file can be used.
    """
    paths = tuple(Path(each) for each in files)
    row_mapping = _row_mapping(mapping)
    problems = [problem for path in paths for problem in _header_problems(path, row_mapping)]
    if problems:
        raise ConfigError(problems)
    survey = Survey()
    for path in paths:
        devices: dict[str, None] = {}
        for row in _rows(path, row_mapping):
            if isinstance(row, Recorded):
                survey.add(row)
                devices[row.device_id] = None
        survey.end_file()
        if mapping.labels.windows is not None:
            for interval in _windows(path, mapping.labels.windows, list(devices)):
                survey.add_interval(interval)
    if survey.is_empty:
        raise UserError(f"{', '.join(map(str, paths))}: there is no row that can be replayed")
    return Recording(paths, mapping, survey)


def _row_mapping(mapping: ReplayMapping) -> RowMapping:
    return RowMapping(
        time_column=mapping.time.column,
        time_format=mapping.time.format,
        zone=ZoneInfo(mapping.time.zone),
        device_id=mapping.device.id or "",
        device_column=mapping.device.column,
        metrics=tuple(MetricColumn(each.metric, each.column, each.unit) for each in mapping.metrics),
        labels=tuple(mapping.labels.columns.items()),
        decimal=mapping.decimal,
        missing=frozenset(mapping.missing),
        delimiter=mapping.delimiter,
    )


def _header_problems(path: Path, mapping: RowMapping) -> list[str]:
    try:
        with path.open("rb") as file:
            _, first = next(_lines(file), (0, b""))
    except OSError as error:
        return [f"{path}: cannot be read: {error.strerror or error}"]
    header = _cells(first, mapping.delimiter)
    if isinstance(header, RowRejected):
        return [f"{path}:1: {header.detail}"]
    missing = missing_columns(mapping, header)
    return [f"{path}:1: there is no column {name!r}; there are {', '.join(header)}" for name in missing]


def _merged(paths: Sequence[Path], mapping: RowMapping) -> Iterator[Row]:
    if len(paths) == 1:
        return _rows(paths[0], mapping)
    timed = [_timed(_rows(path, mapping), number) for number, path in enumerate(paths)]
    return (row for _, _, _, row in heapq.merge(*timed, key=lambda each: each[:3]))


def _timed(rows: Iterator[Row], number: int) -> Iterator[tuple[int, int, int, Row]]:
    at_ms = 0
    for position, row in enumerate(rows):
        # Times that step back in a file keep the file's order: nothing overtakes a row of its own file.
        at_ms = max(at_ms, row.at_ms) if isinstance(row, Recorded) else at_ms
        yield at_ms, number, position, row


def _rows(path: Path, mapping: RowMapping) -> Iterator[Row]:
    with path.open("rb") as file:
        lines = _lines(file)
        _, first = next(lines, (0, b""))
        header = _cells(first, mapping.delimiter)
        if isinstance(header, RowRejected) or missing_columns(mapping, header):
            raise ConfigError([f"{path}:1: the header is not what it was when the file was first read"])
        reader = RowReader(mapping, header, path.stem)
        for line, content in lines:
            if not content.strip():
                continue
            cells = _cells(content, mapping.delimiter)
            row = cells if isinstance(cells, RowRejected) else reader.read(cells)
            if isinstance(row, RowRejected):
                yield BadRow(path.name, line, row.reason, row.detail, content[:MAX_LINE_BYTES])
            else:
                yield row


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends; of one that is too long one byte more than is allowed."""
    number = 0
    while content := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(content) > MAX_LINE_BYTES and not content.endswith(b"\n"):
            while rest := file.readline(MAX_LINE_BYTES):
                if rest.endswith(b"\n"):
                    break
        if number == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        yield number, content.rstrip(b"\r\n")


def _cells(content: bytes, delimiter: str) -> list[str] | RowRejected:
    """The cells of one line; each line is a row of its own, so that an open quote spoils one row only."""
    if len(content) > MAX_LINE_BYTES:
        return RowRejected("too_large", f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        return next(csv.reader([content.decode()], delimiter=delimiter, strict=True), [])
    except UnicodeDecodeError as error:
        return RowRejected("invalid_utf8", f"byte {error.start + 1} of the line is not UTF-8")
    except csv.Error as error:
        return RowRejected("malformed_row", f"not a row of CSV: {error}")


def _windows(path: Path, labels: LabelWindows, devices: Sequence[str]) -> list[Interval]:
    """The labelled times of a recording, for each of its devices. Raises `ConfigError`."""
    beside = path.parent / labels.file
    key = labels.key.replace("{file}", path.stem)
    try:
        content: Any = json.loads(beside.read_bytes())
    except OSError as error:
        raise ConfigError([f"{beside}: labels cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{beside}: labels are not JSON: {error}"]) from error
    windows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(windows, list):
        raise ConfigError([f"{beside}: there are no labels for {key!r}"])
    zone = ZoneInfo(labels.zone)
    found = []
    for window in windows:
        if not (isinstance(window, list) and len(window) == 2):
            raise ConfigError([f"{beside}: {key}: a window is a list of two times, not {window!r:.60}"])
        begin, end = (read_time(str(each), labels.format, zone) for each in window)
        for at_ms in (begin, end):
            if isinstance(at_ms, RowRejected):
                raise ConfigError([f"{beside}: {key}: {at_ms.detail}"])
        if isinstance(begin, int) and isinstance(end, int):
            found += [Interval(device_id, labels.kind, labels.metric, begin, end) for device_id in devices]
    return found
