"""A definition made ready for decisions: who needs whom, in what order, and which names a task may read."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from app.domain.workflow.definition import CONTROL_TYPES, PURE_TYPES, Task, Workflow

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Node(NamedTuple):
    """A task with what decisions ask of it again and again.

    `needs` and `dependents` are the direct ones; `reads` are further tasks that its expressions name and that are
    certain to have finished before it (every ancestor; for `on_failure` every task). `asks` are those of both that the
    engine's own expressions name (`when`, `map`, all of a control task). `is_plain`: neither condition,
    map nor control type, so that nothing has to be evaluated before it begins. `is_pure`: touches nothing outside.
    `has_timers`: an attempt may have some.
    """

    task: Task
    needs: tuple[str, ...]
    dependents: tuple[str, ...]
    reads: tuple[str, ...]
    asks: tuple[str, ...]
    is_control: bool
    is_plain: bool
    is_pure: bool
    has_timers: bool
    timeout_ms: int | None
    heartbeat_ms: int | None


@dataclass(frozen=True, slots=True)
class Graph:
    """One version of a workflow. `nodes` holds `on_failure` too; `order` (topological), `roots` and `leaves` do not."""

    workflow: Workflow
    nodes: Mapping[str, Node]
    order: tuple[str, ...]
    roots: tuple[str, ...]
    leaves: tuple[str, ...]
    compensation: Node | None
    timeout_ms: int | None

    @property
    def size(self) -> int:
        """Tasks that must finish before the execution has succeeded."""
        return len(self.order)

    def after(self, name: str) -> set[str]:
        """A task and all that need it, directly or not."""
        found = {name}
        waiting = [name]
        while waiting:
            fresh = [each for each in self.nodes[waiting.pop()].dependents if each not in found]
            found.update(fresh)
            waiting.extend(fresh)
        return found


def graph_of(workflow: Workflow) -> Graph:
    """Make a definition ready, once a version. Raises `ValueError` for what registration refuses: a cycle, an unknown
    need, a compensation named like a task.
    """
    tasks = workflow.tasks
    dependents: dict[str, list[str]] = {name: [] for name in tasks}
    for name, task in tasks.items():
        for need in dict.fromkeys(task.needs):
            if need not in tasks:
                raise ValueError(f"task {name!r} needs {need!r}, which is no task of {workflow.id!r}")
            dependents[need].append(name)
    order = _topological(workflow, dependents)
    ancestors: dict[str, set[str]] = {}
    for name in order:
        needs = tasks[name].needs
        ancestors[name] = set(needs).union(*(ancestors[need] for need in needs))
    nodes = {name: _node(tasks[name], tuple(dependents[name]), ancestors[name]) for name in order}
    compensation = None
    if (on_failure := workflow.on_failure) is not None:
        if on_failure.name in tasks:
            raise ValueError(f"on_failure of {workflow.id!r} is called {on_failure.name!r} like one of its tasks")
        compensation = nodes[on_failure.name] = _node(on_failure, (), set(tasks))._replace(needs=())
    return Graph(
        workflow=workflow,
        nodes=nodes,
        order=order,
        roots=tuple(name for name in order if not tasks[name].needs),
        leaves=tuple(name for name in order if not dependents[name]),
        compensation=compensation,
        timeout_ms=_ms(workflow.timeout_s),
    )


def _topological(workflow: Workflow, dependents: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Needs before those that need them; otherwise as written."""
    missing = {name: len(set(task.needs)) for name, task in workflow.tasks.items()}
    order = [name for name, count in missing.items() if count == 0]
    for name in order:  # grows while it is read
        for dependent in dependents[name]:
            missing[dependent] -= 1
            if missing[dependent] == 0:
                order.append(dependent)
    if len(order) != len(missing):
        raise ValueError(f"tasks of {workflow.id!r} need each other in a circle: {sorted(set(missing) - set(order))}")
    return tuple(order)


def _node(task: Task, dependents: tuple[str, ...], ancestors: set[str]) -> Node:
    is_control = task.type in CONTROL_TYPES
    asked = {name for text in _conditions(task) for name in _IDENTIFIER.findall(text)}
    mentioned = asked | {name for text in _texts(task.params) for name in _IDENTIFIER.findall(text)}
    if is_control:
        asked = mentioned
    return Node(
        task=task,
        needs=tuple(dict.fromkeys(task.needs)),
        dependents=dependents,
        reads=tuple(sorted((ancestors & mentioned) - set(task.needs))),
        asks=tuple(sorted(ancestors & asked)),
        is_control=is_control,
        is_plain=not is_control and task.when is None and task.map is None,
        is_pure=task.type in PURE_TYPES,
        has_timers=is_control or task.timeout_s is not None or task.heartbeat_s is not None,
        timeout_ms=_ms(task.timeout_s),
        heartbeat_ms=_ms(task.heartbeat_s),
    )


def _conditions(task: Task) -> Iterator[str]:
    """The expressions that decide whether and how often a task runs."""
    if task.when is not None:
        yield task.when
    if task.map is not None:
        yield task.map.over


def _texts(params: Mapping[str, Any]) -> Iterator[str]:
    """Every string of a task's parameters: an expression can be in it."""
    waiting: list[Any] = [params]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1000))
