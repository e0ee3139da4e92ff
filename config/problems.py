"""Says in one sentence each what pydantic found wrong, naming units and near misses."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from config import tree
from config.environment import suggest
from config.redact import REDACTED, redact_entry

# Units that read better as words; a unit that is not here is its own word (records, files, days).
UNITS = {
    "ms": "milliseconds",
    "s": "seconds",
    "min": "minutes",
    "bytes": "bytes",
    "mib": "mebibytes",
}

_WHOLE = {"int_parsing", "int_type", "int_from_float", "int_parsing_size"}
_NUMBER = {"number_type", "float_parsing", "float_type", "finite_number", "decimal_parsing", "decimal_type"}
_TEXT = {"string_type", "path_type", "bytes_type"}
_SWITCH = {"bool_parsing", "bool_type"}
_KEYS = {"model_type", "model_attributes_type", "dict_type", "mapping_type", "dataclass_type"}
_LIST = {"list_type", "tuple_type", "set_type", "frozen_set_type"}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least"),
    "greater_than": ("gt", "must be more than"),
    "less_than_equal": ("le", "must be at most"),
    "less_than": ("lt", "must be less than"),
}
_NO_SUFFIX = {"port", "share", "ratio"}
_TOO_MANY = 20


def data_path(data: Any, loc: tuple[str | int, ...]) -> tree.Path:
    """The path in the data an error is about: pydantic's, less the tags of unions."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        is_key = isinstance(data, Mapping) and part in data
        if is_key or (isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)):
            data = data[part]
        elif index < len(loc) - 1 or not isinstance(data, Mapping) or not isinstance(part, str):
            continue
        path.append(part)
    return tuple(path)


def root_causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out "too short" of a list that is only short because an item of it was refused."""
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(len(other["loc"]) > len(error["loc"]) and _within(other, error) for other in errors)
    ]


def _within(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    return inner["loc"][: len(outer["loc"])] == outer["loc"]


def sentence(root: type[BaseModel], path: tree.Path, error: ErrorDetails) -> str:
    """One sentence for one error; values of secrets are never quoted."""
    field = tree.find(root, path)
    shown = _shown(path, error["input"], is_secret=field is not None and tree.is_secret(field))
    unit = tree.mark(field, "unit") if field is not None else None
    kind, facts = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(root, path)
    if kind == "missing":
        return "is required"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {facts[name]}{_suffix(unit)}, not {shown}"
    if kind == "string_pattern_mismatch" and field is not None and tree.mark(field, "form"):
        return f"expected {tree.mark(field, 'form')}, not {shown}"
    if kind == "literal_error":
        return f"expected one of {facts['expected']}, not {shown}"
    if kind in ("value_error", "assertion_error"):
        return str(facts.get("error", error["msg"]))
    wanted = _wanted(kind, unit)
    if wanted:
        return f"expected {wanted}, not {shown}"
    message = error["msg"]
    return f"{message[:1].lower()}{message[1:]}"


def _wanted(kind: str, unit: str | None) -> str | None:
    of = f" of {UNITS.get(unit, unit)}" if unit and unit not in _NO_SUFFIX else ""
    if kind in _WHOLE:
        return f"a whole number{of}"
    if kind in _NUMBER:
        return f"a number{of}"
    if kind in _TEXT:
        return "text (in quotes, if it looks like a number or a switch)"
    if kind in _SWITCH:
        return "true or false"
    if kind in _KEYS:
        return "keys with values"
    if kind in _LIST:
        return "a list"
    return None


def _suffix(unit: str | None) -> str:
    return f" {unit}" if unit and unit not in _NO_SUFFIX else ""


def _shown(path: tree.Path, value: Any, *, is_secret: bool) -> str:
    if value is None:
        return "nothing"
    if is_secret:
        return REDACTED
    text = repr(redact_entry(path[-1] if path else None, value))
    return text if len(text) <= 80 else f"{text[:77]}…"


def _unknown_key(root: type[BaseModel], path: tree.Path) -> str:
    key = str(path[-1])
    known = tree.keys_at(root, path[:-1])
    homes = [leaf.dotted for leaf in tree.leaves(root) if leaf.path[-1] == key]
    if len(homes) == 1:
        return f"unknown key; did you mean '{homes[0]}'?"
    near = suggest(key, known)
    if near:
        return f"unknown key{near}"
    if known and len(known) <= _TOO_MANY:
        return f"unknown key; known here: {', '.join(known)}"
    return "unknown key"
