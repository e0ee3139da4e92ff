"""JSON values as the columns of a table want them, in types that every driver takes."""

import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson
import sqlalchemy as sa

from app.domain.sink_rows import ColumnType
from app.errors import TaskFailed

Convert = Callable[[Any], Any]


def converter(column: sa.Column[Any]) -> Convert:
    """What makes a JSON value fit a column; it raises ValueError. Null stays null."""
    kind = column.type
    if isinstance(kind, sa.JSON | sa.ARRAY):
        return lambda value: value
    if isinstance(kind, sa.Boolean):
        return _boolean
    if isinstance(kind, sa.Integer):
        return _integer
    if isinstance(kind, sa.Float):
        return _number
    if isinstance(kind, sa.Numeric):
        return _decimal
    if isinstance(kind, sa.DateTime):
        aware = bool(kind.timezone)
        return lambda value: _instant(value, aware)
    if isinstance(kind, sa.Date):
        return lambda value: dt.date.fromisoformat(_text(value))
    if isinstance(kind, sa.Time):
        return lambda value: dt.time.fromisoformat(_text(value))
    if isinstance(kind, sa.Uuid):
        return lambda value: uuid.UUID(_text(value)) if kind.as_uuid else _text(value)
    if isinstance(kind, sa.String):
        return _text
    return lambda value: orjson.dumps(value).decode() if isinstance(value, dict | list) else value


def converted(row: Mapping[str, Any], columns: Mapping[str, Convert], number: int) -> dict[str, Any]:
    """The row's values for its columns. Raises `TaskFailed` of type `SqlData`, naming row and column."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        try:
            found[name] = None if value is None else columns[name](value)
        except (ValueError, InvalidOperation, OverflowError, TypeError) as error:
            raise TaskFailed(
                "SqlData",
                f"row {number}: {value!r:.100} does not fit the column {name}",
                retryable=False,
                detail={"row": number, "column": name},
            ) from error
    return found


def inferred(rows: Sequence[Mapping[str, Any]], given: Mapping[str, ColumnType]) -> dict[str, ColumnType]:
    """The types of the columns of a table that is to be made for rows: as `given`, else by the values."""
    found: dict[str, ColumnType | None] = dict(given)
    for row in rows:
        for name, value in row.items():
            if name not in given and value is not None:
                found[name] = _wider(found.get(name), _type_of(value))
            else:
                found.setdefault(name, None)
    return {name: kind or "text" for name, kind in found.items()}


def _type_of(value: Any) -> ColumnType:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "text" if isinstance(value, str) else "json"


def _wider(first: ColumnType | None, second: ColumnType) -> ColumnType:
    if first is None or first == second:
        return second
    if {first, second} == {"integer", "number"}:
        return "number"
    return "json" if "json" in {first, second} else "text"


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise ValueError


def _integer(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    return float(value)


def _decimal(value: Any) -> Decimal:
    return Decimal(str(value))


def _instant(value: Any, aware: bool) -> dt.datetime:
    """ISO 8601, or milliseconds since 1970; a time without a zone is UTC, as is a column without one."""
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, int | float):
        found = dt.datetime.fromtimestamp(value / 1000, dt.UTC)
    else:
        found = dt.datetime.fromisoformat(value)
        found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
    return found if aware else found.replace(tzinfo=None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
