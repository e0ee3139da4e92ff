"""What is wrong with the expressions of a definition: those that do not compile, and names that have no value there."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from app.adapters.cel_plan import FUNCTIONS, Plan, compiled
from app.adapters.expressions import Hole, holes
from app.definitions.problems import Path, suggestion
from app.domain.workflow.definition import CONTROL_TYPES

_FROM: Final = "from"
_OF_TASK: Final = frozenset({"input", "trigger", "needs", "execution"})
_OF_ITEM: Final = frozenset({"item", "index"})
# Parameters that are CEL as a whole, and what they read beside the rest.
_CEL_PARAMS: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("transform.cel", "filter"): frozenset({"row", "index"}),
    ("transform.cel", "map"): frozenset({"row", "index"}),
    ("transform.cel", "value"): frozenset({"rows"}),
    ("wait", "seconds"): frozenset(),
    ("wait", "until"): frozenset(),
    ("approval", "timeout_s"): frozenset(),
    ("workflow", "input"): frozenset(),
}

Wrong = tuple[Path, str]


def problems_of(document: Mapping[str, Any], tasks: Mapping[str, dict[str, Any]]) -> Iterator[Wrong]:
    """Every expression that is wrong, and how."""
    yield from _limits(document)
    ancestors = ancestors_of(tasks)
    for name, task in tasks.items():
        known = _OF_TASK | ancestors[name]
        scope = _Scope(known, frozenset(needs_of(task)), frozenset(tasks))
        yield from _task(("tasks", name), task, scope)
    on_failure = document.get("on_failure")
    if isinstance(on_failure, dict):
        scope = _Scope(_OF_TASK | {"error"} | set(tasks), frozenset(), frozenset(tasks))
        yield from _task(("on_failure",), on_failure, scope)


def ancestors_of(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """For each task those that are sure to have ended before it; cycles do no harm."""
    found: dict[str, frozenset[str]] = {}
    for name in tasks:
        seen: set[str] = set()
        waiting = needs_of(tasks[name])
        while waiting:
            need = waiting.pop()
            if need in tasks and need not in seen:
                known = found.get(need)
                seen |= {need} if known is None else {need, *known}
                waiting += needs_of(tasks[need]) if known is None else []
        found[name] = frozenset(seen)
    return found


def needs_of(task: Mapping[str, Any]) -> list[str]:
    """What a task says that it needs, known or not."""
    needs = task.get("needs")
    if isinstance(needs, str):
        return [needs]
    return [need for need in needs if isinstance(need, str)] if isinstance(needs, list) else []


class _Scope:
    """The names that have a value at some place."""

    def __init__(self, known: AbstractSet[str], needs: frozenset[str], tasks: frozenset[str]) -> None:
        self.known = frozenset(known)
        self.needs = needs
        self.tasks = tasks

    def with_(self, more: frozenset[str]) -> "_Scope":
        return _Scope(self.known | more, self.needs, self.tasks)

    def problems(self, plan: Plan) -> Iterator[str]:
        for name in sorted(plan.names - self.known):
            if name in self.tasks:
                yield f"{name} has perhaps not ended: add it to needs"
            else:
                yield f"{name} is not known here{suggestion(name, self.known)}"
        for path in sorted(plan.paths):
            if path[0] == "needs" and len(path) > 1 and path[1] not in self.needs:
                yield f"{path[1]} is not among the needs{suggestion(path[1], self.needs)}"


def _limits(document: Mapping[str, Any]) -> Iterator[Wrong]:
    concurrency = document.get("concurrency")
    start = _Scope({"input", "trigger"}, frozenset(), frozenset())
    if isinstance(concurrency, dict):
        yield from _cel(("concurrency", "key"), concurrency.get("key"), start)
    triggers = document.get("triggers")
    for index, trigger in enumerate(triggers if isinstance(triggers, list) else ()):
        if not isinstance(trigger, dict) or "topic" not in trigger:
            continue
        for name in ("when", "key"):  # the names of a record's fields are not known here
            yield from _cel(("triggers", index, name), trigger.get(name), None)
        given = trigger.get("input")
        for name, source in given.items() if isinstance(given, dict) else ():
            yield from _cel(("triggers", index, "input", name), source, None)


def _task(path: Path, task: Mapping[str, Any], scope: _Scope) -> Iterator[Wrong]:
    yield from _cel((*path, "when"), task.get("when"), scope)
    fan = task.get("map")
    if isinstance(fan, dict):
        yield from _cel((*path, "map", "over"), fan.get("over"), scope)
    else:
        yield from _cel((*path, "map"), fan, scope)
    inside = scope.with_(_OF_ITEM) if fan is not None else scope
    params = task.get("with")
    for name, value in params.items() if isinstance(params, dict) else ():
        yield from _param((*path, "with", name), str(task.get("type")), name, value, inside)


def _param(path: Path, kind: str, name: str, value: Any, scope: _Scope) -> Iterator[Wrong]:
    if name == _FROM and kind not in CONTROL_TYPES:
        more: frozenset[str] | None = frozenset()
    else:
        more = _CEL_PARAMS.get((kind, name))
    if more is None or (isinstance(value, str) and "${" in value):
        yield from _rendered(path, value, scope)
    elif isinstance(value, str):
        if name != "until" or not value[:1].isdigit():
            yield from _cel(path, value, scope.with_(more))
    elif kind == "transform.cel" and isinstance(value, dict):
        for inner, source in value.items():
            yield from _cel((*path, inner), source, scope.with_(more))
    else:
        yield from _rendered(path, value, scope)


def _rendered(path: Path, value: Any, scope: _Scope) -> Iterator[Wrong]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _rendered((*path, name), inner, scope)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _rendered((*path, index), inner, scope)
    elif isinstance(value, str) and "${" in value:
        try:
            found: list[Hole] = holes(value)
        except ValueError as error:
            yield path, str(error)
            return
        for hole in found:
            if hole.is_secret:
                if not hole.source.partition(":")[2].strip():
                    yield path, "${secret:} names no secret"
            else:
                yield from _cel(path, hole.source, scope)


def _cel(path: Path, source: Any, scope: _Scope | None) -> Iterator[Wrong]:
    if not isinstance(source, str) or not source:
        return
    try:
        plan = compiled(source)
    except ValueError as error:
        yield path, f"is no CEL: {error}"
        return
    for name in sorted(plan.functions - FUNCTIONS):
        yield path, f"there is no function {name}{suggestion(name, FUNCTIONS)}"
    if scope is not None:
        for message in scope.problems(plan):
            yield path, message
