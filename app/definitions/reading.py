"""From the text of a definition to the definition, or to everything that is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.definition_wire import Definition, version_of, workflow_of
from app.definitions.checks import TaskTypes, problems_of
from app.definitions.models import MAX_TASKS, WorkflowShape
from app.definitions.problems import Problem, dotted
from app.definitions.shape import shape_problems
from app.definitions.text import MAX_BYTES, MAX_DEPTH, Text, read_text
from app.domain.workflow.definition import Workflow

MAX_PROBLEMS: Final = 100
MAX_FOUND: Final = 500


@dataclass(frozen=True, slots=True)
class Reading:
    """`definition` and `workflow` are None when there is an error among the problems (there may be warnings)."""

    definition: Definition | None
    workflow: Workflow | None
    problems: tuple[Problem, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(one for one in self.problems if one.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(one for one in self.problems if one.severity == "warning")


def read_definition(content: str | bytes, types: TaskTypes) -> Reading:
    """Read YAML or JSON. Takes up to a second for the largest, so keep it off an event loop."""
    text = read_text(content)
    if not isinstance(text.data, dict) and text.problems:
        return Reading(None, None, tuple(text.problems[:MAX_PROBLEMS]))
    return _checked(text, types)


def check_document(document: Any, types: TaskTypes) -> Reading:
    """The same for a value that was JSON already: problems have no line."""
    try:
        size = len(orjson.dumps(document))
    except (TypeError, ValueError, RecursionError):
        return Reading(None, None, (Problem("", f"is no JSON, or nested deeper than {MAX_DEPTH}"),))
    if size > MAX_BYTES:
        return Reading(None, None, (Problem("", f"it has {size} bytes, the most is {MAX_BYTES}"),))
    return _checked(Text(document), types)


def _checked(text: Text, types: TaskTypes) -> Reading:
    document = text.data
    found = list(text.problems)
    for path, message in shape_problems(WorkflowShape, document):
        found.append(Problem(dotted(path), message, *text.place(path)))
    if isinstance(document, Mapping) and _is_small(document):
        for each in problems_of(document, types):
            if len(found) >= MAX_FOUND and any(one.severity == "error" for one in found):
                break
            severity = "warning" if each.is_warning else "error"
            found.append(Problem(dotted(each.path), each.message, *text.place(each.path), severity))  # type: ignore[arg-type]
    if isinstance(document, Mapping) and (size := len(orjson.dumps(document))) > MAX_BYTES:
        found.append(Problem("", f"it has {size} bytes when aliases are unfolded, the most is {MAX_BYTES}"))
    is_wrong = any(one.severity == "error" for one in found)
    kept = [one for one in dict.fromkeys(found) if one.severity == "error" or not is_wrong or len(found) < MAX_FOUND]
    problems = tuple(sorted(kept, key=lambda one: (one.line, one.column))[:MAX_PROBLEMS])
    if is_wrong:
        return Reading(None, None, problems)
    definition = Definition(document["id"], version_of(document), document)
    return Reading(definition, workflow_of(definition), problems)


def _is_small(document: Mapping[str, Any]) -> bool:
    """What has too many tasks is not looked at further: it has its problem already."""
    tasks = document.get("tasks")
    return not isinstance(tasks, Mapping) or len(tasks) <= MAX_TASKS
