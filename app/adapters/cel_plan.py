"""Carries out one CEL expression at a bounded cost: comprehensions element by element, values weighed first.

Costs are estimates in nanoseconds, from measurements on two cores with `cel` 0.10: 1,000 for each value handed over
(that of a row's field; a number of a list takes 80), 150 more for each place it is read at, 25 for each that a `+`
copies, and a step of the library's regular expressions 10, of which those with large counts take one for each state
and character. `BUDGET_NS` holds for one evaluation with all its comprehensions; what would cost more is refused
before it is begun, so that the real time stays below about 50 ms.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import cel

from app.adapters import cel_source
from app.domain.workflow.expressions import ExpressionError

MAX_SOURCE_CHARS: Final = 1024
MAX_COMPREHENSIONS: Final = 8
MAX_NESTING: Final = 2
_MAX_SIZES: Final = 8
MAX_DEPTH: Final = 100  # of a value; the library converts by recursion and overflows the stack at about 20,000
BUDGET_NS: Final = 60_000_000
MAX_VALUES: Final = BUDGET_NS // 1_000
_TOO_COSTLY: Final = "the expression would take too long over this much data: select less of it"
_SCALARS: Final = frozenset({type(None), str, bool, int})
_NESTING: Final = frozenset({dict, list, tuple})
_EXECUTION_NS: Final = 5_000
_MAX_PATTERN_CHARS: Final = 100
_MAX_REPEATS: Final = 100
_CLASS_NS: Final = 300_000  # a Unicode class (\w) is compiled at every call

_REPEAT: Final = re.compile(r"\{\d*,?(\d*)\}|\{(\d+)\}")
_CLASS: Final = re.compile(r"\\[wWdDsSbBpP]")
_SYNTAX: Final = re.compile(r"ERROR: <input>:\d+:(\d+): (?:Syntax error: )?(.*)")
FUNCTIONS: Final = frozenset(
    {
        *("size", "contains", "startsWith", "endsWith", "matches", "has", "int", "uint", "double", "string", "bytes"),
        *("timestamp", "duration", "type", "dyn", "optional", "of", "none", "hasValue", "value", "orValue", "or"),
        *("getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"),
        *("getHours", "getMinutes", "getSeconds", "getMilliseconds"),
    }
)


class TooCostly(ExpressionError):
    """The expression would take too long over this much data."""


class Budget:
    """What one evaluation may still cost."""

    __slots__ = ("left_ns",)

    def __init__(self, nanoseconds: int = BUDGET_NS) -> None:
        self.left_ns = nanoseconds

    def spend(self, nanoseconds: float) -> None:
        self.left_ns -= int(nanoseconds)
        if self.left_ns < 0:
            raise TooCostly(_TOO_COSTLY)


class _Read(NamedTuple):
    """A name, and the paths below it that are read; an empty path is the whole value."""

    name: str
    paths: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Size:
    hole: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fold:
    hole: str
    macro: str
    receiver: "Plan"
    variable: str
    arguments: tuple["Plan", ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled expression. `names` are those it reads, `paths` with the fields that follow them."""

    source: str
    names: frozenset[str]
    paths: frozenset[tuple[str, ...]]
    functions: frozenset[str]
    path: tuple[str, ...] | None
    steps: tuple[_Size | _Fold, ...]
    reads: tuple[_Read, ...]
    execute: Callable[[Mapping[str, Any]], Any]
    places: int
    sums: int
    patterns: tuple[str, ...]

    def value(self, scope: Mapping[str, Any], budget: Budget) -> Any:
        """What it comes to. Raises `ExpressionError`."""
        if self.path is not None:
            budget.spend(_EXECUTION_NS)
            return _followed(self.path, scope)
        failures: dict[str, ExpressionError] | None = None
        if self.steps:
            scope, failures = self._stepped(scope, budget)
        values = {}
        for read in self.reads:
            if read.name in scope:
                values[read.name] = _pruned(read, scope)
        budget.spend(self._cost_ns(values))
        try:
            return self.execute(values)
        except Exception as error:  # the library raises six unrelated builtin types
            said = str(error)
            for hole, cause in (failures or {}).items():
                if hole in said:
                    raise cause from error
            raise ExpressionError(_sentence(error)) from error

    def _stepped(self, scope: Mapping[str, Any], budget: Budget) -> tuple[dict[str, Any], dict[str, ExpressionError]]:
        """The scope with what is computed beforehand, and what failed of it: that may be in a branch not taken."""
        scope, failures = dict(scope), {}
        for step in self.steps:
            try:
                scope[step.hole] = _carry_out(step, scope, budget)
            except TooCostly:
                raise
            except ExpressionError as error:
                failures[step.hole] = error
        return scope, failures

    def _cost_ns(self, values: dict[str, Any]) -> float:
        count, chars = weight(values)
        cost = _EXECUTION_NS + count * (1_000 + 150 * self.places) + chars * (1 + self.places) * 0.1
        if self.sums:
            # a + b + c copies what it has so far at every sign
            cost += (self.sums + 1) ** 2 / 2 * (25 * count + chars)
        for pattern in self.patterns:
            repeats = _repeats(pattern)
            text = (chars + 100) * (self.sums + 1)
            cost += 20_000 + len(_CLASS.findall(pattern)) * repeats * _CLASS_NS + len(pattern) * repeats * text * 10
        return cost


def compiled(source: str) -> Plan:
    """Compile a source. Raises ValueError with one sentence."""
    if len(source) > MAX_SOURCE_CHARS:
        raise ValueError(f"the expression has {len(source)} characters, the most is {MAX_SOURCE_CHARS}")
    if not source.strip():
        raise ValueError("the expression is empty")
    _compile(source)  # for the library's own words on what is wrong with it
    return _Compiler().plan(source, 0)


def weight(value: Any, depth: int = 0) -> tuple[int, int]:
    """How many values a value is made of, and of how many characters its texts."""
    kind = type(value)
    if kind is str:
        return 1, len(value)
    if kind not in _NESTING:
        return 1, 0
    if depth > MAX_DEPTH:
        raise ExpressionError(f"a value is nested deeper than {MAX_DEPTH}")
    count, chars = 1 + len(value), 0
    if count > MAX_VALUES:
        raise TooCostly(_TOO_COSTLY)
    for item in value.values() if kind is dict else value:
        kind = type(item)
        if kind is str:
            chars += len(item)
        elif kind in _NESTING:
            more, longer = weight(item, depth + 1)
            count, chars = count + more - 1, chars + longer
            if count > MAX_VALUES:
                raise TooCostly(_TOO_COSTLY)
    return count, chars


def plain(value: Any) -> Any:
    """A result as JSON has it: instants as ISO 8601, durations as seconds. Raises `ExpressionError`."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, float):
        if value - value != 0:
            raise ExpressionError("the result is not a finite number")
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise ExpressionError(f"the result is of the type {type(value).__name__}, which JSON does not have")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise ExpressionError(f"the result has the key {key!r}: keys must be text")


class _Compiler:
    """Counts the comprehensions of one source while it takes them out."""

    def __init__(self) -> None:
        self._holes = 0
        self._comprehensions = 0

    def plan(self, source: str, nesting: int, bound: frozenset[str] = frozenset()) -> Plan:
        """`bound` are the variables of the comprehensions around it, and holes."""
        steps: list[_Size | _Fold] = []
        rest, holes = source, set(bound)
        while (found := cel_source.first_comprehension(rest, _tokens(rest, holes))) is not None:
            step = self._fold(found, nesting, frozenset(holes))
            steps.append(step)
            holes.add(step.hole)
            rest = rest[: found.start] + step.hole + rest[found.end :]
        for _ in range(_MAX_SIZES):  # the library takes the rest, at the price of handing whole values over
            if (sized := cel_source.first_size(_tokens(rest, holes))) is None:
                break
            hole = self._hole()
            steps.append(_Size(hole, sized.path))
            holes.add(hole)
            rest = rest[: sized.start] + hole + rest[sized.end :]
        return self._assembled(source, rest, tuple(steps), frozenset(holes))

    def _fold(self, found: cel_source.Comprehension, nesting: int, holes: frozenset[str]) -> _Fold:
        self._comprehensions += 1
        if self._comprehensions > MAX_COMPREHENSIONS:
            raise ValueError(f"the expression has more than {MAX_COMPREHENSIONS} comprehensions (map, filter, all, …)")
        if nesting >= MAX_NESTING:
            raise ValueError(f"comprehensions are nested more than {MAX_NESTING} deep")
        receiver = self.plan(found.receiver, nesting, holes)
        inside = tuple(self.plan(one, nesting + 1, holes) for one in found.arguments)
        return _Fold(self._hole(), found.macro, receiver, found.variable, inside)

    def _hole(self) -> str:
        self._holes += 1
        return f"{cel_source.HOLE}{self._holes}_"

    def _assembled(self, source: str, rest: str, steps: tuple[_Size | _Fold, ...], holes: frozenset[str]) -> Plan:
        tokens = _tokens(rest, holes)
        program = _compile(rest)
        found = cel_source.paths_of(tokens)
        hidden = set(program.variables()) - {path[0] for path in found}
        if hidden or "@not_strictly_false" in program.functions():  # the library sees what the tokens do not show
            raise ValueError("the expression is written in a way that cannot be bounded")
        below: dict[str, set[tuple[str, ...]]] = {}
        for path in found:
            below.setdefault(path[0], set()).add(path[1:])
        paths = {path for path in found if path[0] not in holes}
        called = {name for name in program.functions() if name.isidentifier()}
        for step in steps:
            if isinstance(step, _Size):
                paths.add(step.path)
            else:
                paths |= step.receiver.paths
                for inside in step.arguments:
                    paths |= {path for path in inside.paths if path[0] != step.variable}
                called |= step.receiver.functions.union(*(inside.functions for inside in step.arguments))
        paths = {path for path in paths if not path[0].startswith(cel_source.HOLE)}
        return Plan(
            source=source,
            names=frozenset(path[0] for path in paths),
            paths=frozenset(paths),
            functions=frozenset(called),
            path=cel_source.plain_path(tokens) if not steps else None,
            steps=steps,
            reads=tuple(_Read(name, _shortest(under)) for name, under in sorted(below.items())),
            execute=program.execute,
            places=len(found),
            sums=sum(token.text == "+" for token in tokens),
            patterns=tuple(_pattern(text) for text in cel_source.patterns_of(tokens)),
        )


def _tokens(source: str, holes: Iterable[str]) -> list[cel_source.Token]:
    return cel_source.tokens_of(source, frozenset(holes))


def _compile(source: str) -> Any:
    try:
        return cel.compile(source)
    except ValueError as error:
        raise ValueError(_sentence(error)) from error


def _shortest(paths: set[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Without those that another one includes."""
    return tuple(
        sorted(path for path in paths if not any(path[:cut] in paths for cut in range(len(path)))),
    )


def _pattern(text: str | None) -> str:
    """Raises ValueError for a regular expression whose cost cannot be known or is too much."""
    if text is None:
        raise ValueError("the pattern of matches must be a text written out")
    if len(text) > _MAX_PATTERN_CHARS:
        raise ValueError(f"the pattern of matches has {len(text)} characters, the most is {_MAX_PATTERN_CHARS}")
    if _repeats(text) > _MAX_REPEATS:
        raise ValueError(f"the pattern of matches repeats more than {_MAX_REPEATS} times")
    return text


def _repeats(pattern: str) -> int:
    product = 1
    for bounds in _REPEAT.finditer(pattern):
        product *= max([1, *(int(number) for number in re.findall(r"\d+", bounds[0]))])
    return product


def _carry_out(step: _Size | _Fold, scope: Mapping[str, Any], budget: Budget) -> Any:
    if isinstance(step, _Size):
        value = _followed(step.path, scope)
        if isinstance(value, str | list | dict | tuple):
            return len(value)
        raise ExpressionError(f"{'.'.join(step.path)} has no size: it is {_named(value)}")
    items = step.receiver.value(scope, budget)
    if isinstance(items, dict):
        items = list(items)
    if not isinstance(items, list | tuple):
        raise ExpressionError(f"{step.macro} needs a list, not {_named(items)}")
    return _FOLDS[step.macro](step, items, dict(scope), budget)


def _all(step: _Fold, items: Iterable[Any], scope: dict[str, Any], budget: Budget) -> bool:
    return not _any(step, items, scope, budget, wanted=False)


def _exists(step: _Fold, items: Iterable[Any], scope: dict[str, Any], budget: Budget) -> bool:
    return _any(step, items, scope, budget, wanted=True)


def _any(step: _Fold, items: Iterable[Any], scope: dict[str, Any], budget: Budget, *, wanted: bool) -> bool:
    """One that is found outweighs those that fail, as in && and ||."""
    failed: ExpressionError | None = None
    for item in items:
        try:
            if _truth(step, item, scope, budget) is wanted:
                return True
        except TooCostly:
            raise
        except ExpressionError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return False


def _exists_one(step: _Fold, items: Iterable[Any], scope: dict[str, Any], budget: Budget) -> bool:
    return sum(_truth(step, item, scope, budget) for item in items) == 1


def _filter(step: _Fold, items: Iterable[Any], scope: dict[str, Any], budget: Budget) -> list[Any]:
    return [item for item in items if _truth(step, item, scope, budget)]


def _map(step: _Fold, items: Iterable[Any], scope: dict[str, Any], budget: Budget) -> list[Any]:
    *conditions, body = step.arguments
    found = []
    for item in items:
        if conditions and not _truth(step, item, scope, budget):
            continue
        scope[step.variable] = item
        value = body.value(scope, budget)
        if isinstance(value, list | dict):  # what is made is paid for, so that no chain of maps grows without end
            count, chars = weight(value)
            budget.spend(count * 400 + chars * 0.1)
        elif isinstance(value, str):
            budget.spend(len(value) * 0.1)
        found.append(value)
    return found


def _truth(step: _Fold, item: Any, scope: dict[str, Any], budget: Budget) -> bool:
    scope[step.variable] = item
    value = step.arguments[0].value(scope, budget)
    if isinstance(value, bool):
        return value
    raise ExpressionError(f"{step.macro} needs a condition that is true or false, not {_named(value)}")


_FOLDS: Final[Mapping[str, Callable[[_Fold, Iterable[Any], dict[str, Any], Budget], Any]]] = {
    "all": _all,
    "exists": _exists,
    "exists_one": _exists_one,
    "existsOne": _exists_one,
    "filter": _filter,
    "map": _map,
}


def _followed(path: tuple[str, ...], scope: Mapping[str, Any]) -> Any:
    if path[0] not in scope:
        raise ExpressionError(f"{path[0]} has no value here")
    value = scope[path[0]]
    for index in range(1, len(path)):
        part = path[index]
        if type(value) is dict and part in value:
            value = value[part]
            continue
        before = ".".join(path[:index])
        if not isinstance(value, Mapping):
            raise ExpressionError(f"{before} has no fields: it is {_named(value)}")
        if part not in value:
            raise ExpressionError(f"{before} has no field {part}")
        value = value[part]
    return value


def _pruned(read: _Read, scope: Mapping[str, Any]) -> Any:
    """The value of a name with no more of it than is read."""
    value = scope[read.name]
    if read.paths[0] == () or type(value) is not dict:
        return value
    made: dict[str, Any] = {}
    for path in read.paths:
        if len(path) > 1:
            _copy(value, made, path)
        elif path[0] in value:
            made[path[0]] = value[path[0]]
    return made


def _copy(value: dict[str, Any], made: dict[str, Any], path: tuple[str, ...]) -> None:
    for part in path[:-1]:
        if part not in value:
            return
        inner = value[part]
        if type(inner) is not dict:
            made[part] = inner
            return
        made = made.setdefault(part, {})
        value = inner
    if path[-1] in value:
        made[path[-1]] = value[path[-1]]


def _named(value: Any) -> str:
    words = {type(None): "null", bool: "a boolean", str: "a text", dict: "an object", list: "a list"}
    return words.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _sentence(error: BaseException) -> str:
    """The first thing the library says, without its drawing of the place."""
    if isinstance(error, KeyError):
        return f"there is no field {str(error.args[0])[:100] if error.args else ''}".strip()
    if (syntax := _SYNTAX.search(str(error))) is not None:
        return f"at character {syntax[1]}: {syntax[2].partition(' expecting {')[0]}"
    lines = [line for line in str(error).splitlines() if line and not line.startswith("|")]
    said = lines[0].partition(". Check")[0].partition(" CEL does not coerce")[0] if lines else type(error).__name__
    return said if len(said) <= 300 else f"{said[:299]}…"
