"""The committed schemas of definitions and of the workflow topics are those of the code, and records hold to them."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from app.definition_wire import Definition, registration, version_of
from app.definitions.schemas import schemas
from app.domain.workflow import commands
from app.domain.workflow.events import Event, ExecutionEnded, ExecutionStarted, MapExpanded, TaskFailed, TaskSucceeded
from app.domain.workflow.orders import Recall, TaskOrder
from app.workflow_wire import encode_command, encode_order, encode_recall, encode_run
from config.schemas import rendered
from config.topics import WORKFLOW_TOPICS
from tests.unit.workflow.definitions.test_reading import WHOLE

DOCS = Path(__file__).parents[4] / "docs"
SCHEMAS = schemas()
T0 = 1_763_689_000_000


def validator(name: str) -> Draft202012Validator:
    Draft202012Validator.check_schema(SCHEMAS[name])
    registry: Registry[Any] = Registry().with_resource("workflow.json", Resource.from_contents(SCHEMAS["workflow"]))
    return Draft202012Validator(SCHEMAS[name], registry=registry)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_committed_schema_is_the_generated_one(name: str) -> None:
    path = DOCS / "schemas" / f"{name}.json"
    assert path.read_text("utf-8") == rendered(SCHEMAS[name]), "run `python -m app.definitions.schemas docs`"


def test_every_topic_of_workflows_is_described() -> None:
    described = yaml.safe_load((DOCS / "asyncapi.yaml").read_text("utf-8"))["channels"]
    assert {topic.name for topic in WORKFLOW_TOPICS} <= described.keys()
    assert {topic.schema for topic in WORKFLOW_TOPICS} <= SCHEMAS.keys()


def test_a_definition_with_every_construct_holds_to_the_schema() -> None:
    document = yaml.safe_load(WHOLE)
    validator("workflow").validate(document)
    for record in registration(Definition("w", version_of(document), document), T0):
        assert record.value is not None
        validator("workflow-definition").validate(orjson.loads(record.value))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "a b"},
        {"prority": 1},
        {"tasks": {}},
        {"tasks": {"a-b": {"type": "wait"}}},
        {"tasks": {"a": {"type": "wait", "with": {"second": 1}}}},
        {"tasks": {"a": {"type": "source.sql", "with": {"url": "sqlite:///x"}}}},
        {"tasks": {"a": {"type": "sink.http", "with": {"url": "https://x", "method": "GET"}}}},
        {"tasks": {"a": {"type": "wait", "with": {"seconds": 1}, "timeout_s": 0}}},
        {"triggers": [{"cron": "* * * * *"}]},
    ],
)
def test_the_schema_refuses_what_the_check_refuses(change: dict[str, Any]) -> None:
    document = {"id": "w", "tasks": {"a": {"type": "wait", "with": {"seconds": 1}}}, **change}
    assert not validator("workflow").is_valid(document)


def test_commands_hold_to_the_schema() -> None:
    error = commands.TaskError(type="Timeout", message="too slow")
    for command in (
        commands.Start(execution_id="e", workflow="w", version="v", input={"a": 1}, at_ms=T0),
        commands.Report(execution_id="e", task="t", item=None, attempt=1, token=1, error=error),
        commands.Heartbeat(execution_id="e", task="t", item=3, attempt=1, token=1),
        commands.Cancel(execution_id="e", command_id="c"),
        commands.Signal(execution_id="e", command_id="c", name="go", payload=[1]),
        commands.RetryExecution(execution_id="e", command_id="c"),
    ):
        validator("workflow-command").validate(orjson.loads(encode_command(command)))
    told = {"type": "entity_told", "entity_id": "schedule:a", "execution_id": "e", "status": "failed"}
    validator("workflow-command").validate(told)
    assert not validator("workflow-command").is_valid({"type": "explode", "execution_id": "e"})


def test_events_and_orders_hold_to_the_schema() -> None:
    error = commands.TaskError(type="Timeout", message="too slow")
    started = ExecutionStarted(
        seq=0, at=T0, workflow="w", version="v", input=None, key=None, priority=0, asked_at=T0, trigger={"kind": "http"}
    )
    events: list[Event] = [
        started,
        MapExpanded(seq=1, at=T0, task="m", items=(1, {"a": 2})),
        TaskSucceeded(seq=2, at=T0, task="m", item=0, attempt=1, result={"x": 1}),
        TaskFailed(seq=3, at=T0, task="m", item=1, attempt=1, error=error, retry_at=None),
        ExecutionEnded(seq=4, at=T0, status="failed", error=error),
    ]
    validator("workflow-events").validate(orjson.loads(encode_run("e", "w", "v", 1, events)))
    order = TaskOrder(
        execution_id="e",
        workflow="w",
        version="v",
        task="t",
        item=None,
        attempt=1,
        token=1,
        type="source.sql",
        params={},
        context={},
    )
    validator("workflow-task").validate(orjson.loads(encode_order(order)))
    recall = Recall(execution_id="e", recalls_before=7, task="t")
    validator("workflow-task").validate(orjson.loads(encode_recall(recall)))
