"""Reads a YAML file into plain values, with the line of each key and every problem at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from config.tree import Path, dotted

MAX_BYTES = 4 << 20
# Aliases may name a node many times; a file that unfolds to more than this is a mistake or an attack.
MAX_NODES = 100_000


@dataclass(slots=True)
class Document:
    """The values of a file, the line of each path, and what is wrong with the file itself."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    content: bytes = b""

    def where(self, path: Path) -> str:
        """`file:line` of the deepest part of the path that the file has."""
        for end in range(len(path), 0, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return f"{self.name}:{line}"
        return f"{self.name}:1"


def read_file(path: FilePath) -> Document:
    """Read one file; whatever is wrong with it becomes a problem of the document, never an exception."""
    name = str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Document(name, problems=[f"{name}: there is no such file"])
    except OSError as error:
        return Document(name, problems=[f"{name}: cannot be read: {error.strerror or error}"])
    if len(content) > MAX_BYTES:
        return Document(name, problems=[f"{name}: is larger than {MAX_BYTES >> 20} MiB"], content=content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Document(name, problems=[f"{name}:{line}: is not UTF-8 text"], content=content)
    document = read_text(text, name)
    document.content = content
    return document


def read_text(text: str, name: str) -> Document:
    """Read YAML text; `name` is the file as it is shown in problems."""
    document = Document(name)
    try:
        loader = yaml.SafeLoader(text)
        try:
            _read(loader, document)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        document.problems.append(_syntax(error, name))
        document.data = {}
    return document


def _read(loader: yaml.SafeLoader, document: Document) -> None:
    node = loader.get_single_node()
    if node is None or (isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        return
    if not isinstance(node, MappingNode):
        document.problems.append(f"{document.name}:{_line(node)}: expected sections, each with keys and values")
        return
    document.problems.extend(f"{document.name}:{line}: {text}" for line, text in _flaws(node))
    if document.problems:
        return
    document.data = loader.construct_document(node)
    # After the construction, because that has put the keys merged by `<<` in their place.
    document.lines = dict(_lines(node, ()))


def _flaws(root: Node) -> Iterator[tuple[int, str]]:
    """Duplicate keys, keys that are no text, and structures without an end."""
    budget = [MAX_NODES]

    def visit(node: Node, path: Path, above: tuple[int, ...]) -> Iterator[tuple[int, str]]:
        budget[0] -= 1
        if budget[0] == 0:
            yield _line(root), f"unfolds to more than {MAX_NODES} values"
        if budget[0] <= 0:
            return
        if id(node) in above:
            yield _line(node), f"{dotted(path)}: refers to itself"
        elif isinstance(node, MappingNode):
            yield from mapping(node, path, (*above, id(node)))
        elif isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                yield from visit(item, (*path, index), (*above, id(node)))

    def mapping(node: MappingNode, path: Path, above: tuple[int, ...]) -> Iterator[tuple[int, str]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                yield _line(key), f"{dotted(path) or 'file'}: a key must be text"
                continue
            inner = (*path, key.value)
            if key.value in seen:
                yield _line(key), f"{dotted(inner)}: is given twice, first in line {seen[key.value]}"
            seen[key.value] = _line(key)
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                yield _line(key), f'{dotted(inner)}: a key must be text; write "{key.value}" in quotes'
            yield from visit(value, inner, above)

    yield from visit(root, (), ())


def _lines(node: Node, path: Path) -> Iterator[tuple[Path, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            yield inner, _line(key)
            yield from _lines(value, inner)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), _line(item)
            yield from _lines(item, (*path, index))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f"{name}: is not YAML: {' '.join(str(error).split())}"
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "cannot be read"
    if "expected a single document" in str(error):
        problem = "holds more than one document"
    return f"{name}:{mark.line + 1}: is not YAML: {problem}"
