"""Turns environment variables, secret files and `key=value` flags into values by path."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel

from config import tree

PREFIX = "HEADRACE_"
NESTED = "__"
CONFIG_FILE = "HEADRACE_CONFIG"
SECRETS_DIR = "HEADRACE_SECRETS_DIR"
# Secrets of workflow tasks: read when a task names them, never settings.
TASK_SECRET = "HEADRACE_SECRET_"  # noqa: S105 - the beginning of a variable's name
# How the supervisor of `headrace up` speaks to its children: facts of a start, not settings.
_SUPERVISED = frozenset(
    {"HEADRACE_ANNOUNCE_FD", "HEADRACE_BEATS_FD", "HEADRACE_SUPERVISOR_PID", "HEADRACE_SUPERVISOR_URL"}
)
RESERVED = frozenset({CONFIG_FILE, SECRETS_DIR}) | _SUPERVISED

# Names that other tools agree on; an empty value counts as not given, as compose files pass it so.
ALIASES = {
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.bootstrap_servers",
    "POD_NAME": "log.pod",
    "POD_NAMESPACE": "log.namespace",
}

# Kubernetes adds these to every pod beside a Service called headrace or headrace-…
_SERVICE_LINK = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)")


@dataclass(slots=True)
class Layer:
    """Values of one source as nested mappings, where each came from, and what is wrong."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[tree.Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        inner = self.data
        for part in path[:-1]:
            below = inner.setdefault(part, {})
            if not isinstance(below, dict):
                self.problems.append(f"{origin}: {tree.dotted(path)}: its section is set as a whole elsewhere")
                return
            inner = below
        inner[path[-1]] = value
        self._note(path, value, origin)

    def _note(self, path: tree.Path, value: Any, origin: str) -> None:
        self.origins[path] = origin
        if isinstance(value, dict):
            for key, inner in value.items():
                self._note((*path, key), inner, origin)


def from_environ(root: type[BaseModel], environ: Mapping[str, str]) -> Layer:
    """`HEADRACE_PRODUCER__BATCH_SIZE=500` and the aliases; unknown names with our prefix are problems."""
    layer = Layer()
    for name in sorted(environ):
        if name in ALIASES and environ[name]:
            _put(root, layer, ALIASES[name], environ[name], name)
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in RESERVED or name.startswith(TASK_SECRET):
            continue
        rest = name.removeprefix(PREFIX)
        if NESTED not in rest and _SERVICE_LINK.fullmatch(rest):
            continue
        _put(root, layer, rest.lower().replace(NESTED, "."), environ[name], name)
    return layer


def from_flags(root: type[BaseModel], flags: Iterable[str]) -> Layer:
    """`producer.batch_size=500`, as `--set` takes it."""
    layer = Layer()
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not equals:
            layer.problems.append(f"--set {flag}: expected section.key=value")
            continue
        _put(root, layer, name.strip(), value, f"--set {name.strip()}")
    return layer


def from_values(values: Mapping[str, Any], origin: str) -> Layer:
    """Values a command gives by dotted name; None means not given."""
    layer = Layer()
    for name, value in values.items():
        if value is not None:
            layer.put(tuple(name.split(".")), value, origin)
    return layer


def from_secrets(root: type[BaseModel], directory: FilePath) -> Layer:
    """Files named `section__key`, one secret each; names without `__` belong to somebody else."""
    layer = Layer()
    try:
        files = sorted(entry for entry in directory.iterdir() if NESTED in entry.name and entry.is_file())
    except OSError as error:
        layer.problems.append(f"{directory}: the folder of secrets cannot be read: {error.strerror or error}")
        return layer
    for file in files:
        name = file.name.lower().removeprefix(PREFIX.lower()).replace(NESTED, ".")
        text = read_secret(file, str(file), layer.problems)
        if text is not None:
            _put(root, layer, name, text, str(file))
    return layer


def read_secret(file: FilePath, origin: str, problems: list[str]) -> str | None:
    """The text of a secret file without the line break at its end."""
    try:
        return file.expanduser().read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        problems.append(f"{origin}: the secret file is not UTF-8 text")
    except OSError as error:
        problems.append(f"{origin}: the secret file {file} cannot be read: {error.strerror or error}")
    return None


def resolve_secret_files(root: type[BaseModel], layer: Layer) -> list[FilePath]:
    """Replace each `<secret>_file` in a layer by the text of that file; return the files read."""
    files: list[FilePath] = []
    for path, holder in list(_mappings(layer.data, ())):
        for key in [name for name in holder if isinstance(name, str) and name.endswith("_file")]:
            secret = key.removesuffix("_file")
            target = tree.find(root, (*path, secret))
            if target is None or not tree.is_secret(target) or tree.find(root, (*path, key)) is not None:
                continue
            origin = layer.origins.get((*path, key), "flag")
            where = f"{origin}: {tree.dotted((*path, key))}"
            named = holder.pop(key)
            if secret in holder:
                layer.problems.append(f"{where}: {secret} is given as well; keep one of the two")
            elif not isinstance(named, str):
                layer.problems.append(f"{where}: expected the path of a file")
            else:
                file = FilePath(named)
                holder[secret] = read_secret(file, where, layer.problems)
                layer.origins[(*path, secret)] = f"{origin} ({file})"
                files.append(file)
                if holder[secret] is None:
                    del holder[secret]
    return files


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'batch_size'?` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def variable(path: tuple[str, ...]) -> str:
    """The environment variable of a key."""
    return PREFIX + NESTED.join(path).upper()


def _put(root: type[BaseModel], layer: Layer, name: str, value: str, origin: str) -> None:
    path = tuple(name.split("."))
    annotation = _target(root, path)
    if annotation is None:
        layer.problems.append(f"{origin}: {_unknown(root, path, is_variable=origin.startswith(PREFIX))}")
        return
    try:
        layer.put(path, _decode(annotation, value), origin)
    except ValueError:
        layer.problems.append(f"{origin}: {name}: expected JSON, as in '[1, 2]' or '{{\"a\": 1}}'")


def _target(root: type[BaseModel], path: tuple[str, ...]) -> Any | None:
    """The type a path leads to; `str` for a `<secret>_file`; None when it leads nowhere."""
    annotation: Any = root
    for index, part in enumerate(path):
        if tree.models(annotation):
            field_ = tree.find(root, path[: index + 1])
            if field_ is None and part.endswith("_file") and index == len(path) - 1:
                secret = tree.find(root, (*path[:index], part.removesuffix("_file")))
                return str if secret is not None and tree.is_secret(secret) else None
            annotation = field_.annotation if field_ else None
        elif tree.is_mapping(annotation):
            annotation = tree.element(annotation)
        else:
            return None
        if annotation is None:
            return None
    return annotation


def _decode(annotation: Any, value: str) -> Any:
    if tree.is_scalar(annotation):
        return None if value in ("", "null") and tree.is_optional(annotation) else value
    element = tree.element(annotation)
    if tree.is_sequence(annotation) and not value.lstrip().startswith("[") and tree.is_scalar(element):
        return [part.strip() for part in value.split(",") if part.strip()]
    return json.loads(value)


def _unknown(root: type[BaseModel], path: tuple[str, ...], *, is_variable: bool) -> str:
    known = {leaf.dotted: leaf.path for leaf in tree.leaves(root)}
    close = difflib.get_close_matches(tree.dotted(path), known, n=1)
    near = variable(known[close[0]]) if close and is_variable else "".join(close)
    return "no setting has this name" + (f"; did you mean '{near}'?" if near else "")


def _mappings(value: Any, path: tree.Path) -> Iterable[tuple[tree.Path, dict[Any, Any]]]:
    if isinstance(value, dict):
        yield path, value
        for key, inner in list(value.items()):
            yield from _mappings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _mappings(inner, (*path, index))
