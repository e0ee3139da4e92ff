"""Writes the reference of all settings from their models: a YAML file of defaults and a page to read."""

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from config import tree
from config.environment import ALIASES
from config.settings import Settings

_WIDTH = 110

_HEAD = """\
Every setting of Headrace with its default. Generated from the models; after a change of them run
    headrace config reference > config/headrace.yaml
Copy what you change into a file of your own and name it by --config FILE or HEADRACE_CONFIG.
Each comment holds: meaning [kind or choices; limits; unit; hot: a change applies while running].
"""

_PAGE = """\
# Settings

This page is generated from the models: `headrace config reference --markdown > docs/configuration.md`.
The same as a file to start from: [`config/headrace.yaml`](../config/headrace.yaml).

## Where a value comes from

The first of these that has a value wins:

1. options of a command, such as `--set producer.batch_size=500`;
2. environment variables: `HEADRACE_` and the path of the key, its parts joined by `__`, as in
   `HEADRACE_PRODUCER__BATCH_SIZE=500`; lists as JSON or, of plain words, separated by commas; mappings as JSON;
3. the folder of secrets named by `HEADRACE_SECRETS_DIR`: one file a secret, named `section__key`;
4. the YAML file named by `--config FILE` or `HEADRACE_CONFIG`;
5. the defaults below.

{aliases} Variables that start with `HEADRACE_` and name no setting are errors, but for the
service links Kubernetes adds (`HEADRACE_PORT`, `HEADRACE_SERVICE_HOST`, …).

A secret may be given as a file: `sasl_password_file: /run/secrets/password` reads it into `sasl_password`.
Secrets, and passwords inside of URLs, are shown as `[REDACTED]` wherever settings are shown or logged.

`headrace config show` prints the values in force with the origin of each; `headrace config check` tells every
problem of the sources at once, with file and line.

## Changes while running

The file, its folder (a mounted ConfigMap) and secret files are watched. A change is validated as a whole. Keys marked
*hot* apply at once, together, with one log record of the action `config reloaded` that holds the difference; keys that
wait for a restart are named in it. A file that is not valid changes nothing: the action `config rejected` says why.
`config_reloads_total{{outcome}}` counts both, and `config_info{{hash}}` tells which settings are in force.
"""


class _Entry(NamedTuple):
    key: str
    field: FieldInfo
    default: Any


def as_yaml() -> str:
    """Every key as a YAML file that loads to exactly the defaults."""
    lines = [f"# {line}".rstrip() for line in _HEAD.splitlines()]
    for name, field in Settings.model_fields.items():
        lines += ["", *_yaml_section(name, field, getattr(Settings(), name), 0)]
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """Every key as tables, one a section."""
    aliases = ", ".join(f"`{name}` sets `{key}`" for name, key in ALIASES.items())
    parts = [_PAGE.format(aliases=f"{aliases}.")]
    for name, field in Settings.model_fields.items():
        parts.append(f"\n## `{name}`\n\n{_purpose(field)}\n\n{_HEADER}")
        model: Any = field.annotation
        leaves = list(tree.leaves(model, (name,)))
        parts += [_row(_Entry(leaf.dotted, leaf.field, _default(leaf.field))) for leaf in leaves]
        for leaf in leaves:
            parts += _item_tables(leaf)
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"


_HEADER = "| key | default | kind and limits | unit | change | meaning |\n|---|---|---|---|---|---|"


def _yaml_section(name: str, field: FieldInfo, value: Any, depth: int) -> Iterator[str]:
    pad = "  " * depth
    yield from _comment(_purpose(field), pad)
    yield f"{pad}{name}:"
    model: Any = field.annotation
    for key, inner in model.model_fields.items():
        if tree.is_model(inner.annotation):
            yield from _yaml_section(key, inner, getattr(value, key), depth + 1)
        else:
            yield from _yaml_leaf(_Entry(key, inner, getattr(value, key)), depth + 1)


def _yaml_leaf(entry: _Entry, depth: int) -> Iterator[str]:
    pad = "  " * depth
    yield from _comment(_explained(entry), pad)
    for title, entries in _item_models(entry.field.annotation):
        yield from _comment(title, pad)
        for item in entries:
            default = "required" if item.default is PydanticUndefined else f"default {_flow(item.default)}"
            yield from _comment(f"{item.key}: {_explained(item, default)}", pad, indent="    ")
    plain = _plain(entry.default)
    if isinstance(plain, list) and plain and isinstance(plain[0], dict):
        yield f"{pad}{entry.key}:"
        for item in plain:
            yield f"{pad}  - {_flow(item)}"
    else:
        yield f"{pad}{entry.key}: {_flow(plain)}"


def _explained(entry: _Entry, *more: str) -> str:
    facts = [_kind(entry.field.annotation), *_limits(entry.field), *more]
    unit = tree.mark(entry.field, "unit")
    if unit:
        facts.append(str(unit))
    if tree.mark(entry.field, "reload") == "hot":
        facts.append("hot")
    return f"{entry.field.description} [{'; '.join(facts)}]"


def _comment(text: str, pad: str, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{pad}# {indent}",
        subsequent_indent=f"{pad}# {indent}{'  ' if indent else ''}",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _item_tables(leaf: tree.Leaf) -> Iterator[str]:
    for index, (title, entries) in enumerate(_item_models(leaf.field.annotation)):
        heading = "" if index else f"\n### {leaf.dotted}\n"
        yield f"{heading}\n{title}\n\n{_HEADER}"
        yield from (_row(entry) for entry in entries)


def _row(entry: _Entry) -> str:
    default = "required" if entry.default is PydanticUndefined else f"`{_short(_flow(_plain(entry.default)))}`"
    limits = "; ".join([_kind(entry.field.annotation), *_limits(entry.field)])
    change = "hot" if tree.mark(entry.field, "reload") == "hot" else "restart"
    unit = tree.mark(entry.field, "unit") or ""
    cells = (f"`{entry.key}`", default, limits, str(unit), change, entry.field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _item_models(annotation: Any) -> Iterator[tuple[str, list[_Entry]]]:
    """The keys of the items of a list: those that all kinds share, then those of each kind."""
    kinds = tree.models(tree.element(annotation))
    if not kinds:
        return
    shared = [
        entry for entry in _item_entries(kinds[0]) if all(_same(entry, model) for model in kinds[1:]) or len(kinds) == 1
    ]
    yield "Keys of each item:", shared
    if len(kinds) > 1:
        names = {entry.key for entry in shared}
        for model in kinds:
            own = [entry for entry in _item_entries(model) if entry.key not in names]
            yield f"Keys of {_words(model)} besides: {_doc(model)}", own


def _item_entries(model: type[BaseModel], above: str = "") -> Iterator[_Entry]:
    for name, field in model.model_fields.items():
        inner = tree.models(field.annotation)
        key = f"{above}{name}"
        if inner and all(tree.is_model(part) or part is type(None) for part in tree.members(field.annotation)):
            yield from _item_entries(inner[0], f"{key}.")
        else:
            yield _Entry(key, field, _default(field))


def _same(entry: _Entry, model: type[BaseModel]) -> bool:
    return any(
        other.key == entry.key and other.field.description == entry.field.description for other in _item_entries(model)
    )


def _purpose(field: FieldInfo) -> str:
    model: Any = field.annotation
    return _doc(model) if tree.is_model(model) else field.description or ""


def _doc(model: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(model) or model.__name__).split())


def _words(model: type[BaseModel]) -> str:
    """What a file writes for this kind of item, where it says so; else the name of the record."""
    kind = model.model_fields.get("kind")
    words = tree.choices(kind.annotation) if kind is not None else ()
    return f"`kind: {words[0]}`" if len(words) == 1 else model.__name__


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _kind(annotation: Any) -> str:
    words = tree.choices(annotation)
    if words and tree.element(annotation) is None:
        return ("one of " if len(words) > 1 else "always ") + ", ".join(str(word) for word in words)
    names = [_type_name(inner) for inner in tree.members(annotation) if inner is not type(None)]
    text = " or ".join(dict.fromkeys(names))
    return f"{text} or null" if tree.is_optional(annotation) else text


def _type_name(annotation: Any) -> str:
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text", SecretStr: "secret text"}
    if annotation in plain:
        return plain[annotation]
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {_kind(get_args(annotation)[1])}"
    element = tree.element(annotation)
    if element is not None:
        return "list of items" if tree.models(element) else f"list of {_kind(element)}"
    return "keys with values" if tree.is_model(annotation) else "text"


def _limits(field: FieldInfo) -> Iterator[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for constraint in field.metadata:
        for name, sign in signs.items():
            bound = getattr(constraint, name, None)
            if bound is not None:
                yield f"{sign} {bound}"


def _plain(value: Any) -> Any:
    """A default as YAML holds it; of records only what differs from their own defaults."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        shown = {name: (getattr(value, name), field) for name, field in type(value).model_fields.items()}
        return {name: _plain(inner) for name, (inner, field) in shown.items() if inner != _default(field)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        [_plain(value)], default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text.strip()[1:-1]


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
