"""Laws of a takeover on a real broker: a killed engine's executions go on with the next, on its disk or without it."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.adapters.topic_reader import TopicReader
from app.adapters.topics_admin import ensure_topics
from app.domain.seating import NEAR_RECORDS
from app.domain.workflow.events import TaskScheduled, WaitStarted
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_STATE, WORKFLOW_TOPICS
from tests.helpers.engine import KnownWorkflows, ObedientExecutor, book, coordinator, settings, started
from tests.helpers.engine_worker import FLOWS

pytestmark = pytest.mark.broker

MISSED = 2_200


@pytest.fixture(scope="module")
def topics(module_broker: str) -> str:
    """A broker with the topics of workflows."""
    asyncio.run(ensure_topics(module_broker, (*WORKFLOW_TOPICS, WORKFLOW_STATE), KafkaSettings(partitions=2)))
    return module_broker


@asynccontextmanager
async def other_engine(broker: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.helpers.engine_worker", broker, str(folder)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("disk", ["same", "other"])
async def test_what_a_killed_engine_had_in_hand_the_next_one_brings_to_its_end(
    topics: str, tmp_path: Path, disk: str
) -> None:
    lines, naps, stuck = ([f"{uuid.uuid4()}" for _ in range(count)] for count in (100, 5, 5))
    executor = ObedientExecutor(1_000)
    async with book(topics) as log:
        async with other_engine(topics, tmp_path / "one") as process:
            await log.tell(*(started("stuck", one, {"n": 5}) for one in stuck))
            await log.tell(*(started("nap", one) for one in naps))
            for one in stuck:
                await log.seen(one, lambda events: any(isinstance(e, TaskScheduled) for e in events), "it runs")
            for one in naps:
                await log.seen(one, lambda events: any(isinstance(e, WaitStarted) for e in events), "it waits")
            await log.tell(*(started("line", one, {"n": n}) for n, one in enumerate(lines)))
            process.kill()
            await process.wait()
        before = {one: len(log.histories[one]) for one in stuck}
        folder = tmp_path / ("one" if disk == "same" else "two")
        async with coordinator(settings(topics, folder), KnownWorkflows(*FLOWS), executor):
            for n, one in enumerate(lines):
                state = await log.ended(one)
                assert (state.status, state.tasks["b"].result) == ("succeeded", n)
            for one in naps:
                assert (await log.ended(one)).status == "succeeded"
            for one in stuck:
                (order,) = [order for order in executor.orders if order.execution_id == one]
                scheduled = next(event for event in log.histories[one] if isinstance(event, TaskScheduled))
                assert (order.attempt, order.token) == (1, scheduled.seq)
                executor.finish(one)
                state = await log.ended(one)
                assert (state.status, state.result) == ("succeeded", 5)
                assert len(log.histories[one]) == before[one] + 4


async def test_a_node_that_stood_by_takes_over_with_tables_that_are_warm(
    topics: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tables.restore")
    caplog.set_level("INFO", logger="app.roles.takeovers")
    lines, naps = ([f"{uuid.uuid4()}" for _ in range(count)] for count in (60, 5))
    known = KnownWorkflows(*FLOWS)
    async with (
        book(topics) as log,
        other_engine(topics, tmp_path / "one") as process,
        coordinator(settings(topics, tmp_path / "two"), known, ObedientExecutor(1_000)),
    ):
        await log.tell(*(started("nap", one) for one in naps))
        for one in naps:
            await log.seen(one, lambda events: any(isinstance(e, WaitStarted) for e in events), "it waits")
        await log.tell(*(started("line", one, {"n": n}) for n, one in enumerate(lines)))
        caplog.clear()
        process.kill()
        await process.wait()
        for one in [*lines, *naps]:
            assert (await log.ended(one)).status == "succeeded"
    assert "which were kept warm" in caplog.text
    told = [record for record in caplog.records if getattr(record, "action", "") == "workflow_failover"]
    (failover,) = (vars(record) for record in told)
    assert (failover["from"], failover["to"]) == (f"node workflow {process.pid}", f"node workflow {os.getpid()}")
    assert set(failover["partitions"]) <= {0, 1}
    assert failover["executions"] >= 0
    assert 0 < failover["ms"] < 60_000


async def test_a_node_that_comes_back_catches_up_first_and_is_given_its_share_in_the_round_of_its_joining(
    topics: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="app.roles.rounds")
    known, executor = KnownWorkflows(*FLOWS), ObedientExecutor(1_000)
    missed, state = [f"{uuid.uuid4()}" for _ in range(MISSED)], TopicReader(KafkaSettings(bootstrap_servers=topics))
    async with book(topics) as log:
        async with coordinator(settings(topics, tmp_path / "two"), known, executor):
            first = f"{uuid.uuid4()}"
            await log.tell(started("line", first, {"n": 1}))
            assert (await log.ended(first)).status == "succeeded"
        before = await state.ends(WORKFLOW_STATE.name)
        async with other_engine(topics, tmp_path / "one"):
            await log.tell(*(started("line", one, {"n": n}) for n, one in enumerate(missed)))
            for one in missed:
                assert (await log.ended(one)).status == "succeeded"
            after = await state.ends(WORKFLOW_STATE.name)
            assert min(after[one] - before[one] for one in after) > NEAR_RECORDS, (
                "so much that it would be given nothing as it is"
            )
            caplog.clear()
            async with coordinator(settings(topics, tmp_path / "two"), known, executor) as back:
                assert back.context.health.ready().checks["engine"].detail in {"partitions 0", "partitions 1"}
                assert "have caught up" in caplog.text
