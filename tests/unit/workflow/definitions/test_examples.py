"""The example workflows are valid, and between them they show every construct."""

from pathlib import Path

import pytest

from app.adapters.tasks.registry import BUILT_IN, Registry
from app.definitions.reading import read_definition
from app.domain.workflow.definition import CONTROL_TYPES, Task, Workflow

FOLDER = Path(__file__).parents[4] / "config" / "workflows"
FILES = sorted(FOLDER.glob("*.yaml"))
TYPES = Registry(plug_ins=())


def example(path: Path) -> Workflow:
    reading = read_definition(path.read_bytes(), TYPES)
    assert reading.problems == (), [problem.at(path.name) for problem in reading.problems]
    assert reading.workflow is not None
    return reading.workflow


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_valid_and_called_like_its_file(path: Path) -> None:
    workflow = example(path)
    assert workflow.id == path.stem
    assert workflow.description


def test_the_examples_show_every_construct() -> None:
    workflows = [example(path) for path in FILES]
    tasks: list[Task] = [task for workflow in workflows for task in workflow.tasks.values()]
    tasks += [workflow.on_failure for workflow in workflows if workflow.on_failure is not None]
    assert len(workflows) >= 8
    assert {task.type for task in tasks} == {*BUILT_IN, *CONTROL_TYPES}
    for has in (
        lambda task: task.when,
        lambda task: task.map,
        lambda task: task.retry.attempts > 1,
        lambda task: task.timeout_s,
        lambda task: task.heartbeat_s,
        lambda task: len(task.needs) > 1,
        lambda task: "${secret:" in str(task.params),
    ):
        assert any(has(task) for task in tasks)
    for said in (
        lambda workflow: workflow.schedules,
        lambda workflow: workflow.topics,
        lambda workflow: workflow.rate,
        lambda workflow: workflow.priority,
        lambda workflow: workflow.timeout_s,
        lambda workflow: workflow.on_failure,
        lambda workflow: workflow.concurrency and workflow.concurrency.key,
    ):
        assert any(said(workflow) for workflow in workflows)
    full = {workflow.concurrency.when_full for workflow in workflows if workflow.concurrency is not None}
    assert full == {"queue", "skip", "cancel_running"}
