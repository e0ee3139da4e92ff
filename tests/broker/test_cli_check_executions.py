"""Laws of `headrace check executions` on a real broker: silent on a right log, loud on a wrong one, never vacuous."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.adapters.topics_admin import wait_for_coordinator
from app.definition_wire import Definition, registration
from app.domain.workflow.events import ExecutionEnded
from app.ports import OutRecord
from app.workflow_wire import encode_command, encode_run
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS
from tests.helpers.cli import Headrace
from tests.helpers.records import count, send
from tests.helpers.workflow_log import ASK, NOW_MS, THREE, Author, Story, later, signal

pytestmark = pytest.mark.broker

DOCUMENTS = {
    THREE.id: {
        "id": THREE.id,
        "tasks": {
            "source": {"type": "transform.cel"},
            "transform": {"type": "transform.cel", "needs": ["source"], "retry": {"attempts": 2}},
            "sink": {"type": "sink.sql", "needs": ["transform"]},
        },
    },
    ASK.id: {
        "id": ASK.id,
        "tasks": {
            "ask": {"type": "approval", "with": {"signal": "go"}},
            "sink": {"type": "sink.sql", "needs": ["ask"]},
        },
    },
}


def story() -> Story:
    author = Author()
    for number in range(20):
        author.starts(f"good-{number}")
    author.starts("approved", ASK)
    author.told("approved", signal("approved", "go"))
    return author.story


def of_the_log(told: Story) -> list[OutRecord]:
    commands = [
        OutRecord(WORKFLOW_COMMANDS.name, one.execution_id.encode(), encode_command(one), NOW_MS) for one in told.starts
    ]
    events = [OutRecord(WORKFLOW_EVENTS.name, run.execution_id.encode(), run.encoded(), NOW_MS) for run in told.runs]
    definitions = [
        record
        for name, document in DOCUMENTS.items()
        for record in registration(Definition(name, "v1", document), NOW_MS)
    ]
    return [*definitions, *commands, *events]


async def commit(bootstrap: str, ends: Sequence[int]) -> None:
    """As the coordinators do, once everything is durable."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id="headrace-workflow", enable_auto_commit=False)
    await consumer.start()
    try:
        places = [TopicPartition(WORKFLOW_COMMANDS.name, number) for number in range(len(ends))]
        consumer.assign(places)
        await consumer.commit(dict(zip(places, ends, strict=True)))
    finally:
        await consumer.stop()


def effects(folder: Path, keys: Sequence[str]) -> tuple[str, ...]:
    with sqlite3.connect(folder / "effects.db") as rows:
        rows.execute("CREATE TABLE effects (work TEXT)")
        rows.executemany("INSERT INTO effects VALUES (?)", [(key,) for key in keys])
    rows.close()
    place = f"sqlite:///{folder}/effects.db"
    return ("--effects-task", "sink", "--effects-sql", place, "--effects-table", "effects.work")


def test_a_right_log_passes_and_a_second_end_does_not(headrace: Headrace, tmp_path: Path) -> None:
    one_partition = ("--set", "kafka.partitions=1")
    assert headrace("topics", "declare", *one_partition).code == 0
    nothing = headrace("check", "executions", "--wait-s", "0")
    assert (nothing.code, "no execution" in nothing.out) == (1, True), nothing
    told = story()
    asyncio.run(send(headrace.bootstrap, of_the_log(told)))
    asyncio.run(wait_for_coordinator(headrace.bootstrap, 30.0))
    unheard = headrace("check", "executions", "--wait-s", "0")
    assert unheard.code == 2
    assert "a coordinator must have run" in unheard.err
    asyncio.run(commit(headrace.bootstrap, [count(headrace.bootstrap, WORKFLOW_COMMANDS.name)]))
    where = effects(tmp_path, told.effects)
    right = headrace("check", "executions", "--ended", "--json", *where)
    assert right.code == 0, right
    assert right.json["right"]
    assert (right.json["executions"], right.json["effects_due"]) == (21, 21)
    run = told.of("good-3")[-1]
    ended = run.events[-1]
    assert isinstance(ended, ExecutionEnded)
    again = encode_run(run.execution_id, run.workflow, run.version, 1, [later(ended, seq=ended.seq + 1)])
    asyncio.run(send(headrace.bootstrap, [OutRecord(WORKFLOW_EVENTS.name, b"good-3", again, NOW_MS)]))
    wrong = headrace("check", "executions", "--ended", *where)
    assert wrong.code == 1
    assert "second end" in wrong.out
    assert "good-3" in wrong.out


def test_options_that_do_not_go_together_are_refused(headrace: Headrace) -> None:
    for options in (
        ("--effects-task", "sink"),
        ("--effects-sql", "sqlite:///x"),
        ("--effects-task", "sink", "--effects-sql", "sqlite:///x"),
        ("--effects-task", "sink", "--effects-sql", "sqlite:///x", "--effects-table", "x.y", "--effects-topic", "t"),
    ):
        assert headrace("check", "executions", *options).code == 2
