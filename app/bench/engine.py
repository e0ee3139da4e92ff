"""Our engine under test: coordinator and API as they ship, processes of their own on the bench's broker."""

import asyncio
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from app.adapters.embedded.ports import choose_ports
from app.adapters.topic_reader import TopicReader
from app.bench.broker import BenchBroker
from app.bench.child import Child, SideFailed, start
from app.bench.load import Answer, Pool, get, post
from app.domain.workflow.events import Event
from app.errors import UserError
from app.workflow_wire import Run, decode_run
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS

HOST = "127.0.0.1"
PROCESSES = {"coordinator": "coordinator", "api-gateway": "api-gateway"}
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 35.0
POLL_S = 0.05
TOPICS = "workflow."


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    return choose_ports([(0, "")])[0]


class Engine:
    """The two processes; a context manager, after which they and the topics of workflows are gone.

    `processes` are others, name to role; each is a node of its own.
    """

    def __init__(
        self,
        broker: BenchBroker,
        settings: Mapping[str, Any] | None = None,
        processes: Mapping[str, str] = MappingProxyType(PROCESSES),
    ) -> None:
        self._broker = broker
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-bench-engine-")
        self._roles = dict(processes)
        self.port, *ports = choose_ports([(0, "")] * (1 + 2 * len(processes)))
        self._health = dict(zip(processes, ports, strict=False))
        self._metrics = dict(zip(processes, ports[len(processes) :], strict=True))
        self._settings: dict[str, Any] = {
            "kafka.bootstrap_servers": broker.bootstrap_servers,
            "kafka.client_id": broker.name("engine"),
            "http.executions.directory": str(Path(self._folder.name) / "executions"),
            "http.host": HOST,
            "http.port": self.port,
            "log.level": "WARNING",
            "tasks.python_modules": '["app.bench.ours"]',
            **(settings or {}),
        }
        self.children: dict[str, Child] = {}
        self.ended_by_themselves = 0

    async def __aenter__(self) -> Self:
        if WORKFLOW_COMMANDS.name in await self._broker.topics():
            self._folder.cleanup()
            raise UserError(
                f"The broker has a topic {WORKFLOW_COMMANDS.name} already: benchmarks of workflows need one of their "
                "own, which they start when no --bootstrap is given."
            )
        try:
            for name in self._roles:
                self.children[name] = await self._start(name)
            await self._until_ready(*self._roles)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    async def kill(self, name: str) -> None:
        """SIGKILL one process."""
        self._signal(name, signal.SIGKILL)
        await self.children[name].process.wait()

    async def stop(self, name: str) -> None:
        """SIGTERM one process, and wait until it has ended. Raises `SideFailed` when it does not."""
        self._signal(name, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.children[name].process.wait()
        except TimeoutError:
            raise SideFailed(f"{name} had not stopped {STOP_TIMEOUT_S:.0f} s after SIGTERM") from None

    def freeze(self, name: str) -> None:
        """SIGSTOP one process."""
        self._signal(name, signal.SIGSTOP)

    async def thaw(self, name: str) -> None:
        """SIGCONT one that is frozen, and see to it that all are ready: who ended is started, as a supervisor does."""
        self._signal(name, signal.SIGCONT)
        for one in self.children:
            try:
                await self._until_ready(one)
            except SideFailed:
                self.ended_by_themselves += 1
                await self.start_again(one)

    def _signal(self, name: str, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            self.children[name].process.send_signal(number)

    async def start_again(self, name: str) -> None:
        """Start one that was killed, on the folder that it had, and wait until it is ready."""
        await self.children[name].stop()
        self.children[name] = await self._start(name)
        await self._until_ready(name)

    async def _start(self, name: str) -> Child:
        folder = Path(self._folder.name) / name
        folder.mkdir(exist_ok=True)
        own = {
            "health.port": self._health[name],
            "metrics.port": self._metrics[name],
            "tables.directory": str(folder / "tables"),
        }
        flags = [word for key, value in {**self._settings, **own}.items() for word in ("--set", f"{key}={value}")]
        return await start([sys.executable, "-m", "app", "worker", "--roles", self._roles[name], *flags], folder)

    async def _until_ready(self, *names: str) -> None:
        """All of them, within `READY_TIMEOUT_S`."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            for name in names:
                await self._until_one_is_ready(name)

    async def _until_one_is_ready(self, name: str) -> None:
        while True:
            self.children[name].check()
            with contextlib.suppress(OSError):
                async with Pool(HOST, self._health[name], 1) as pool:
                    if (await pool.request(get(HOST, "/health/ready"))).status == 200:
                        return
            await asyncio.sleep(POLL_S)

    async def _close(self) -> None:
        for role in reversed(self.children):
            self.children[role].sample_usage()
            await self.children[role].stop()
        await self._broker.delete_topics(TOPICS)
        self._folder.cleanup()

    # ---- asking ----

    def pool(self, connections: int) -> Pool:
        """Connections to the API."""
        return Pool(HOST, self.port, connections)

    async def register(self, definition: Mapping[str, Any]) -> None:
        """Register a workflow. Raises `SideFailed` when it is refused."""
        async with self.pool(1) as pool:
            answer = await pool.request(post(HOST, "/api/v1/workflows", json.dumps(definition).encode()))
        if answer.status not in {200, 201}:
            raise SideFailed(f"the workflow was refused: {told(answer)}")

    async def metric(self, role: str, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        async with Pool(HOST, self._metrics[role], 1) as pool:
            answer = await pool.request(get(HOST, "/metrics"))
        if answer.status != 200:
            raise SideFailed(f"{role} tells no metrics: {told(answer)}")
        text = answer.body.decode()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = re.findall(rf"^{re.escape(name)}(\{{[^}}]*\}})? (\S+)", text, re.MULTILINE)
        return sum(float(value) for given, value in lines if all(one in given for one in wanted))

    async def ended(self, workflow: str, status: str | None = None) -> int:
        """Executions of a workflow that have ended since the start of the coordinator."""
        labels = {"workflow": workflow} | ({"status": status} if status else {})
        return int(await self.metric("coordinator", "workflow_executions_total", **labels))

    async def until_ended(self, workflow: str, count: int, timeout_s: float) -> None:
        """Return when so many executions have ended. Raises `SideFailed` when a process dies or the time is over."""
        deadline = time.monotonic() + timeout_s
        while (found := await self.ended(workflow)) < count:
            for role, child in self.children.items():
                child.check()
                child.sample_usage()
                if child.process.returncode is not None:
                    raise SideFailed(f"{role} has ended")
            if time.monotonic() > deadline:
                raise SideFailed(f"{found:,} of {count:,} executions have ended in {timeout_s:.0f} s")
            await asyncio.sleep(POLL_S)

    def figures(self) -> dict[str, Any]:
        """CPU and memory of the processes so far."""
        found: dict[str, Any] = {}
        for role, child in self.children.items():
            usage = child.sample_usage()
            found[f"{role} cpu_s"] = round(usage.cpu_s, 2)
            found[f"{role} rss_mb"] = round(usage.rss_mb, 1)
        return found

    async def runs(self, since: Mapping[int, int] | None = None) -> AsyncIterator[tuple[int, Run]]:
        """Every run of events on the topic, with its partition, from `since` on."""
        reader = self._reader()
        name = WORKFLOW_EVENTS.name
        async for batch in reader.read(name, since or await reader.begins(name), await reader.ends(name)):
            for record in batch:
                yield record.partition, decode_run(record.value)

    async def histories(self, since: Mapping[int, int] | None = None) -> dict[str, list[Event]]:
        """The events on the topic by execution, from `since` on; for runs that fit into memory."""
        found: dict[str, list[Event]] = {}
        async for _, run in self.runs(since):
            found.setdefault(run.execution_id, []).extend(run.events)
        return found

    async def ends(self) -> dict[int, int]:
        """The ends of the events now, to read from later."""
        return await self._reader().ends(WORKFLOW_EVENTS.name)

    def _reader(self) -> TopicReader:
        return TopicReader(KafkaSettings(bootstrap_servers=self._broker.bootstrap_servers))


def told(answer: Answer) -> str:
    """Status and the beginning of the body, for the reason of a failure."""
    return f"{answer.status} {answer.body[:300].decode(errors='replace')}"


def start_batch(workflow: str, inputs: Sequence[Any]) -> bytes:
    """A batch of starts as it goes over the wire."""
    body = json.dumps([{"input": given} for given in inputs]).encode()
    return post(HOST, f"/api/v1/workflows/{workflow}/execute:batch", body)


def start_one(workflow: str, given: Any, *, wait_s: float = 0) -> bytes:
    """One start as it goes over the wire."""
    path = f"/api/v1/workflows/{workflow}/execute" + (f"?wait={wait_s:g}" if wait_s else "")
    return post(HOST, path, json.dumps({"input": given}).encode())
