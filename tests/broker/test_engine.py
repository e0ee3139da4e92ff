"""Laws of the engine on a real broker: every kind of execution runs to its end, whatever is killed meanwhile."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.adapters.topics_admin import ensure_topics
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_STATE, WORKFLOW_TOPICS
from tests.helpers.engine import (
    Book,
    KnownWorkflows,
    ObedientExecutor,
    book,
    coordinator,
    settings,
    started,
    task,
    workflow,
)

pytestmark = pytest.mark.broker

LINE = workflow("line", task("a", value={"n": "${input.n}"}), task("b", "a", value="${a.n}"), task("c", "b", value=3))


@pytest.fixture(scope="module")
def broker_with_topics(module_broker: str) -> str:
    asyncio.run(ensure_topics(module_broker, (*WORKFLOW_TOPICS, WORKFLOW_STATE), KafkaSettings(partitions=2)))
    return module_broker


@pytest.fixture
async def log(broker_with_topics: str) -> AsyncIterator[Book]:
    async with book(broker_with_topics) as opened:
        yield opened


def name() -> str:
    return str(uuid.uuid4())


async def test_an_execution_runs_task_after_task_to_its_end(broker_with_topics: str, log: Book, tmp_path: Path) -> None:
    executor = ObedientExecutor()
    async with coordinator(settings(broker_with_topics, tmp_path), KnownWorkflows(LINE), executor):
        one = name()
        await log.tell(started("line", one, {"n": 7}))
        state = await log.ended(one)
    assert (state.status, state.tasks["b"].result) == ("succeeded", 7)
    assert [order.task for order in executor.orders] == ["a", "b", "c"]
