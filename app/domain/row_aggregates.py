"""Aggregates over rows in groups: counts, sums, extremes, percentiles; nulls are left out, as in SQL."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_CALL: Final = re.compile(r"\s*([a-z_]+\d*)\s*\(\s*([^,()]*?)\s*(?:,\s*([0-9.]+)\s*)?\)\s*")
_PERCENTILE: Final = re.compile(r"p(\d{1,2}|100)")
_EXACT_MOST: Final = (1 << 64) - 1
_EXACT_LEAST: Final = -(1 << 63)

Value = Any


class RowFault(ValueError):
    """A row whose value does not fit the aggregate; `row` is its number."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row = row


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One column of the result: `function` over `field`; `share` is the percentile's, from 0 to 1."""

    function: str
    field: str = ""
    share: float = 0.0


def parse(text: str) -> Aggregate:
    """`count()`, `count(field)`, `sum(field)`, `p95(field)`, `percentile(field, 99.9)`. Raises ValueError."""
    found = _CALL.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r:.100} is no aggregate such as sum(value), count() or p95(value)")
    function, field, number = found[1], found[2], found[3]
    percentile = _PERCENTILE.fullmatch(function)
    if percentile is not None:
        function, number = "percentile", percentile[1]
    if function not in FUNCTIONS and function not in {"count", "percentile"}:
        raise ValueError(f"there is no aggregate {found[1]!r:.40}; there are {', '.join(NAMES)}")
    if not field and function != "count":
        raise ValueError(f"{found[1]} needs a field, as in {found[1]}(value)")
    if function != "percentile":
        if number is not None:
            raise ValueError(f"{function} takes no number")
        return Aggregate(function, field)
    try:
        share = float(number) / 100
    except (TypeError, ValueError):
        raise ValueError("percentile needs a number from 0 to 100, as in percentile(value, 99.9)") from None
    if not 0 <= share <= 1:
        raise ValueError(f"there is no percentile {number}")
    return Aggregate(function, field, share)


def aggregate(
    rows: Sequence[Any],
    group_by: Sequence[str],
    aggregates: Mapping[str, Aggregate],
    field_of: Callable[[Any, str], Any],
) -> list[dict[str, Any]]:
    """One row a group, in the order in which the groups first came; without `group_by` exactly one row.

    `field_of` reads a field, None where there is none. Raises `RowFault`.
    """
    groups: dict[Any, tuple[list[Any], list[int]]] = {}
    if not group_by:
        groups[()] = ([], list(range(len(rows))))
    else:
        for number, row in enumerate(rows):
            values = [field_of(row, name) for name in group_by]
            groups.setdefault(_hashable(values), (values, []))[1].append(number)
    found = []
    for of_group, numbers in groups.values():
        made = dict(zip(group_by, of_group, strict=True))
        made.update((name, _value(one, rows, numbers, field_of)) for name, one in aggregates.items())
        found.append(made)
    return found


def _value(one: Aggregate, rows: Sequence[Any], members: list[int], field_of: Callable[[Any, str], Any]) -> Any:
    if one.function == "count" and not one.field:
        return len(members)
    if one.function in {"first", "last"}:
        if not members:
            return None
        return field_of(rows[members[0 if one.function == "first" else -1]], one.field)
    values: list[Any] = []
    for number in members:
        value = field_of(rows[number], one.field)
        if value is not None:
            if one.function not in {"count", "count_distinct"}:
                _check(value, one, number, values)
            values.append(value)
    if one.function == "count":
        return len(values)
    try:
        return _percentile(values, one.share) if one.function == "percentile" else FUNCTIONS[one.function](values)
    except OverflowError:
        raise RowFault(members[-1], f"the {one.function} of {one.field} is beyond what a number holds") from None


def _check(value: Any, one: Aggregate, number: int, before: list[Any]) -> None:
    text = one.function in {"min", "max"} and isinstance(value, str)
    if not text and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise RowFault(number, f"{one.field} is {_kind(value)}, and {one.function} takes numbers")
    if before and isinstance(before[0], str) != isinstance(value, str):
        raise RowFault(number, f"{one.field} is {_kind(value)}, and in rows before it is {_kind(before[0])}")


def _sum(values: list[Any]) -> Any:
    if not values:
        return None
    if all(isinstance(value, int) for value in values):
        total = sum(values)
        return total if _EXACT_LEAST <= total <= _EXACT_MOST else _finite(float(total))
    return _finite(math.fsum(values))


def _average(values: list[Any]) -> Any:
    return _finite(math.fsum(values) / len(values)) if values else None


def _deviation(values: list[Any]) -> Any:
    """The sample standard deviation; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return _finite(math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)))


def _percentile(values: list[Any], share: float) -> Any:
    """Between the two nearest values, as PostgreSQL's percentile_cont."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    if ordered[below] == ordered[above]:
        return ordered[below]
    return _finite(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise OverflowError
    return value


FUNCTIONS: Final[Mapping[str, Callable[[list[Any]], Any]]] = {
    "sum": _sum,
    "avg": _average,
    "min": lambda values: min(values, default=None),
    "max": lambda values: max(values, default=None),
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "stddev": _deviation,
    "count_distinct": lambda values: len({_hashable(value) for value in values}),
}
NAMES: Final = ("count", *FUNCTIONS, "p50", "p95", "p99.9 as percentile(field, 99.9)")


def _hashable(value: Any) -> Any:
    """Something to tell JSON values apart by: true is not 1."""
    if isinstance(value, list | tuple):
        return ("list", *(_hashable(item) for item in value))
    if isinstance(value, Mapping):
        return ("object", *sorted((key, _hashable(item)) for key, item in value.items()))
    return (isinstance(value, bool), value)


def _kind(value: Any) -> str:
    for kind, name in ((bool, "true or false"), (str, "text"), (int | float, "a number"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "an object"
