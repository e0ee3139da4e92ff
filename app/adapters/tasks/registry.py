"""The task types that this process knows: the built-in ones, and plug-ins of the entry points `headrace.tasks`.

A type's module is imported when the type is first asked for, so that a vendor nobody uses costs nothing.
"""

import difflib
import functools
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from pydantic import BaseModel

from app.adapters.tasks.protocol import AsyncTaskType, SyncTaskType, TaskType
from app.domain.workflow.definition import CONTROL_TYPES
from app.errors import TaskFailed

log = logging.getLogger(__name__)

GROUP: Final = "headrace.tasks"
_HERE: Final = "app.adapters.tasks.types"
BUILT_IN: Final[Mapping[str, str]] = {
    "source.sql": f"{_HERE}.source_sql:SqlSource",
    "source.http": f"{_HERE}.source_http:HttpSource",
    "source.kafka": f"{_HERE}.source_kafka:KafkaSource",
    "source.rollups": f"{_HERE}.source_rollups:RollupSource",
    "source.file": f"{_HERE}.source_file:FileSource",
    "transform.cel": f"{_HERE}.transform_cel:CelTransform",
    "transform.jmespath": f"{_HERE}.transform_jmespath:JmespathTransform",
    "transform.aggregate": f"{_HERE}.transform_aggregate:AggregateTransform",
    "transform.python": f"{_HERE}.transform_python:PythonTransform",
    "sink.sql": f"{_HERE}.sink_sql:SqlSinkTask",
    "sink.kafka": f"{_HERE}.sink_kafka:KafkaSinkTask",
    "sink.http": f"{_HERE}.sink_http:HttpSinkTask",
    "sink.file": f"{_HERE}.sink_file:FileSinkTask",
}


class Registry:
    """Types by name. `problems` has a sentence for each plug-in that could not be used."""

    def __init__(self, plug_ins: Iterable[EntryPoint] | None = None) -> None:
        """`plug_ins` None: those that are installed."""
        self.problems: dict[str, str] = {}
        self._loaded: dict[str, TaskType] = {}
        self._broken: set[str] = set()
        self._waiting: dict[str, Callable[[], Any]] = {
            name: functools.partial(_imported, where) for name, where in BUILT_IN.items()
        }
        for entry in sorted(entry_points(group=GROUP) if plug_ins is None else plug_ins, key=lambda one: one.name):
            if entry.name in self._waiting or entry.name in CONTROL_TYPES:
                self._report(entry.name, f"the plug-in {entry.name} ({entry.value}) has the name of another task type")
            else:
                self._waiting[entry.name] = entry.load

    def names(self) -> tuple[str, ...]:
        """Every type that may be named, in order; one that is broken only shows when it is asked for."""
        return tuple(sorted(self._waiting))

    def get(self, name: str) -> TaskType:
        """The type. Raises `TaskFailed` of type `UnknownTaskType`, or `BrokenPlugin` with the cause."""
        found = self._loaded.get(name)
        if found is None:
            found = self._loaded[name] = self._load(name)
        return found

    def params_model(self, name: str) -> type[BaseModel]:
        """The model of `with`. Raises as `get`."""
        return self.get(name).params_model

    def check(self) -> dict[str, str]:
        """Load every type; the sentences of those that are broken, by name."""
        for name in self.names():
            try:
                self.get(name)
            except TaskFailed as failed:
                self.problems.setdefault(name, failed.message)
        return self.problems

    def _load(self, name: str) -> TaskType:
        make = self._waiting.get(name)
        if make is None:
            near = difflib.get_close_matches(name, self._waiting, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise TaskFailed(
                "UnknownTaskType",
                f"there is no task type {name!r:.100}{meant}",
                retryable=False,
                detail={"type": name[:100]},
            )
        if name in self._broken:
            raise TaskFailed("BrokenPlugin", self.problems[name], retryable=False, detail={"type": name})
        try:
            made = make()
            task_type = made() if isinstance(made, type) else made
            fault = _fault(name, task_type)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and takes nobody down with it
            fault = f"{type(error).__name__}: {error}"
        else:
            if fault is None:
                return task_type
        self._broken.add(name)
        self._report(name, f"the task type {name} cannot be used: {fault}")
        raise TaskFailed("BrokenPlugin", self.problems[name], retryable=False, detail={"type": name})

    def _report(self, name: str, problem: str) -> None:
        self.problems[name] = problem
        log.error("%s", problem, extra={"action": "task_type_broken", "task_type": name})


def _imported(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _fault(name: str, found: Any) -> str | None:
    """Why an object is no task type; None when it is one."""
    if getattr(found, "name", None) != name:
        return f"it calls itself {getattr(found, 'name', None)!r:.100}"
    model = getattr(found, "params_model", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return "its params_model is no pydantic model"
    kind = getattr(found, "kind", None)
    if kind not in {"async", "blocking", "process"}:
        return f"its kind is {kind!r:.40}, not async, blocking or process"
    if not isinstance(getattr(found, "pure", None), bool):
        return "it does not say whether it is pure"
    if not isinstance(found, AsyncTaskType if kind == "async" else SyncTaskType):
        return f"it is {kind} and has no method {'run' if kind == 'async' else 'run_sync'}"
    return None
