"""What tests of the engine share: definitions in memory, an obedient executor, a coordinator and the log it writes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer

from app.adapters.clock import SystemClock
from app.adapters.expressions import CelExpressions
from app.adapters.producer import BatchProducer, ProducerLimits
from app.domain.workflow.commands import Command, Report, Start, TaskError
from app.domain.workflow.definition import Task, Workflow
from app.domain.workflow.events import Event, ExecutionEnded
from app.domain.workflow.evolve import fold
from app.domain.workflow.orders import TaskOrder
from app.domain.workflow.placement import partition_of
from app.domain.workflow.state import Execution
from app.http.health import HealthRegistry
from app.ports import Definitions, OutRecord, Reported, TaskExecutor
from app.roles.context import Context
from app.roles.coordinator import run_engine
from app.workflow_wire import decode_run, encode_command
from config.settings import Settings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS
from tests.helpers.kafka import until


class KnownWorkflows:
    """Definitions in memory; `late` ones are known only once someone has caught up."""

    def __init__(self, *workflows: Workflow) -> None:
        self._known = {(one.id, one.version): one for one in workflows}
        self.late: list[Workflow] = []

    def get(self, workflow: str, version: str) -> Workflow | None:
        return self._known.get((workflow, version))

    def latest(self, workflow: str) -> Workflow | None:
        return next((one for (name, _), one in self._known.items() if name == workflow), None)

    def forget(self, workflow: str) -> None:
        for place in [place for place in self._known if place[0] == workflow]:
            del self._known[place]

    async def caught_up(self) -> None:
        for one in self.late:
            self._known[one.id, one.version] = one


class ObedientExecutor:
    """Does in memory what the parameter `do` says: echo (default), fail, fail_first:N, hang; keeps its orders."""

    def __init__(self, slots: int = 100) -> None:
        self.slots = slots
        self.orders: list[TaskOrder] = []
        self.cancelled: list[tuple[str, str | None, int | None]] = []
        self.let_go = asyncio.Event()
        self._expressions = CelExpressions()
        self._running: dict[tuple[str, str, int | None], tuple[TaskOrder, Reported]] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self._running)

    def submit(self, order: TaskOrder, report: Reported) -> bool:
        if self.free <= 0:
            return False
        self.orders.append(order)
        place = (order.execution_id, order.task, order.item)
        self._running[place] = (order, report)
        if self._does(order) != "hang":
            asyncio.get_running_loop().call_soon(self._end, place)
        return True

    def cancel(
        self, execution_id: str, task: str | None = None, item: int | None = None, *, before: int | None = None
    ) -> None:
        self.cancelled.append((execution_id, task, item))
        for place in [p for p in self._running if p[0] == execution_id and task in {None, p[1]}]:
            if before is None or self._running[place][0].token < before:
                del self._running[place]

    def finish(self, execution_id: str) -> None:
        """Let what hangs of an execution end well."""
        for place in [p for p in self._running if p[0] == execution_id]:
            self._end(place)

    async def close(self) -> None:
        self._running.clear()

    def _does(self, order: TaskOrder) -> str:
        return str(order.params.get("do", "echo"))

    def _end(self, place: tuple[str, str, int | None]) -> None:
        order, report = self._running.pop(place, (None, None))
        if order is None or report is None:
            return
        does = self._does(order)
        failing = does == "fail" or (does.startswith("fail_first:") and order.attempt <= int(does.partition(":")[2]))
        error = TaskError(type="Broken", message="it broke") if failing else None
        names = {**order.context.get("needs", {}), **order.context}
        result = None if error else self._expressions.render(order.params.get("value"), names)
        report(
            Report(
                execution_id=order.execution_id,
                task=order.task,
                item=order.item,
                attempt=order.attempt,
                token=order.token,
                result=result,
                error=error,
                duration_ms=0.1,
                worker="test",
            )
        )


def workflow(name: str, *tasks: Task, **fields: Any) -> Workflow:
    return Workflow(id=name, version="v1", tasks={task.name: task for task in tasks}, **fields)


def task(name: str, *needs: str, type: str = "echo", **fields: Any) -> Task:  # noqa: A002 - as in a definition
    params = fields.pop("params", None) or {k: fields.pop(k) for k in ("do", "value") if k in fields}
    return Task(name=name, type=type, needs=needs, params=params, **fields)


def settings(broker: str, folder: Path, **workflow_settings: Any) -> Settings:
    return Settings(
        kafka={"bootstrap_servers": broker, "session_timeout_ms": 6_000},
        tables={"directory": str(folder)},
        producer={"flush_interval_ms": 1},
        workflow=workflow_settings,
    )


class Coordinator:
    """An engine in this process, until its block ends."""

    def __init__(self, context: Context, definitions: Definitions, executor: TaskExecutor | None) -> None:
        self.context = context
        self.executor = executor
        self._definitions = definitions
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.create_task(run_engine(self.context, self._definitions, self.executor))
        await until(self._is_ready, "the engine has its partitions")

    def _is_ready(self) -> bool:
        assert self.task is not None
        if self.task.done():
            self.task.result()
        return self.context.health.ready().ok

    async def stop(self) -> None:
        self.context.stop.set()
        if self.task is not None:
            await self.task


@contextlib.asynccontextmanager
async def coordinator(
    chosen: Settings, definitions: Definitions, executor: TaskExecutor | None
) -> AsyncIterator[Coordinator]:
    health = HealthRegistry(frozenset(), "1")
    context = Context(chosen, lambda: chosen, health, asyncio.Event(), SystemClock())
    running = Coordinator(context, definitions, executor)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


class Book:
    """Sends commands, and reads the histories that come of them."""

    def __init__(self, producer: BatchProducer, partitions: int) -> None:
        self._producer = producer
        self._partitions = partitions
        self.histories: dict[str, list[Event]] = {}

    async def tell(self, *commands: Command) -> None:
        now_ms = int(time.time() * 1000)
        await self._producer.publish(
            [
                OutRecord(
                    WORKFLOW_COMMANDS.name,
                    one.execution_id.encode(),
                    encode_command(replace(one, at_ms=now_ms) if isinstance(one, Start) else one),
                    now_ms,
                    (),
                    partition_of(one.execution_id, self._partitions),
                )
                for one in commands
            ]
        )

    def take(self, value: bytes) -> None:
        run = decode_run(value)
        events = self.histories.setdefault(run.execution_id, [])
        events += [event for event in run.events if event.seq >= len(events)]

    def state(self, execution_id: str) -> Execution | None:
        return fold(self.histories.get(execution_id, ()))

    async def ended(self, execution_id: str, runs: int = 1) -> Execution:
        """The state once an execution has ended for the `runs`-th time."""
        await self.seen(
            execution_id,
            lambda events: sum(isinstance(event, ExecutionEnded) for event in events) >= runs,
            f"{execution_id} ends",
        )
        state = self.state(execution_id)
        assert state is not None
        return state

    async def seen(self, execution_id: str, holds: Callable[[Sequence[Event]], bool], what: str) -> None:
        await until(lambda: holds(self.histories.get(execution_id, [])), what)


@contextlib.asynccontextmanager
async def book(broker: str) -> AsyncIterator[Book]:
    async with BatchProducer(ProducerLimits(broker, flush_interval_ms=1)) as producer:
        partitions = await producer.partitions(WORKFLOW_COMMANDS.name)
        kept = Book(producer, partitions)
        async with AIOKafkaConsumer(
            WORKFLOW_EVENTS.name, bootstrap_servers=broker, auto_offset_reset="earliest", fetch_max_wait_ms=20
        ) as consumer:

            async def follow() -> None:
                async for record in consumer:
                    kept.take(record.value)

            following = asyncio.create_task(follow())
            try:
                yield kept
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


def started(name: str, execution_id: str, given: Mapping[str, Any] | None = None, **fields: Any) -> Start:
    return Start(**{"execution_id": execution_id, "workflow": name, "version": "v1", "input": given or {}, **fields})
