"""One partition's engine over tables in memory, with a topic, a clock and an executor that a test drives by hand."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from agents.engine import Engine
from agents.engine_batch import Batch
from agents.engine_dispatch import Dispatcher
from agents.engine_entities import MakeEntities
from agents.engine_terms import Graphs, Node, Terms
from agents.stage import EARLY_TURNS
from app.adapters.expressions import CelExpressions
from app.domain.workflow.commands import Command, Report, TaskError
from app.domain.workflow.definition import Workflow
from app.domain.workflow.events import Event
from app.domain.workflow.evolve import fold
from app.domain.workflow.orders import TaskOrder
from app.domain.workflow.state import Execution
from app.ports import Reported, Tracing
from app.workflow_wire import decode_order, decode_recall, decode_run, encode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS
from tables.partition import TablePartition, Transaction
from tests.helpers.engine import KnownWorkflows
from tests.helpers.stages import SetClock
from tests.helpers.streams import Record
from tests.helpers.tables import Disk, Log, LogPublisher, open_tables

COMMANDS = WORKFLOW_COMMANDS.name
EXPRESSIONS = CelExpressions()


class HandExecutor:
    """Keeps what it is given until a test ends it."""

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.running: dict[tuple[str, str, int | None], tuple[TaskOrder, Reported]] = {}
        self.made: dict[str, int] = {}
        self.most_of: dict[str, int] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    def submit(self, order: TaskOrder, report: Reported) -> bool:
        if self.free <= 0:
            return False
        place = (order.execution_id, order.task, order.item)
        assert place not in self.running, f"{place} runs twice at once under one owner"
        self.running[place] = (order, report)
        return True

    def cancel(
        self, execution_id: str, task: str | None = None, item: int | None = None, *, before: int | None = None
    ) -> None:
        for place in [p for p in self.running if p[0] == execution_id and (task is None or p[1:] == (task, item))]:
            if before is None or self.running[place][0].token < before:
                del self.running[place]

    async def close(self) -> None:
        self.running.clear()

    def end(self, number: int) -> None:
        """End one of those that run: as its parameter `do` says, with its name and input as the result."""
        place = list(self.running)[number % len(self.running)]
        order, report = self.running.pop(place)
        key = order.idempotency_key
        self.made[key] = self.made.get(key, 0) + 1
        error = None
        does = str(order.params.get("do", ""))
        if does == "fail" or (does.startswith("fail_first:") and order.attempt <= int(does.partition(":")[2])):
            error = TaskError(type="Broken", message="it broke")
        report(
            Report(
                execution_id=order.execution_id,
                task=order.task,
                item=order.item,
                attempt=order.attempt,
                token=order.token,
                result=None if error else [order.task, order.item],
                error=error,
                worker="test",
            )
        )

    def end_all(self) -> None:
        while self.running:
            self.end(0)


class World:
    """A partition whose owner may die at any step."""

    def __init__(self, *workflows: Workflow, slots: int = 4, partitions: int = 1, **terms: Any) -> None:
        self.clock = SetClock()
        self.partitions = partitions
        self.log = Log()
        self.disk = Disk()
        self.commands: list[Record] = []
        self.executor = HandExecutor(slots)
        self.definitions = KnownWorkflows(*workflows)
        self.terms = Terms(**{"early_after_s": 0.0, **terms})
        self.failures: list[BaseException] = []
        self.make_entities: MakeEntities | None = None
        self.tracing: Tracing | None = None
        self.prompt = False  # what begins early has ended before the next turn of the loop
        self._histories: dict[str, list[Event]] = {}
        self._taken: dict[str, int] = {}
        self._on_their_way: deque[tuple[Batch, Transaction, int]] = deque()

    async def open(self) -> None:
        """A new owner, whose executor runs nothing; what is left of the last one's process reaches it no more."""
        self._on_their_way.clear()
        before, self.executor = self.executor, type(self.executor)(self.executor.slots)
        self.executor.made, self.executor.most_of = before.made, before.most_of
        self.publisher = LogPublisher(self.log)
        self.tables: TablePartition
        self.tables, _ = await open_tables(self.log, self.disk, self.publisher, self.clock.now_ms())
        dispatcher = Dispatcher(self.executor, self.publisher, self.clock, lambda: self.terms, self.failures.append)
        node = Node(
            terms=lambda: self.terms,
            definitions=self.definitions,
            graphs=Graphs(self.definitions),
            expressions=EXPRESSIONS,
            tasks=dispatcher,
            clock=self.clock,
            partitions=self.partitions,
            wake=lambda _: None,
            make_entities=self.make_entities,
            tracing=self.tracing,
        )
        self.engine = Engine(self.tables, node)
        self._read_outputs()

    async def crash(self, *, disk_too: bool = False) -> None:
        """The owner dies, perhaps with its machine, and another takes over."""
        self.disk.user = None
        if disk_too:
            self.disk = Disk()
        await self.open()

    def tell(self, *commands: Command) -> None:
        for one in commands:
            self._append(one.execution_id.encode(), encode_command(one))

    def _append(self, key: bytes | None, value: bytes | None) -> None:
        self.commands.append(Record(COMMANDS, 0, len(self.commands), self.clock.now_ms(), key, value))

    # ---- steps; each may stop before it is durable, or before the engine hears that it is ----

    @property
    def behind(self) -> int:
        return len(self.commands) - 1 - self.tables.applied.get(COMMANDS, -1)

    async def take(self, most: int, stop: str = "") -> None:
        first = self.tables.applied.get(COMMANDS, -1) + 1
        records = self.commands[first : first + most]
        if not records:
            return
        waiting = self.engine.prepare(records)
        if waiting is not None:
            await waiting
        now_ms = self.clock.now_ms()
        changes = self.engine.take(records, now_ms, behind=False)
        await self._write(changes, (COMMANDS, records[-1].offset), stop)

    async def tick(self, stop: str = "") -> bool:
        changes = self.engine.tick(self.clock.now_ms())
        if changes is not None:
            await self._write(changes, None, stop)
        return changes is not None

    async def _write(self, changes: Any, read: tuple[str, int] | None, stop: str) -> None:
        assert isinstance(changes, Batch)
        now_ms = self.clock.now_ms()
        for _ in range(EARLY_TURNS):
            if not self.engine.early(changes):
                break
            if self.prompt:
                self.executor.end_all()
            if stop == "early":
                await self.crash()
                return
            self.engine.add_heard(changes, now_ms)
        self.engine.conclude(changes, now_ms)
        if stop in {"early", "decided"}:
            await self.crash()
            return
        if read is None:
            written = self.tables.write(changes, timestamp_ms=now_ms)
        else:
            written = self.tables.write(changes, *read, timestamp_ms=now_ms)
        if stop in {"written", "lost"}:
            await self.crash(disk_too=stop == "lost")
            return
        self._on_their_way.append((changes, written, now_ms))
        if stop == "later" and len(self._on_their_way) < 3:
            return
        while self._on_their_way:
            changes, written, then_ms = self._on_their_way.popleft()
            await self.tables.settle(written, timestamp_ms=then_ms)
            self._read_outputs()
            if stop == "settled":
                await self.crash()
                return
            self.engine.settled(changes, then_ms)

    async def drain(self, *, forward_ms: int = 10_000) -> None:
        """Until nothing happens any more: tasks end, time passes up to `forward_ms`."""
        if self._on_their_way:
            await self._write(Batch(), None, "")
        ends_ms = self.clock.ms + forward_ms
        for _ in range(10_000):
            await self.take(100)
            await self.tick()
            await asyncio.sleep(0)
            while self.executor.running:
                self.executor.end(0)
            assert not self.failures
            if self.behind or self.engine.waiting or self.executor.running:
                continue
            if self.clock.ms >= ends_ms:
                return
            self.clock.ms += 100
        raise AssertionError("it does not come to rest")

    # ---- what came of it ----

    def _read_outputs(self) -> None:
        for record in self._new(COMMANDS):
            self._append(record.key, record.value)
        for record in self._new(WORKFLOW_EVENTS.name):
            run = decode_run(record.value)
            events = self._histories.setdefault(run.execution_id, [])
            events += [event for event in run.events if event.seq >= len(events)]

    def _new(self, topic: str) -> Sequence[Any]:
        found = self.log.topics[topic][self._taken.get(topic, 0) :]
        self._taken[topic] = self._taken.get(topic, 0) + len(found)
        return found

    def state(self, execution_id: str) -> Execution | None:
        return fold(self._histories.get(execution_id, ()))

    def history(self, execution_id: str) -> list[Event]:
        return self._histories.get(execution_id, [])

    def rows(self, prefix: bytes) -> list[bytes]:
        return [key for key, _ in self.tables.range(prefix, bytes((prefix[0] + 1,)))]

    async def rest(self) -> None:
        """Let what was handed to the loop happen."""
        for _ in range(50):
            await asyncio.sleep(0)

    def orders(self) -> list[TaskOrder]:
        """The orders that were sent to workers since the last look."""
        topics = [topic for topic in list(self.log.topics) if topic.startswith("workflow.tasks.")]
        records = [record for topic in topics for record in self._new(topic)]
        return [decode_order(record.value) for record in records if decode_recall(record.value) is None]
