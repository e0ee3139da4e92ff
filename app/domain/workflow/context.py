"""What expressions of a task may read.

`input`, `trigger`, `execution`, each task that it needs by name (and under `needs`), and each earlier ancestor that
it mentions; in a map `item` and `index`; in `on_failure` `error`. A task that was skipped reads as null. Tasks of
parallel branches are not there: whether they have finished is chance.
"""

from typing import Any

from app.domain.workflow.graph import Graph, Node
from app.domain.workflow.state import PENDING, Execution


def context_for(state: Execution, graph: Graph, task: str, item: int | None, attempt: int) -> dict[str, Any]:
    """The `context` of a task's order; ancestors that it mentions beyond its needs are there by name."""
    node = graph.nodes[task]
    tasks = state.tasks
    context: dict[str, Any] = {name: tasks.get(name, PENDING).result for name in node.reads} if node.reads else {}
    context["input"] = state.input
    context["trigger"] = state.trigger
    context["needs"] = {name: tasks[name].result for name in node.needs}
    context["execution"] = {"id": state.execution_id, "workflow": state.workflow, "attempt": attempt, "task": task}
    if item is not None:
        items = tasks[task].items
        assert items is not None, "an item belongs to an expanded map"
        context["item"] = items.values[item]
        context["index"] = item
    if node is graph.compensation:
        context["error"] = _error(state)
    return context


def names_for(state: Execution, graph: Graph, node: Node, item: int | None, attempt: int) -> dict[str, Any]:
    """The same for expressions that the engine evaluates itself: needs are there by name too."""
    context = context_for(state, graph, node.task.name, item, attempt)
    return {**context["needs"], **context}


def _error(state: Execution) -> dict[str, Any] | None:
    error = state.error
    if error is None:
        return None
    return {"task": state.failed_task, "type": error.type, "message": error.message, "detail": dict(error.detail)}
