"""The task type source.file: rows of a file below `tasks.files_directory`."""

import contextlib
import csv
import io
from collections.abc import Generator
from typing import Any, BinaryIO, Final, Literal, TextIO

import orjson
from pydantic import Field

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.types.confined import reading
from app.adapters.tasks.types.params import Params
from app.adapters.tasks.types.values import Budget, Decimals, plain
from app.errors import TaskFailed

FileFormat = Literal["jsonl", "json", "csv", "parquet"]
_SUFFIXES: Final[dict[str, FileFormat]] = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "csv": "csv",
    "parquet": "parquet",
}
_PARQUET_ROWS: Final = 1_000


class FileSourceParams(Params):
    """What source.file is told."""

    path: str = Field(min_length=1, description="File below tasks.files_directory; no `..`, no links.")
    format: FileFormat | None = Field(None, description="Left out: by the file's suffix.")
    columns: list[str] | None = Field(
        None, description="csv, parquet: the columns wanted; csv without `header`: names."
    )
    header: bool = Field(default=True, description="csv: the first line names the columns.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="csv: between fields.")
    numbers: bool = Field(default=False, description="csv: fields that are numbers become numbers; empty ones null.")
    max_rows: int = Field(1_000, ge=1, description="More rows than this are an error.")
    on_more: Literal["fail", "cut"] = Field("fail", description="`cut`: take the first max_rows instead of failing.")
    decimals: Decimals = Field("number", description="parquet: decimals as JSON numbers, or exactly, as text.")


class FileSource:
    """Reads in a thread, no further than the limits allow."""

    name = "source.file"
    params_model = FileSourceParams
    kind: Kind = "blocking"
    pure = False

    def run_sync(self, call: TaskCall[FileSourceParams]) -> Any:
        """The rows; of a `json` file that holds no list, its value."""
        params, settings = call.params, call.shared.settings
        form = params.format or _format(params.path)
        budget = Budget(min(params.max_rows, settings.source_rows), settings.source_bytes)
        with reading(call.shared.files, params.path) as file:
            try:
                if form == "json":
                    return _json(file, settings.source_bytes, params, budget)
                return _taken(_rows(form, file, params, settings.source_bytes), params, budget, call)
            except (ValueError, csv.Error) as error:
                raise TaskFailed(
                    "InvalidFile", f"{params.path!r:.200} is no {form}: {error}", retryable=False
                ) from error


def _format(path: str) -> FileFormat:
    form = _SUFFIXES.get(path.rpartition(".")[2].lower())
    if form is None:
        raise TaskFailed("InvalidParams", f"the suffix of {path!r:.200} tells no format: say `format`", retryable=False)
    return form


def _rows(form: FileFormat, file: BinaryIO, params: FileSourceParams, most: int) -> Generator[Any, None, None]:
    if form == "jsonl":
        return _json_lines(file, most)
    return _csv(file, params) if form == "csv" else _parquet(file, params)


def _taken(
    rows: Generator[Any, None, None], params: FileSourceParams, budget: Budget, call: TaskCall[Any]
) -> list[Any]:
    taken: list[Any] = []
    with contextlib.closing(rows):
        for row in rows:
            if budget.full and params.on_more == "cut":
                break
            budget.add(row)
            taken.append(row)
            if len(taken) % _PARQUET_ROWS == 0:
                call.heartbeat()
                if call.cancelled():
                    raise TaskFailed("Cancelled", "the task was asked to stop", retryable=False)
    return taken


def _json(file: BinaryIO, most: int, params: FileSourceParams, budget: Budget) -> Any:
    content = file.read(most + 1)
    budget.spend(len(content))
    found = orjson.loads(content)
    if not isinstance(found, list) or len(found) <= params.max_rows or params.on_more == "cut":
        return found[: params.max_rows] if isinstance(found, list) else found
    for _ in found:
        budget.add(None)
    return found


def _json_lines(file: BinaryIO, most: int) -> Generator[Any, None, None]:
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if line.strip():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from error


def _csv(file: BinaryIO, params: FileSourceParams) -> Generator[dict[str, Any], None, None]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        yield from _records(text, params)
    finally:
        text.detach()


def _records(text: TextIO, params: FileSourceParams) -> Generator[dict[str, Any], None, None]:
    lines = csv.reader(text, delimiter=params.delimiter, strict=True)
    names = next(lines, []) if params.header else params.columns
    if names is None:
        raise TaskFailed("InvalidParams", "a csv file without a header needs `columns`", retryable=False)
    wanted = _wanted(names, params.columns)
    for fields in lines:
        if not fields:
            continue
        if len(fields) != len(names):
            raise ValueError(f"line {lines.line_num} has {len(fields)} fields, and there are {len(names)} columns")
        yield {name: _number(fields[at]) if params.numbers else fields[at] for name, at in wanted}


def _wanted(names: list[str], columns: list[str] | None) -> list[tuple[str, int]]:
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    missing = [name for name in columns or () if name not in names]
    if missing:
        raise _no_columns(missing, names)
    return [(name, names.index(name)) for name in (columns or names)]


def _no_columns(missing: list[str], names: list[str]) -> TaskFailed:
    return TaskFailed(
        "UnknownColumn",
        f"there is no column {', '.join(missing)}; there are {', '.join(names[:50])}",
        retryable=False,
        detail={"unknown": missing},
    )


def _number(text: str) -> Any:
    if text == "":
        return None
    # Not what only Python takes for a number (1_000, nan), and not codes such as 007.
    if text.strip("+-.eE0123456789") or (text.lstrip("-")[:1] == "0" and text.lstrip("-")[1:2].isdigit()):
        return text
    try:
        return int(text)
    except ValueError:
        try:
            return plain(float(text))
        except ValueError:
            return text


def _parquet(file: BinaryIO, params: FileSourceParams) -> Generator[dict[str, Any], None, None]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - 60 MB that only Parquet needs

    opened = pq.ParquetFile(file)
    names = opened.schema_arrow.names
    missing = [name for name in params.columns or () if name not in names]
    if missing:
        raise _no_columns(missing, names)
    for batch in opened.iter_batches(batch_size=_PARQUET_ROWS, columns=params.columns, use_threads=False):
        for row in batch.to_pylist():
            yield plain(row, params.decimals)
