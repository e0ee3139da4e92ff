"""Reads the text of a definition, YAML or JSON, into plain JSON values with the line and column of each."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from app.definitions.problems import Path, Problem, dotted

MAX_BYTES: Final = 256 << 10
# Aliases may name a node many times; what unfolds to more than this is a mistake or an attack.
MAX_VALUES: Final = 50_000
MAX_DEPTH: Final = 50
_PAIR: Final = re.compile(r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})")


class _Loader(yaml.CSafeLoader):
    """Scalars as JSON and YAML 1.2 have them: `on` and `12:30` are text, a date is text too."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - read by the library


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


@dataclass(slots=True)
class Text:
    """The value of a text, where its parts stand, and what is wrong with the text itself."""

    data: Any = None
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> tuple[int, int]:
        """Line and column of the deepest part of the path that the text has."""
        for end in range(len(path), -1, -1):
            if (mark := self.marks.get(path[:end])) is not None:
                return mark
        return (1, 1) if self.marks else (0, 0)

    def problem(self, path: Path, message: str) -> None:
        """Note what is wrong with a part."""
        self.problems.append(Problem(dotted(path), message, *self.place(path)))


def read_text(content: str | bytes) -> Text:
    """Read YAML or JSON; whatever is wrong becomes a problem, never an exception."""
    text = Text()
    decoded = _decoded(content, text)
    if decoded is None:
        return text
    try:
        if decoded.lstrip()[:1] == "{":
            # Outside of texts JSON may be indented by tabs, within them it has none; YAML knows no such tabs.
            decoded = _PAIR.sub(_paired, decoded.replace("\t", " "))
        if (too_deep := _too_deep(decoded)) is not None:
            text.problems.append(too_deep)
            return text
        node = yaml.compose(decoded, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        text.problems.append(_syntax(error))
        return text
    text.marks[()] = (1, 1)
    if node is None:
        text.problem((), "there is nothing in it")
        return text
    text.data = _Reader(text).value(node, ())
    return text


def _paired(match: re.Match[str]) -> str:
    """What JSON writes as two escapes is one character, which YAML cannot write so."""
    return str(json.loads(f'"{match[0]}"'))


def _too_deep(text: str) -> Problem | None:
    """Looked at before anything is composed: the library composes by recursion and overflows the stack in C."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                return Problem("", f"it is nested deeper than {MAX_DEPTH}", *_mark(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


def _decoded(content: str | bytes, text: Text) -> str | None:
    size = len(content) if isinstance(content, bytes) else len(content.encode(errors="replace"))
    if size > MAX_BYTES:
        text.problems.append(Problem("", f"it has {size} bytes, the most is {MAX_BYTES}"))
        return None
    if isinstance(content, str):
        content = content.encode(errors="surrogatepass")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text.problems.append(Problem("", "it is not UTF-8 text", content.count(b"\n", 0, error.start) + 1, 1))
        return None


class _Reader:
    """Turns nodes into values; one a text."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._values = 0
        self._full = False

    def value(self, node: Node, path: Path, above: tuple[int, ...] = ()) -> Any:
        self._text.marks.setdefault(path, _mark(node))
        self._values += 1
        if self._values > MAX_VALUES:
            if not self._full:
                self._text.problem((), f"it unfolds to more than {MAX_VALUES} values")
            self._full = True
            return None
        if id(node) in above:
            self._text.problem(path, "it refers to itself")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path, (*above, id(node)))
        if isinstance(node, SequenceNode):
            inner = (*above, id(node))
            return [self.value(item, (*path, index), inner) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in self._entries(node, path):
            inner = (*path, key.value)
            if key.value in found:
                line = self._text.marks[inner][0]
                self._text.marks[inner] = _mark(key)
                self._text.problem(inner, f"is given twice, first in line {line}")
                continue
            self._text.marks[inner] = _mark(key)
            found[key.value] = self.value(value, inner, above)
        return found

    def _entries(self, node: MappingNode, path: Path) -> Iterator[tuple[ScalarNode, Node]]:
        """Keys with their values; what `<<` merges comes last and gives way to what is written out."""
        merged: list[tuple[ScalarNode, Node]] = []
        names = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._text.problem(path, f"a key must be text (line {_mark(key)[0]})")
            elif key.value == "<<" and key.style not in {"'", '"'}:
                for part in value.value if isinstance(value, SequenceNode) else [value]:
                    if isinstance(part, MappingNode):
                        merged += [each for each in part.value if isinstance(each[0], ScalarNode)]
                    else:
                        self._text.problem(path, "<< takes an object")
            else:
                names.add(key.value)
                yield key, value
        for key, value in merged:
            if key.value not in names:
                names.add(key.value)
                yield key, value

    def _scalar(self, node: Node, path: Path) -> Any:
        tag, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag == "int":
            number = int(text) if len(text) < 20 else 2**63
            if -(2**63) <= number < 2**63:
                return number
            self._text.problem(path, "the number is too large")
            return 0
        if tag == "float":
            if math.isfinite(value := float(text)):
                return value
            self._text.problem(path, "the number is too large")
            return 0.0
        if tag != "str":
            self._text.problem(path, f"the tag !{tag.removeprefix('!')[:40]} is not known here")
        return text


def _mark(node: Any) -> tuple[int, int]:
    return int(node.start_mark.line) + 1, int(node.start_mark.column) + 1


def _syntax(error: yaml.YAMLError | RecursionError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "cannot be read"
    if isinstance(error, RecursionError):
        problem = "is nested too deep"
    elif "single document" in str(error):
        problem = "holds more than one document"
    elif mark is None:
        problem = " ".join(str(error).split())[:200]
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    return Problem("", f"is not YAML: {problem}", line, column)
