"""What pydantic finds wrong with the shape of a definition, in one sentence each."""

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.definitions.problems import Path, suggestion

MAX_ERRORS: Final = 500  # more are not looked at: a sentence costs up to a millisecond
_WORDS: Final[Mapping[str, str]] = {
    "missing": "is required",
    "int_type": "expected a whole number, not {shown}",
    "int_from_float": "expected a whole number, not {shown}",
    "int_parsing": "expected a whole number, not {shown}",
    "float_type": "expected a number, not {shown}",
    "float_parsing": "expected a number, not {shown}",
    "string_type": "expected text (in quotes, if it looks like a number or a switch), not {shown}",
    "bool_type": "expected true or false, not {shown}",
    "bool_parsing": "expected true or false, not {shown}",
    "dict_type": "expected keys with values, not {shown}",
    "model_type": "expected keys with values, not {shown}",
    "model_attributes_type": "expected keys with values, not {shown}",
    "list_type": "expected a list, not {shown}",
    "literal_error": "expected one of {expected}, not {shown}",
    "greater_than": "must be more than {gt}, not {shown}",
    "greater_than_equal": "must be at least {ge}, not {shown}",
    "less_than": "must be less than {lt}, not {shown}",
    "less_than_equal": "must be at most {le}, not {shown}",
    "too_short": "needs at least {min_length}",
    "too_long": "may have {max_length} at most",
    "string_too_short": "may not be empty",
    "string_too_long": "may have {max_length} characters at most",
    "union_tag_not_found": "a trigger has one of http, schedule and topic",
}
_PATTERNS: Final = "letters, digits and underscores, beginning with no digit, 64 characters at most"


def shape_problems(model: type[BaseModel], data: Any, *, secret: bool = False) -> Iterator[tuple[Path, str]]:
    """What is wrong with `data`; `secret` says that no value may be quoted."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        told: dict[Path, list[tuple[bool, str]]] = {}
        for detail in error.errors(include_url=False)[:MAX_ERRORS]:
            path, has_tags = data_path(data, detail["loc"])
            told.setdefault(path, []).append((has_tags, _sentence(model, data, path, detail, secret=secret)))
        above = {path[:end] for path in told for end in range(len(path))}
        for path, texts in told.items():
            unique = list(dict.fromkeys(text for _, text in texts))
            if path in above and all(tags for tags, _ in texts):
                continue  # the other arm of a union, which was not meant
            yield path, ", or ".join(unique) if texts[0][0] else "; ".join(unique)


def data_path(data: Any, loc: Sequence[str | int]) -> tuple[Path, bool]:
    """The path in the data that an error is about, and whether pydantic named arms of a union beside it."""
    path: list[str | int] = []
    has_tags = False
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (isinstance(data, Mapping) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]  # type: ignore[index]
        elif part == "[key]" or not (last and isinstance(data, Mapping) and isinstance(part, str) and _is_name(part)):
            has_tags = has_tags or part != "[key]"
            continue
        path.append(part)
    return tuple(path), has_tags


def _is_name(part: str) -> bool:
    """A missing field, not the name that pydantic gives to an arm of a union."""
    return part.isidentifier() and part not in {"str", "int", "float", "bool"} and not part[0].isupper()


def _sentence(model: type[BaseModel], data: Any, path: Path, detail: ErrorDetails, *, secret: bool) -> str:
    kind = detail["type"]
    facts = {name: f"{fact:g}" if isinstance(fact, float) else fact for name, fact in detail.get("ctx", {}).items()}
    if kind == "extra_forbidden":
        return f"unknown field{suggestion(str(path[-1]), _fields_at(model, data, path[:-1]))}"
    if kind == "string_pattern_mismatch":
        if detail["loc"][-1] == "[key]":
            return f"the name of a task has {_PATTERNS}"
        return f"{_shown(detail['input'])} does not fit {facts.get('pattern')}"
    if kind in {"value_error", "assertion_error"}:
        return str(facts.get("error", detail["msg"]))
    if kind in _WORDS:
        return _WORDS[kind].format(shown="what it is" if secret else _shown(detail["input"]), **facts)
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _fields_at(model: type[BaseModel], data: Any, path: Path) -> set[str]:
    """The fields of the model that a path leads to."""
    found: set[Any] = {model}
    for part in path:
        inner: set[Any] = set()
        for each in found:
            if isinstance(each, type) and issubclass(each, BaseModel):
                fields = {field.alias or name: field.annotation for name, field in each.model_fields.items()}
                inner |= _parts(fields.get(str(part)))
            elif get_origin(each) in {dict, list}:
                inner |= _parts(get_args(each)[-1])
        found = inner
    value = data
    for part in path:
        value = value[part]
    models = [each for each in found if isinstance(each, type) and issubclass(each, BaseModel)]
    # Of several, the one that the value has most in common with.
    models.sort(key=lambda each: -len(_names(each) & set(value)))
    return _names(models[0]) if models else set()


def _names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _parts(annotation: Any) -> set[Any]:
    if hasattr(annotation, "__metadata__"):
        return _parts(annotation.__origin__)
    if get_origin(annotation) in {Union, UnionType}:
        return set().union(*(_parts(each) for each in get_args(annotation)))
    return {annotation}
