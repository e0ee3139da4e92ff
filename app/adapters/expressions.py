"""Expressions of workflows: CEL for conditions, and texts with `${…}` in them for the parameters of tasks."""

import functools
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from app.adapters.cel_plan import Budget, Plan, compiled, plain
from app.domain.workflow.expressions import ExpressionError

SECRET: Final = "secret:"  # noqa: S105 - how a reference to a secret begins
MAX_PROGRAMS: Final = 4096
_MAX_TEMPLATES: Final = 4096
_MAX_SHOWN: Final = 80


class Hole(NamedTuple):
    """`${source}` within a text; `start` is where its dollar stands."""

    source: str
    start: int

    @property
    def is_secret(self) -> bool:
        """A reference to a secret, which is resolved only where the task runs."""
        return self.source.strip().startswith(SECRET)


class CelExpressions:
    """Implements `app.domain.workflow.expressions.Expressions`; programs are compiled once and kept, so many at most.

    An expression that would take long is refused (see `cel_plan`), never begun.
    """

    def __init__(self, max_programs: int = MAX_PROGRAMS) -> None:
        self._plan = functools.lru_cache(maxsize=max_programs)(_compiled)
        self._split = functools.lru_cache(maxsize=_MAX_TEMPLATES)(split)

    def evaluate(self, source: str, names: Mapping[str, Any]) -> Any:
        """The value of `source` as plain JSON. Raises `ExpressionError`."""
        plan = self._plan(source)
        if isinstance(plan, str):
            raise ExpressionError(f"{_shown(source)}: {plan}")
        try:
            value = plan.value(names, Budget())
            return value if plan.path is not None else plain(value)
        except ExpressionError as error:
            raise ExpressionError(f"{_shown(source)}: {error}") from error

    def render(self, params: Any, names: Mapping[str, Any]) -> Any:
        """`params` with every `${expression}` in its texts replaced, `$${` by `${`. Raises `ExpressionError`."""
        if isinstance(params, str):
            return self._text(params, names) if "${" in params else params
        if isinstance(params, Mapping):
            return {key: self.render(value, names) for key, value in params.items()}
        if isinstance(params, list | tuple):
            return [self.render(value, names) for value in params]
        return params

    def _text(self, text: str, names: Mapping[str, Any]) -> Any:
        try:
            parts = self._split(text)
        except ValueError as error:
            raise ExpressionError(f"{_shown(text)}: {error}") from error
        if len(parts) == 1 and isinstance(parts[0], Hole) and not parts[0].is_secret:
            return self.evaluate(parts[0].source, names)
        return "".join(part if isinstance(part, str) else self._written(part, names) for part in parts)

    def _written(self, hole: Hole, names: Mapping[str, Any]) -> str:
        if hole.is_secret:
            return f"${{{hole.source}}}"
        value = self.evaluate(hole.source, names)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def program(source: str) -> Plan:
    """Compiled anew, to look at what it reads. Raises ValueError with one sentence."""
    return compiled(source)


def _compiled(source: str) -> Plan | str:
    """Or why it cannot be: that is remembered too."""
    try:
        return compiled(source)
    except ValueError as error:
        return str(error)


def split(text: str) -> tuple[str | Hole, ...]:
    """A text in its literal parts and its holes. Raises ValueError for a hole that is never closed."""
    parts: list[str | Hole] = []
    literal: list[str] = []
    at = 0
    while (found := text.find("${", at)) >= 0:
        if found > at and text[found - 1] == "$":
            literal.append(text[at : found - 1] + "${")
            at = found + 2
            continue
        literal.append(text[at:found])
        end = _close(text, found + 2)
        if joined := "".join(literal):
            parts.append(joined)
        literal.clear()
        parts.append(Hole(text[found + 2 : end], found))
        at = end + 1
    literal.append(text[at:])
    if joined := "".join(literal):
        parts.append(joined)
    return tuple(parts)


def holes(text: str) -> list[Hole]:
    """The holes of a text. Raises ValueError for one that is never closed."""
    return [part for part in split(text) if isinstance(part, Hole)]


def _close(text: str, at: int) -> int:
    """Where the brace stands that closes the hole whose inside begins at `at`; braces within quotes do not count."""
    begin, depth, quote = at, 0, ""
    while at < len(text):
        char = text[at]
        if quote:
            if char == "\\":
                at += 1
            elif text.startswith(quote, at):
                at += len(quote)
                quote = ""
                continue
        elif char in "\"'":
            quote = char * 3 if text.startswith(char * 3, at) else char
            at += len(quote)
            continue
        elif char == "{":
            depth += 1
        elif char == "}":
            if depth == 0:
                return at
            depth -= 1
        at += 1
    raise ValueError(f"the ${{ at character {begin - 1} is never closed")


def _shown(source: str) -> str:
    flat = " ".join(source.split())
    return flat if len(flat) <= _MAX_SHOWN else f"{flat[: _MAX_SHOWN - 1]}…"
