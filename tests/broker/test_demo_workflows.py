"""Laws of what `headrace up` shows of workflows: two are registered, one is started, nobody's own is changed."""

import asyncio

import pytest

from app.adapters.topics_admin import ensure_topics
from app.definition_wire import Definition, registration, version_of
from app.demo_workflows import FAILING, ON_SIGNALS, definition_of, show_workflows
from app.domain.workflow.commands import Start
from app.ports import OutRecord
from app.workflow_wire import decode_command
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEFINITIONS, WORKFLOW_TOPICS
from tests.helpers.records import records, send, values
from tests.helpers.sinks import START_MS, FixedClock

pytestmark = pytest.mark.broker


def _registered(bootstrap: str) -> list[str]:
    return [(record.key or b"").decode() for record in records(bootstrap, WORKFLOW_DEFINITIONS.name)]


def test_they_are_registered_once_and_the_one_that_fails_is_started_at_each_run(module_broker: str) -> None:
    kafka = KafkaSettings(bootstrap_servers=module_broker, partitions=4)
    asyncio.run(ensure_topics(module_broker, WORKFLOW_TOPICS, kafka))
    # What somebody made of a demonstration stays; what cannot be read is passed over.
    own = {"id": ON_SIGNALS, "tasks": {"one": {"type": "transform.cel", "with": {"map": "row"}}}}
    topic = WORKFLOW_DEFINITIONS.name
    broken = [OutRecord(topic, f"latest:{FAILING}".encode(), value, START_MS) for value in (b"{", b"[]", b"{}")]
    asyncio.run(send(module_broker, [*registration(Definition(ON_SIGNALS, version_of(own), own), START_MS), *broken]))
    before = len(_registered(module_broker))
    ids = [asyncio.run(show_workflows(kafka, FixedClock(START_MS + second * 1000))) for second in range(2)]
    version = definition_of(FAILING).version
    assert sorted(_registered(module_broker)[before:]) == [f"latest:{FAILING}", f"workflow:{FAILING}@{version}"]
    starts = [decode_command(value) for value in values(module_broker, WORKFLOW_COMMANDS.name)]
    assert all(isinstance(start, Start) and start.version == version for start in starts)
    assert sorted(start.execution_id for start in starts) == sorted(set(ids))
    assert len(starts) == 2
