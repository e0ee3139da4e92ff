"""Laws of cancels that reach workers: asked, then ended by force, never begun again, and reported by nobody."""

import asyncio
import signal
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaProducer

from app.domain.workflow.commands import Cancel
from app.domain.workflow.orders import Recall
from app.workflow_wire import encode_recall
from config.topics import workflow_tasks
from tests.broker.test_task_queue import (  # noqa: F401 - `site` is a fixture
    ids,
    new_queue,
    reports_of,
    send,
    serving,
    site,
    wait_for_reports,
    worker,
)
from tests.helpers.engine import KnownWorkflows, book, coordinator, settings, started, task, workflow
from tests.helpers.kafka import until
from tests.helpers.task_types import order

pytestmark = pytest.mark.broker


async def test_cancel_reaches_what_a_worker_carries_out(site: str, tmp_path: Path) -> None:  # noqa: F811 - fixture
    """One task heeds the cancel; the other does not, and its process is killed after the grace."""
    queue, heeding, hanging = await new_queue(site), tmp_path / "heeding", tmp_path / "hanging"
    flow = workflow(
        "cancelled",
        task("heeds", type="test.process", params={"do": "until cancelled", "value": str(heeding)}, queue=queue),
        task("hangs", type="test.process", params={"do": "hang", "value": str(hanging)}, queue=queue),
    )
    (name,) = ids(1)
    async with (
        coordinator(settings(site, tmp_path / "tables"), KnownWorkflows(flow), None),
        book(site) as known,
        serving(site, queue),
    ):
        await known.tell(started("cancelled", name))
        await until(lambda: heeding.exists() and hanging.exists() and hanging.read_text(), "both run")
        pid = int(hanging.read_text())
        await known.tell(Cancel(execution_id=name, command_id="c"))
        ended = await known.ended(name)
        await until(lambda: heeding.read_text() == "heeded", "the task hears that it is cancelled")
        await until(lambda: not psutil.pid_exists(pid), "what does not heed it is killed")
        assert ended.status == "cancelled"
        assert await reports_of(site, name) == []


async def test_order_of_a_killed_worker_is_not_begun_again_when_it_was_recalled(
    site: str,  # noqa: F811 - fixture
    tmp_path: Path,
) -> None:
    queue, (gone, quick) = await new_queue(site), ids(2)
    told = tmp_path / "pid"
    with worker(site, queue) as first:
        await until(lambda: "ready" in first.lines, "the worker has joined")
        await send(site, queue, order("test.process", "until cancelled", str(told), execution_id=gone))
        await until(told.exists, "the task runs")
        first.signal(signal.SIGKILL)
        first.ended()
    told.unlink()
    async with AIOKafkaProducer(bootstrap_servers=site) as producer:
        recall = Recall(execution_id=gone, recalls_before=100)
        await producer.send_and_wait(workflow_tasks(queue).name, encode_recall(recall), key=b"k")
    await send(site, queue, order("test.async", value="quick", execution_id=quick))
    async with serving(site, queue):
        await wait_for_reports(site, 1, quick)
        assert not told.exists()
        assert await reports_of(site, gone) == []
    # Both are done: the next worker is given neither.
    last = ids(1)
    await send(site, queue, order("test.async", execution_id=last[0]))
    async with serving(site, queue):
        await asyncio.wait_for(wait_for_reports(site, 1, *last), 60)
    assert not told.exists()
