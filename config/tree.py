"""Walks the models of the settings by the path of a key."""

import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]

_SCALARS = (str, int, float, bool, SecretStr, SecretBytes)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One key that holds a value and no further section."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    @property
    def unit(self) -> str | None:
        unit = mark(self.field, "unit")
        return unit if isinstance(unit, str) else None

    @property
    def is_hot(self) -> bool:
        return bool(mark(self.field, "reload") == "hot")


def mark(field: FieldInfo, name: str) -> Any:
    """One of the marks `config.section.setting` puts on a field: unit, reload, secret."""
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, Mapping) else None


def members(annotation: Any) -> Iterator[Any]:
    """The plain types behind `Annotated` and unions."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin is Union or origin is types.UnionType:
        for inner in get_args(annotation):
            yield from members(inner)
    else:
        yield annotation


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def models(annotation: Any) -> list[type[BaseModel]]:
    """The models a value of this type may be."""
    return [inner for inner in members(annotation) if is_model(inner)]


def element(annotation: Any) -> Any | None:
    """The type of the items of a list or of the values of a mapping; None for anything else."""
    for inner in members(annotation):
        origin, args = get_origin(inner), get_args(inner)
        if isinstance(origin, type) and issubclass(origin, Mapping) and args:
            return args[1]
        if isinstance(origin, type) and issubclass(origin, Collection) and args:
            return args[0]
    return None


def is_mapping(annotation: Any) -> bool:
    return any(_is_a(inner, Mapping) for inner in members(annotation))


def is_sequence(annotation: Any) -> bool:
    return any(_is_a(inner, Sequence) and inner is not str for inner in members(annotation))


def is_optional(annotation: Any) -> bool:
    return any(inner is type(None) for inner in members(annotation))


def is_secret(field: FieldInfo) -> bool:
    if mark(field, "secret"):
        return True
    return any(inner in (SecretStr, SecretBytes) for inner in members(field.annotation))


def is_scalar(annotation: Any) -> bool:
    """True when a value of this type is written as one word of text."""
    return not any(
        is_model(inner) or _is_a(inner, Mapping) or (_is_a(inner, Collection) and not _is_text(inner))
        for inner in members(annotation)
    )


def is_number(annotation: Any) -> bool:
    """True for numbers that are not also switches."""
    plain = [inner for inner in members(annotation) if inner is not type(None)]
    return bool(plain) and all(inner in (int, float) for inner in plain)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The words of a `Literal`."""
    return tuple(word for inner in members(annotation) if get_origin(inner) is Literal for word in get_args(inner))


def find(root: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field a path ends in; None when there is none or the path ends inside a list or mapping."""
    annotation: Any = root
    field: FieldInfo | None = None
    for part in path:
        field = _field(annotation, part)
        annotation = field.annotation if field else element(annotation)
        if annotation is None:
            return None
    return field


def keys_at(root: type[BaseModel], path: Path) -> list[str]:
    """The keys that are known at a path; empty where any key goes."""
    annotation: Any = root
    for part in path:
        field = _field(annotation, part)
        annotation = field.annotation if field else element(annotation)
    return [name for model in models(annotation) for name in model.model_fields]


def leaves(root: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every key of the settings, in the order of the models."""
    for name, field in root.model_fields.items():
        inner: Any = field.annotation
        if is_model(inner):
            yield from leaves(inner, (*above, name))
        else:
            yield Leaf((*above, name), field)


def value_at(settings: BaseModel, path: Sequence[str]) -> Any:
    value: Any = settings
    for part in path:
        value = getattr(value, part)
    return value


def dotted(path: Path) -> str:
    """`("sinks", "targets", 0, "url")` as `sinks.targets[0].url`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _field(annotation: Any, part: str | int) -> FieldInfo | None:
    for model in models(annotation):
        if isinstance(part, str) and part in model.model_fields:
            return model.model_fields[part]
    return None


def _is_a(annotation: Any, kind: type) -> bool:
    plain = get_origin(annotation) or annotation
    return isinstance(plain, type) and issubclass(plain, kind)


def _is_text(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, _SCALARS)
