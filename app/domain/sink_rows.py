"""What a decoded record becomes in a sink: its identity, its version and the columns of its kind."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal, NamedTuple

ColumnType = Literal["text", "integer", "number", "flag", "json"]

TEXT_MAX_CHARS = 255
INTEGER_MIN = -(1 << 63)
INTEGER_MAX = (1 << 63) - 1


class Column(NamedTuple):
    """One typed column; a required one is never null."""

    name: str
    type: ColumnType
    required: bool = False


class Shape(NamedTuple):
    """The columns of one kind of row; `key_fields` name the ones that make its identity."""

    kind: str
    key_fields: tuple[str, ...]
    columns: tuple[Column, ...]


class IdentifiedRow(NamedTuple):
    """The first fields of `app.ports.SinkRow`, in its order; `source` is what the caller adds."""

    kind: str
    key: tuple[str | int, ...]
    key_fields: tuple[str, ...]
    version: int
    row: dict[str, Any]


def _columns(required: str, **types: str) -> tuple[Column, ...]:
    """Build columns from space-separated names by type, those of `required` first in their own order."""
    type_of = {name: kind for kind, names in types.items() for name in names.split()}
    first = required.split()
    rest = [name for name in type_of if name not in first]
    return tuple(Column(name, type_of[name], name in first) for name in (*first, *rest))  # type: ignore[arg-type]


ROLLUPS = Shape(
    "rollups",
    ("device_id", "metric", "window_start", "window_ms"),
    _columns(
        "device_id metric window_start window_ms",
        text="device_id metric unit",
        integer="window_start window_ms window_end open_ts high_ts low_ts close_ts count good_count bad_count"
        " late_count gaps seq_first seq_last revision",
        number="open high low close sum mean variance m2",
        flag="is_final",
    ),
)
SIGNALS = Shape(
    "signals",
    ("signal_id",),
    _columns(
        "signal_id",
        text="signal_id rule kind severity device_id metric state unit",
        integer="at raised_at cleared_at",
        number="value threshold",
        json="evidence trigger",
    ),
)
READINGS = Shape(
    "readings",
    ("device_id", "session_id", "seq", "metric"),
    _columns(
        "device_id session_id seq metric",
        text="device_id metric unit quality",
        integer="session_id seq source_timestamp recorded_timestamp status_code",
        number="value",
        flag="is_historical",
    ),
)
SHAPES: dict[str, Shape] = {shape.kind: shape for shape in (ROLLUPS, SIGNALS, READINGS)}
_KEY_TYPES: dict[str, tuple[tuple[str, ColumnType], ...]] = {
    kind: tuple(
        (column.name, column.type) for name in shape.key_fields for column in shape.columns if column.name == name
    )
    for kind, shape in SHAPES.items()
}

# Versions of a signal: what is cleared can never become raised again under the same identity.
SIGNAL_VERSIONS = {"raised": 0, "cleared": 1}


def rollup_row(value: object) -> IdentifiedRow | str:
    """Return the row of one rollup, or the reason why it has none; a later `revision` replaces an earlier one."""
    if not isinstance(value, Mapping):
        return "a rollup is not an object"
    row = dict(value)
    if "window_ms" not in row and _is_integer(row.get("window_start")) and _is_integer(row.get("window_end")):
        row["window_ms"] = row["window_end"] - row["window_start"]
    revision = row.get("revision", 0)
    if not _is_integer(revision) or revision < 0:
        return "revision is not a whole number from 0"
    return _identified(ROLLUPS, row, revision)


def signal_row(value: object) -> IdentifiedRow | str:
    """Return the row of one signal, or the reason why it has none; `cleared` replaces `raised`."""
    if not isinstance(value, Mapping):
        return "a signal is not an object"
    state = value.get("state", "raised")
    version = SIGNAL_VERSIONS.get(state) if isinstance(state, str) else None
    if version is None:
        return "state is neither raised nor cleared"
    return _identified(SIGNALS, dict(value), version)


def reading_rows(value: object) -> tuple[IdentifiedRow, ...] | str:
    """Return one row for each metric of a sample, or the reason why the sample has none."""
    if not isinstance(value, Mapping):
        return "a sample is not an object"
    metrics = value.get("metrics")
    if not isinstance(metrics, list | tuple):
        return "metrics is not a list"
    shared = {name: inner for name, inner in value.items() if name != "metrics"}
    rows: list[IdentifiedRow] = []
    for index, reading in enumerate(metrics):
        if not isinstance(reading, Mapping):
            return f"metrics[{index}] is not an object"
        row = _identified(READINGS, {**shared, **reading}, 0)
        if isinstance(row, str):
            return f"metrics[{index}]: {row}"
        rows.append(row)
    return tuple(rows)


def refusal(shape: Shape, row: Mapping[str, Any]) -> str | None:
    """Return why a typed store cannot hold `row`, or None when it can."""
    for name, kind, required in shape.columns:
        value = row.get(name)
        if value is None:
            if required:
                return f"{name} is missing"
            continue
        if type(value) is float and kind == "number" and isfinite(value):
            continue  # the most frequent case, without a call
        problem = _problem(kind, value)
        if problem is not None:
            return f"{name} {problem}"
    return None


def _identified(shape: Shape, row: dict[str, Any], version: int) -> IdentifiedRow | str:
    key: list[str | int] = []
    for name, kind in _KEY_TYPES[shape.kind]:
        value = row.get(name)
        if value is None or value == "":
            return f"{name} is missing"
        problem = _problem(kind, value)
        if problem is not None:
            return f"{name} {problem}"
        key.append(value)
    return IdentifiedRow(shape.kind, tuple(key), shape.key_fields, version, row)


def _problem(kind: ColumnType, value: Any) -> str | None:
    if kind == "text":
        return _text_problem(value)
    if kind == "integer":
        if not _is_integer(value):
            return f"is not a whole number but {type(value).__name__}"
        return None if INTEGER_MIN <= value <= INTEGER_MAX else "needs more than 64 bits"
    if kind == "number":
        return _number_problem(value)
    if kind == "flag":
        return None if isinstance(value, bool) else f"is neither true nor false but {type(value).__name__}"
    return None


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is not text but {type(value).__name__}"
    if len(value) > TEXT_MAX_CHARS:
        return f"is {len(value)} characters long, more than {TEXT_MAX_CHARS}"
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return "holds half a surrogate pair, which is not Unicode text"
    return None


def _number_problem(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"is not a number but {type(value).__name__}"
    if isinstance(value, int):
        return None if abs(value) <= INTEGER_MAX else "is too large"
    return None if isfinite(value) else "is not finite"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
