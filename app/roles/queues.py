"""The part of the role `worker` that carries out the orders of task queues."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from agents.tasks import QueueLimits, TaskQueue
from app.adapters.expressions import CelExpressions
from app.adapters.faust_app import Delivered, running
from app.adapters.tasks.build import new_executor
from app.adapters.transport import TransportLimits
from app.domain.watchdog import Progress
from app.http.health import Check
from app.ports import TaskExecutor
from app.roles.context import Context, first_of, raise_crash, stopped
from app.task_ends import Parts
from config.topics import WORKFLOW_COMMANDS, workflow_tasks

# Of a partition: one task that takes an hour must not hold up those behind it, which end before it.
OUTSTANDING: Final = 20_000
KEEP_BYTES: Final = 65_536
REPORT_OVERHEAD_BYTES: Final = 4_096


async def run_queues(context: Context) -> None:
    """Serve every queue of `tasks.queues` with one executor, until stop."""
    executor = new_executor(
        context.settings,
        CelExpressions(),
        context.clock,
        context.producer_limits("tasks-executor"),
        tracing=context.tracing,
    )
    try:
        async with Parts() as parts:
            for queue in context.settings.tasks.queues:
                parts.create_task(run_queue(context, queue, executor), name=f"tasks {queue}")
    finally:
        await executor.close()


async def run_queue(context: Context, queue: str, executor: TaskExecutor) -> None:
    """Serve one queue in a group of its own. On stop what ends in time is reported; the rest is redelivered."""
    tasks, name = context.settings.tasks, f"tasks-{queue}"
    limits = QueueLimits(
        in_flight=tasks.queue_in_flight,
        late_ms=tasks.order_late_ms,
        keep_bytes=KEEP_BYTES,
        report_bytes=context.settings.producer.max_request_bytes - REPORT_OVERHEAD_BYTES,
    )
    async with context.producer(name) as producer:
        partitions = await producer.partitions(WORKFLOW_COMMANDS.name)
        served = TaskQueue(executor, producer, context.clock, partitions, limits)
        app = context.faust_app(name, TransportLimits(outstanding_records=OUTSTANDING, outstanding_batches=OUTSTANDING))
        app.add_agent(name, workflow_tasks(queue).name, lambda stream: served.run(_batches(stream)))
        context.health.add(name, lambda: Check(app.has_joined, f"{served.in_flight} under way"))
        # Orders under way for long are no stall: only what waits while there is room counts.
        context.health.watch(
            name,
            lambda: Progress(0 if served.in_flight else sum(app.lags().values()), served.processed),
        )
        try:
            async with running(app):
                await first_of(
                    served.failed,
                    asyncio.create_task(raise_crash(app), name=f"{name} crash"),
                    stopped(context.stop),
                )
        finally:
            context.health.unwatch(name)
            await served.close()


class _Orders(Delivered):
    """A batch of orders; implements `agents.tasks.OrderBatch`."""

    __slots__ = ()

    @property
    def is_current(self) -> bool:
        """Whether its partition was not given up since."""
        return bool(self._event.message.range.live)


async def _batches(stream: Any) -> AsyncIterator[_Orders]:
    async for event in stream.noack().events():
        yield _Orders(event)
