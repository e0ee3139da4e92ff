"""Builds the settings from flags, environment, secret files and YAML, and tells where each value came from."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from app.errors import ConfigError
from config import environment, tree
from config.problems import data_path, root_causes, sentence
from config.redact import REDACTED, redact_entry
from config.settings import Settings
from config.yaml_file import Document, read_file

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with the origin of each value that is not a default, and the files and folders that were read.

    `again` reads the same sources anew (and raises `ConfigError`).
    """

    settings: Settings
    origins: Mapping[tree.Path, str]
    file: Path | None
    files: tuple[Path, ...]
    again: Callable[[], "Loaded"] = field(repr=False, compare=False)

    def origin(self, path: tree.Path) -> str:
        """`default`, `file:line`, a secret file, an environment variable or a flag."""
        if path in self.origins:
            return self.origins[path]
        inside = dict.fromkeys(origin for at, origin in self.origins.items() if at[: len(path)] == path)
        return ", ".join(inside) or DEFAULT


def load(
    file: Path | str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Loaded:
    """Merge defaults < file < secrets folder < environment < flags, validate the whole, refuse all problems at once.

    `file` is the `--config` of a command, else HEADRACE_CONFIG; `environ` is the process's own when
    not given; `flags` are `section.key=value` texts; `values` map dotted names to what a command's
    own options gave (None: not given). Raises `ConfigError`.
    """
    environ = os.environ if environ is None else environ
    named = file or environ.get(environment.CONFIG_FILE) or None
    path = Path(named).expanduser() if named else None
    document = read_file(path) if path else Document("")
    layers = _layers(document, environ, flags, values or {})
    secrets = environ.get(environment.SECRETS_DIR)
    files = [*([path] if path else []), *([Path(secrets).expanduser()] if secrets else [])]
    for layer in layers:
        files += environment.resolve_secret_files(Settings, layer)
    problems = [*document.problems, *(problem for layer in layers for problem in layer.problems)]
    merged = environment.Layer()
    for layer in layers:
        _merge(merged.data, layer.data, layer.origins, merged.origins, ())
    settings, invalid = _validate(merged, document)
    if settings is None or problems:
        raise ConfigError(sorted({*problems, *invalid}, key=_order))
    again = functools.partial(load, file, environ=dict(environ), flags=flags, values=values)
    return Loaded(settings, dict(merged.origins), path, tuple(files), again)


def effective(settings: BaseModel) -> dict[str, Any]:
    """The settings as plain values for people to see; secrets are `[REDACTED]`."""
    return {name: _plain(name, getattr(settings, name), spec) for name, spec in type(settings).model_fields.items()}


def fingerprint(settings: BaseModel) -> str:
    """SHA-256 (hex) of the effective values without secrets: equal on every machine for equal settings."""
    return hashlib.sha256(orjson.dumps(effective(settings), option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


def origins(loaded: Loaded) -> dict[str, str]:
    """The origin of each key by its dotted name."""
    return {leaf.dotted: loaded.origin(leaf.path) for leaf in tree.leaves(Settings)}


def _layers(
    document: Document, environ: Mapping[str, str], flags: Sequence[str], values: Mapping[str, Any]
) -> list[environment.Layer]:
    """From the weakest to the strongest."""
    layers = [_from_document(document)]
    secrets = environ.get(environment.SECRETS_DIR)
    if secrets:
        layers.append(environment.from_secrets(Settings, Path(secrets).expanduser()))
    layers.append(environment.from_environ(Settings, environ))
    layers.append(environment.from_flags(Settings, flags))
    layers.append(environment.from_values(values, "flag"))
    return layers


def _from_document(document: Document) -> environment.Layer:
    layer = environment.Layer(data=document.data)
    for name, spec in Settings.model_fields.items():
        value = document.data.get(name)
        if name in document.data and tree.is_model(spec.annotation) and not isinstance(value, dict):
            # A section whose keys are all commented out reads as null: nothing is set.
            if value is not None:
                layer.problems.append(f"{document.where((name,))}: {name}: expected keys with values")
            del document.data[name]
    layer.origins = {path: f"{document.name}:{line}" for path, line in document.lines.items()}
    return layer


def _merge(
    under: dict[str, Any],
    over: Mapping[str, Any],
    over_origins: Mapping[tree.Path, str],
    merged: dict[tree.Path, str],
    path: tree.Path,
) -> None:
    for key, value in over.items():
        at = (*path, key)
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value, over_origins, merged, at)
            continue
        for known in [known for known in merged if known[: len(at)] == at]:
            del merged[known]
        merged.update({known: origin for known, origin in over_origins.items() if known[: len(at)] == at})
        under[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _validate(merged: environment.Layer, document: Document) -> tuple[Settings | None, list[str]]:
    try:
        return Settings(**merged.data), []
    except ValidationError as error:
        found: dict[tuple[str, str], list[str]] = {}
        for detail in root_causes(error.errors(include_url=False)):
            path = data_path(merged.data, detail["loc"])
            where = next(
                (merged.origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in merged.origins),
                document.name or DEFAULT,
            )
            sentences = found.setdefault((where, tree.dotted(path)), [])
            text = sentence(Settings, path, detail)
            if text not in sentences:
                sentences.append(text)
        return None, [_line(where, path, sentences) for (where, path), sentences in found.items()]


def _order(problem: str) -> tuple[str, int, str]:
    """By file, line and text; environment and flags by their names."""
    file, _, rest = problem.partition(":")
    line = rest.partition(":")[0]
    return file, int(line) if line.isdigit() else 0, problem


def _line(where: str, path: str, sentences: list[str]) -> str:
    return ": ".join(part for part in (where, path, " or ".join(sentences)) if part)


def _plain(name: str, value: Any, spec: Any = None) -> Any:
    if isinstance(value, BaseModel):
        return effective(value)
    if isinstance(value, SecretStr | SecretBytes):
        return REDACTED if value.get_secret_value() else ""
    if spec is not None and tree.mark(spec, "secret"):
        return REDACTED if value else value
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(name, inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact_entry(name, str(value))
