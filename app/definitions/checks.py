"""What is wrong with the meaning of a definition: names, needs, cycles, cron, sub-workflows, secrets written in clear.

Works on whatever was written, shape right or wrong, so that every problem is told at once; what has the wrong
type is left to the shape's own check.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeGuard

from pydantic import BaseModel

from app.adapters.tasks.protocol import fixed_params
from app.definitions import expressions
from app.definitions.expressions import needs_of
from app.definitions.models import CONTROL_PARAMS
from app.definitions.problems import Path, suggestion
from app.definitions.shape import shape_problems
from app.domain.workflow.cron import CronError, parse_cron
from app.errors import TaskFailed

RESERVED: Final = frozenset(
    {
        *("input", "trigger", "needs", "execution", "item", "index", "error", "row", "rows", "record", "on_failure"),
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"),
        *("import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
    }
)
_PASSWORD: Final = re.compile(r"://[^/@\s:]*:([^@\s/]+)@")
_HOLE: Final = re.compile(r"(?<!\$)\$\{")
_SECRET_FIELD: Final = re.compile(
    r"(?:^|_|-)(?:password|passwd|secret|token|api[_-]?key|authorization)$", re.IGNORECASE
)


class Found(NamedTuple):
    """A problem before its place is known."""

    path: Path
    message: str
    is_warning: bool = False


class TaskTypes(Protocol):
    """What is known of task types (`app.adapters.tasks.registry.Registry` fits)."""

    def names(self) -> tuple[str, ...]: ...
    def params_model(self, name: str) -> type[BaseModel]: ...


def problems_of(document: Mapping[str, Any], types: TaskTypes) -> Iterator[Found]:
    """Everything but the shape."""
    tasks = _tasks(document)
    yield from _triggers(document)
    yield from _needs(tasks)
    for cycle in cycles(tasks):
        around = " → ".join([*cycle, cycle[0]])
        yield Found(("tasks", cycle[0], "needs"), f"the tasks need each other in a circle: {around}")
    for name, task in tasks.items():
        if name in RESERVED:
            yield Found(("tasks", name), f"{name} means something in expressions: give the task another name")
        yield from _task(document, ("tasks", name), task, types)
    on_failure = document.get("on_failure")
    if isinstance(on_failure, dict):
        if on_failure.get("type") in list(CONTROL_PARAMS):
            yield Found(("on_failure", "type"), f"on_failure cannot be of the type {on_failure['type']}")
        yield from _task(document, ("on_failure",), on_failure, types)
    yield from (Found(*each) for each in expressions.problems_of(document, tasks))


def _tasks(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tasks = document.get("tasks")
    return {name: task for name, task in tasks.items() if isinstance(task, dict)} if isinstance(tasks, dict) else {}


def _needs(tasks: Mapping[str, dict[str, Any]]) -> Iterator[Found]:
    for name, task in tasks.items():
        seen = set()
        for index, need in enumerate(needs_of(task)):
            path: Path = (
                ("tasks", name, "needs", index) if isinstance(task["needs"], list) else ("tasks", name, "needs")
            )
            if need in seen:
                yield Found(path, f"{need} is named twice")
            elif need == name:
                yield Found(path, "a task cannot need itself")
            elif need not in tasks:
                yield Found(path, f"there is no task {need}{suggestion(need, set(tasks) - {name})}")
            seen.add(need)


def cycles(tasks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One cycle of each knot of tasks, each task after one that it needs; those of a single task are left out."""
    done: set[str] = set()
    found: list[list[str]] = []
    for start in tasks:
        trail: list[str] = []
        on_trail: set[str] = set()
        stack: list[tuple[str, Iterator[str]]] = []
        if start not in done:
            stack.append((start, iter(needs_of(tasks[start]))))
            trail.append(start)
            on_trail.add(start)
        while stack:
            name, rest = stack[-1]
            need = next(rest, None)
            if need is None:
                stack.pop()
                on_trail.discard(trail.pop())
                done.add(name)
            elif need in on_trail:
                if need != name:
                    found.append(trail[trail.index(need) :][::-1])
            elif need in tasks and need not in done:
                stack.append((need, iter(needs_of(tasks[need]))))
                trail.append(need)
                on_trail.add(need)
    return found


def _triggers(document: Mapping[str, Any]) -> Iterator[Found]:
    triggers = document.get("triggers")
    for index, trigger in enumerate(triggers if isinstance(triggers, list) else ()):
        path: Path = ("triggers", index)
        if not isinstance(trigger, dict):
            continue
        cron, zone = trigger.get("schedule"), trigger.get("timezone", "UTC")
        if isinstance(cron, str) and isinstance(zone, str):
            yield from _cron(path, cron, zone)
        if "topic" in trigger and trigger.get("key") is not None and not trigger.get("debounce_s"):
            yield Found((*path, "key"), "a key does nothing without debounce_s", is_warning=True)


def _cron(path: Path, cron: str, zone: str) -> Iterator[Found]:
    try:
        parse_cron(cron)
    except CronError as error:
        yield Found((*path, "schedule"), str(error))
    try:
        parse_cron("* * * * *", zone)
    except CronError as error:
        yield Found((*path, "timezone"), str(error))


def _task(document: Mapping[str, Any], path: Path, task: Mapping[str, Any], types: TaskTypes) -> Iterator[Found]:
    kind = task["type"] if isinstance(task.get("type"), str) else ""
    given = task.get("with")
    params = {} if given is None else given
    if kind:
        model = CONTROL_PARAMS.get(kind)
        if model is None and kind not in types.names():
            yield Found((*path, "type"), f"there is no task type {kind}{suggestion(kind, _all_types(types))}")
        elif isinstance(params, dict):
            yield from _params(path, kind, params, model, types)
    if kind == "workflow" and isinstance(params, dict) and params.get("id") == document.get("id"):
        yield Found((*path, "with", "id"), "a workflow cannot start itself: it would never end")
    if kind in CONTROL_PARAMS:
        for name in ("queue", "heartbeat_s"):
            if name in task:
                yield Found(
                    (*path, name), f"does nothing for the type {kind}, which the engine carries out itself", True
                )
    yield from _secrets((*path, "with"), params)
    timeout, heartbeat = task.get("timeout_s"), task.get("heartbeat_s")
    if _is_number(timeout) and _is_number(heartbeat) and heartbeat > timeout:
        yield Found((*path, "heartbeat_s"), f"is longer than timeout_s ({timeout:g}), so that it never decides", True)


def _all_types(types: TaskTypes) -> set[str]:
    return {*types.names(), *CONTROL_PARAMS}


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _params(
    path: Path, kind: str, params: dict[str, Any], model: type[BaseModel] | None, types: TaskTypes
) -> Iterator[Found]:
    if kind == "wait" and (params.get("seconds") is None) == (params.get("until") is None):
        yield Found((*path, "with"), "a wait has either seconds or until")
    if kind == "wait" and _is_number(seconds := params.get("seconds")) and seconds < 0:
        yield Found((*path, "with", "seconds"), f"must be at least 0, not {seconds}")
    if kind == "approval" and _is_number(limit := params.get("timeout_s")) and limit <= 0:
        yield Found((*path, "with", "timeout_s"), f"must be more than 0, not {limit}")
    if model is None:
        try:
            model = types.params_model(kind)
        except TaskFailed as error:
            yield Found((*path, "type"), error.message)
            return
        params = {name: value for name, value in params.items() if name != "from"}
        for name in sorted(fixed_params(model)):
            if isinstance(text := params.get(name), str) and _HOLE.search(text):
                yield Found((*path, "with", name), "takes no ${…}: the value would be part of it; bind values by name")
    for inner, message in shape_problems(model, params, secret=True):
        if not _has_hole(params, inner):
            yield Found((*path, "with", *inner), message)


def _has_hole(params: Any, path: Path) -> bool:
    """A value that is only known when the task runs cannot be judged before."""
    for part in path:
        if not isinstance(params, dict | list) or (isinstance(params, dict) and part not in params):
            return False
        params = params[part]  # type: ignore[index]
        if isinstance(params, str):
            break
    return isinstance(params, str) and "${" in params


def _secrets(path: Path, value: Any) -> Iterator[Found]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and inner and "${" not in inner and _SECRET_FIELD.search(name):
                yield Found((*path, name), "looks like a secret written in clear: write ${secret:NAME}", True)
            else:
                yield from _secrets((*path, name), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _secrets((*path, index), inner)
    elif isinstance(value, str):
        found = _PASSWORD.search(value)
        if found is not None and "${" not in found[1]:
            yield Found(path, "has a password in clear: write ${secret:NAME}, it is kept for everybody to read", True)
