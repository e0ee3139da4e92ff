"""Laws of task queues on a real broker: every order is reported, and its offset kept only after that."""

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from app.adapters.topics_admin import ensure_topics
from app.domain.workflow.commands import Report
from app.domain.workflow.events import TaskSucceeded
from app.domain.workflow.orders import TaskOrder
from app.domain.workflow.placement import partition_of
from app.roles.queues import run_queue
from app.workflow_wire import decode_command, encode_order
from config.kafka import KafkaSettings
from config.topics import (
    WORKFLOW_COMMANDS,
    WORKFLOW_DEADLETTER,
    WORKFLOW_STATE,
    WORKFLOW_TOPICS,
    workflow_tasks,
)
from tests.helpers.engine import KnownWorkflows, book, coordinator, settings, started, task, workflow
from tests.helpers.kafka import read_topic, until
from tests.helpers.processes import Started
from tests.helpers.queue_worker import context_of
from tests.helpers.task_types import executor, order

pytestmark = pytest.mark.broker

PARTITIONS = 2


@pytest.fixture(scope="module")
def site(module_broker: str) -> str:
    """The broker with the topics that reports and dead letters go to."""
    kafka = KafkaSettings(bootstrap_servers=module_broker, partitions=PARTITIONS)
    asyncio.run(ensure_topics(module_broker, (*WORKFLOW_TOPICS, WORKFLOW_STATE), kafka))
    return module_broker


async def new_queue(site: str) -> str:
    queue = f"q{uuid.uuid4().hex[:8]}"
    kafka = KafkaSettings(bootstrap_servers=site, partitions=1)
    await ensure_topics(site, (workflow_tasks(queue),), kafka)
    return queue


async def send(site: str, queue: str, *orders: TaskOrder | bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=site) as producer:
        for one in orders:
            value = one if isinstance(one, bytes) else encode_order(one)
            await producer.send(workflow_tasks(queue).name, value, key=b"k")


async def reports_of(site: str, *execution_ids: str) -> list[tuple[int, Report]]:
    """What the engine was told, with the partitions it was told on."""
    found = []
    for partition, records in (await read_topic(site, WORKFLOW_COMMANDS.name)).items():
        for record in records:
            if record.key.decode() in execution_ids:
                said = decode_command(record.value)
                if isinstance(said, Report):
                    found.append((partition, said))
    return found


async def wait_for_reports(site: str, count: int, *execution_ids: str) -> list[tuple[int, Report]]:
    async with asyncio.timeout(60):
        while len(found := await reports_of(site, *execution_ids)) < count:  # noqa: ASYNC110 - of a topic
            await asyncio.sleep(0.05)
    return found


@contextlib.asynccontextmanager
async def serving(site: str, queue: str, **tasks: Any) -> AsyncIterator[None]:
    """The queue served in this process; stopped in order after the block."""
    stop = asyncio.Event()
    async with executor() as running:
        context = context_of(site, stop, **tasks)
        task = asyncio.create_task(run_queue(context, queue, running))
        await until(lambda: task.done() or context.health.ready().ok, "the queue is served")
        try:
            yield
        finally:
            stop.set()
            await task


def ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


async def test_every_order_is_reported_once_on_the_partition_of_its_execution(site: str) -> None:
    queue, names = await new_queue(site), ids(200)
    await send(site, queue, *(order("test.async", value=n, execution_id=name) for n, name in enumerate(names)))
    async with serving(site, queue, queue_in_flight=7):
        found = await wait_for_reports(site, len(names), *names)
    assert sorted(report.result for _, report in found) == list(range(200))
    assert all(partition == partition_of(report.execution_id, PARTITIONS) for partition, report in found)
    # Stopped in order, everything was acknowledged: nothing comes again.
    last = ids(1)
    await send(site, queue, order("test.async", value="last", execution_id=last[0]))
    async with serving(site, queue):
        await wait_for_reports(site, 1, *last)
    assert len(await reports_of(site, *names)) == len(names)


async def test_what_cannot_be_read_is_a_dead_letter_and_what_is_late_a_timeout(site: str) -> None:
    queue, (late, bad, good) = await new_queue(site), ids(3)
    await send(
        site,
        queue,
        b'{"no": "order"}',
        order("test.async", execution_id=late, deadline_ms=1),
        order("no.such", execution_id=bad),
        order("test.async", value=1, execution_id=good),
    )
    async with serving(site, queue):
        found = {report.execution_id: report for _, report in await wait_for_reports(site, 3, late, bad, good)}
    assert {name: report.error and report.error.type for name, report in found.items()} == {
        late: "Timeout",
        bad: "UnknownTaskType",
        good: None,
    }
    letters = [
        orjson.loads(r.value) for some in (await read_topic(site, WORKFLOW_DEADLETTER.name)).values() for r in some
    ]
    (letter,) = [one for one in letters if one["topic"] == workflow_tasks(queue).name]
    assert (letter["kind"], letter["reason"], letter["offset"]) == ("command", "unreadable_order", 0)
    assert base64.b64decode(letter["value"]) == b'{"no": "order"}'


async def test_long_order_holds_up_neither_those_behind_it_nor_a_process_task(site: str) -> None:
    queue, (long, quick, computed) = await new_queue(site), ids(3)
    await send(site, queue, order("test.async", "hang", execution_id=long))
    async with serving(site, queue):
        await send(
            site,
            queue,
            order("test.async", value=1, execution_id=quick),
            order("test.process", "pid", execution_id=computed),
        )
        found = {report.execution_id: report for _, report in await wait_for_reports(site, 2, quick, computed)}
        assert found[quick].result == 1
        assert found[computed].result != os.getpid()
        assert await reports_of(site, long) == []


@contextlib.contextmanager
def worker(site: str, queue: str) -> Iterator[Started]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.queue_worker", site, queue],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started = Started(process)
    try:
        yield started
    finally:
        process.kill()
        process.wait(10)
        started.close()


async def test_orders_of_a_killed_worker_are_carried_out_by_the_next_and_reported_once_more_at_most(
    site: str, tmp_path: Path
) -> None:
    queue, (done, hanging) = await new_queue(site), ids(2)
    told = tmp_path / "pid"
    with worker(site, queue) as first:
        await until(lambda: "ready" in first.lines, "the worker has joined")
        await send(site, queue, order("test.process", "until cancelled", str(told), execution_id=hanging))
        await send(site, queue, order("test.async", value="quick", execution_id=done))
        await until(told.exists, "the task runs")
        await wait_for_reports(site, 1, done)
        first.signal(signal.SIGKILL)
        first.ended()
    assert await reports_of(site, hanging) == []
    told.unlink()
    async with serving(site, queue):
        await until(told.exists, "the next worker was given the order of the killed one")
    # The quick one came again too: its range was not acknowledged, for it lay behind the hanging one.
    again = await reports_of(site, done)
    assert 1 <= len(again) <= 2
    assert len({(report.attempt, report.token, report.result) for _, report in again}) == 1


async def test_execution_ends_once_though_its_task_worker_was_killed(site: str, tmp_path: Path) -> None:
    """The engine orders on a topic; the second worker is given what the first one took with it."""
    queue, told = await new_queue(site), tmp_path / "told"
    params = {"do": "until told", "value": str(told)}
    flow = workflow(
        "queued",
        task("a", type="test.process", params=params, queue=queue),
        task("b", type="test.async", params={"value": 2}, queue=queue),
    )
    (name,) = ids(1)
    async with coordinator(settings(site, tmp_path / "tables"), KnownWorkflows(flow), None), book(site) as known:
        with worker(site, queue) as first:
            await until(lambda: "ready" in first.lines, "the worker has joined")
            await known.tell(started("queued", name))
            await until(told.exists, "the task runs")
            first.signal(signal.SIGKILL)
            first.ended()
        told.unlink()
        async with serving(site, queue):
            await until(told.exists, "the next worker was given the order")
            (tmp_path / "told.go").touch()
            ended = await known.ended(name)
            succeeded = [event for event in known.histories[name] if isinstance(event, TaskSucceeded)]
    assert (ended.status, len(await reports_of(site, name)) >= 2) == ("succeeded", True)
    assert sorted((event.task, event.result) for event in succeeded) == [("a", "told"), ("b", 2)]
