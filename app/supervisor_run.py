"""The run of `headrace up`: ports, Kafka, topics, children, the screen, and the stop in order."""

import asyncio
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

import app
from app.adapters import runtime_metrics
from app.adapters.clock import SystemClock
from app.domain.drain import Look, outlook
from app.errors import EnvironmentError_, HeadraceError
from app.http.config import document
from app.http.health import Check, HealthRegistry
from app.http.ops import Group, ops_app
from app.http.server import Address, HttpServer, bind, bind_all, stop_all
from app.lifecycle import Deadline, exit_now, on_stop_signals, ops_addresses
from app.log import is_colored as log_colored
from app.node import Node, NodePlan
from app.supervisor import Supervisor
from app.supervisor_child import worker_command
from app.supervisor_screen import Screen, Totals, block, ledger_line, rate_line, rates
from app.supervisor_view import SupervisorView
from app.task_ends import error_of
from config.settings import Settings

log = logging.getLogger(__name__)

ROLES = ("producer", "worker", "coordinator", "api-gateway")
PROGRAM = "headrace"
PLAIN_STATUS_EVERY = 10
# The block of addresses comes when all of them answer, but no later than this.
READY_WAIT_S = 10.0
READY_POLL_S = 0.2
DEMONSTRATION_WAIT_S = 30.0
DRAIN_POLL_S = 0.25
BOOTSTRAP_VARIABLE = "HEADRACE_KAFKA__BOOTSTRAP_SERVERS"
T = TypeVar("T")
U = TypeVar("U")


class Broker(Protocol):
    """A Kafka that belongs to this run."""

    @property
    def bootstrap(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def dead_nodes(self) -> list[int]: ...
    async def start_node(self, node_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run is made of; `broker` None means that `bootstrap_servers` is somebody else's.

    `demonstrate` starts an execution that fails on purpose, and gives its id. With `joins` false nothing waits for the
    registry of nodes, which a run without any Kafka could never reach.
    """

    settings: Settings
    bootstrap_servers: str
    data_folder: str
    broker: Broker | None
    prepare: Callable[[str], Awaitable[None]]
    roles: Sequence[str] = ROLES
    environ: Mapping[str, str] | None = None
    command: Callable[[str], Sequence[str]] = worker_command
    demonstrate: Callable[[str], Coroutine[Any, Any, str]] | None = None
    joins: bool = True


class Interrupted(HeadraceError):
    """Stopped before everything was up."""


class Run:
    """The state of one `headrace up`."""

    def __init__(self, plan: Plan, screen: Screen) -> None:
        self._plan = plan
        self._screen = screen
        self._stop = asyncio.Event()
        self._health = HealthRegistry(frozenset({"supervisor"}), app.__version__)
        self._kafka = Check(ok=False, detail="not started yet")
        self._servers: list[HttpServer] = []
        self._last_ledger: dict[str, Any] | None = None
        self._node: Node | None = None

    async def run(self) -> int:
        """1 ports, 2 Kafka, 3 topics, 4 children, 5 show until the end, 6 children in order, 7 Kafka, 8 ports.

        Raises `UserError` when a port or the broker cannot be had.
        """
        plan = self._plan
        supervisor, view = await self._open()  # 1
        on_stop_signals(self._stop, lambda: self._at_once(supervisor))
        code = 0
        try:
            self._screen.progress("Starting Kafka …" if plan.broker else "Waiting for Kafka …")
            bootstrap = await self._or_stop(self._start_kafka())  # 2
            await self._or_stop(_awaited(plan.prepare(bootstrap)))  # 3
            self._node = self._begin_node(supervisor, bootstrap)
            await self._or_stop(self._join())
            watch = None if self._node is None else self._node.started
            await supervisor.start({BOOTSTRAP_VARIABLE: bootstrap, **self._log_variables()}, watch)  # 4
            late, failing = await self._or_stop(_both(self._late_roles(supervisor, view), self._demonstrate(bootstrap)))
            self._screen.close()
            self._screen.line(self._block(bootstrap, late, failing))
            code = await self._show(supervisor, view)  # 5
        except Interrupted:
            log.info("stopped before everything was up", extra={"action": "start_interrupted"})
        finally:
            orderly = await self._close(supervisor, view)  # 6, 7, 8
        return code if orderly else code or 1

    async def _open(self) -> tuple[Supervisor, SupervisorView]:
        """Bind every port of the run before anything is started; answer on the supervisor's own."""
        settings = self._plan.settings
        inner, health, metrics = bind_all(
            Address("127.0.0.1", 0, "the supervisor", "health.port"), *ops_addresses(settings)
        )
        if "api-gateway" in self._plan.roles:
            self._refuse_taken_api_port([inner, health, metrics])
        runtime_metrics.install()
        supervisor = Supervisor(
            settings.supervisor,
            self._plan.roles,
            url=f"http://127.0.0.1:{inner.getsockname()[1]}",
            environ=os.environ if self._plan.environ is None else self._plan.environ,
            command=self._plan.command,
            relay=self._screen.relay if self._screen.is_terminal else None,
        )
        view = SupervisorView(supervisor, settings.supervisor, self._health, lambda: document(settings))
        self._health.add("kafka", lambda: self._kafka)
        only_health: tuple[Group, ...] = ("health",)
        only_metrics: tuple[Group, ...] = ("metrics",)
        self._servers = [
            HttpServer(ops_app(view), inner),
            HttpServer(ops_app(view, only_health), health),
            HttpServer(ops_app(view, only_metrics), metrics),
        ]
        for server in self._servers:
            await server.start()
        return supervisor, view

    def _refuse_taken_api_port(self, bound: list[socket.socket]) -> None:
        """The child binds it later; here only the plain sentence is wanted, before anything is started."""
        http = self._plan.settings.http
        try:
            bind(http.host, http.port, "the HTTP API", "http.port").close()
        except EnvironmentError_:
            for taken in bound:
                taken.close()
            raise

    async def _start_kafka(self) -> str:
        broker = self._plan.broker
        if broker is not None:
            await broker.start()
        bootstrap = self._plan.bootstrap_servers if broker is None else broker.bootstrap
        self._kafka = Check(ok=True, detail=bootstrap)
        return bootstrap

    def _begin_node(self, supervisor: Supervisor, bootstrap: str) -> Node | None:
        """The watch over the children and over other nodes, unless the settings want none."""
        if not self._plan.settings.cluster.enabled:
            return None
        loop = asyncio.get_running_loop()

        def kill(role: str, pid: int, why: str) -> None:
            loop.call_soon_threadsafe(supervisor.kill, role, why, pid)

        node = Node(NodePlan(self._plan.settings, bootstrap, self._plan.roles, kill), SystemClock())
        node.start()
        return node

    async def _join(self) -> None:
        """Be a member of the cluster before anything is worked on. Raises `UserError` when that is refused."""
        if self._node is not None and self._plan.joins:
            self._health.add("cluster", self._node.check)
            await self._node.joined()

    def _log_variables(self) -> dict[str, str]:
        """On a terminal the children write for people too, although they speak through a pipe."""
        log_settings = self._plan.settings.log
        if not self._screen.is_terminal or log_settings.format != "auto":
            return {}
        color = log_settings.color == "always" or (log_settings.color == "auto" and log_colored())
        return {"HEADRACE_LOG__FORMAT": "console", "HEADRACE_LOG__COLOR": "always" if color else "never"}

    async def _late_roles(self, supervisor: Supervisor, view: SupervisorView) -> list[str]:
        """Wait until every role is ready, one has died, or `READY_WAIT_S` is over; the roles that are not ready."""
        deadline = Deadline(READY_WAIT_S)
        while True:
            answer = await view.health("ready")
            late = [role for role, child in orjson.loads(answer.body)["children"].items() if child["status"] != "ok"]
            has_died = any(slot.child is None or slot.restarts for slot in supervisor.slots.values())
            if not late or has_died or not deadline.remaining_s():
                return late
            self._screen.progress(f"Starting: {', '.join(late)} …")
            await asyncio.sleep(READY_POLL_S)

    async def _demonstrate(self, bootstrap: str) -> str | None:
        """The execution that fails on purpose, of one node for all; a run without it is as good."""
        if self._plan.demonstrate is None or (self._node is not None and not self._node.leads):
            return None
        try:
            async with asyncio.timeout(DEMONSTRATION_WAIT_S):
                return await self._plan.demonstrate(bootstrap)
        except (HeadraceError, TimeoutError) as error:
            text = str(error) or f"not within {DEMONSTRATION_WAIT_S:g} s"
            log.warning("no demonstration: %s", text, extra={"action": "demonstration_failed"})
            return None

    async def _or_stop(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, unless the stop comes first."""
        task = asyncio.create_task(work, name="start")
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        error = error_of(task)
        if error is not None and not self._stop.is_set():
            raise error
        if error is not None or task.cancelled():
            raise Interrupted
        return task.result()

    async def _show(self, supervisor: Supervisor, view: SupervisorView) -> int:
        """Live lines until the stop; the exit code."""
        tasks = {
            asyncio.create_task(self._stop.wait(), name="stop"),
            asyncio.create_task(supervisor.failed(), name="children"),
            asyncio.create_task(self._status(supervisor, view), name="status"),
            asyncio.create_task(
                runtime_metrics.watch_loop(self._plan.settings.metrics.loop_lag_interval_ms / 1000), name="loop lag"
            ),
        }
        if self._node is not None:
            tasks.add(asyncio.create_task(self._node.ended(), name="node"))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = error_of(task)
                if isinstance(error, HeadraceError):
                    self._screen.close()
                    log.critical(str(error), extra={"action": "child_hopeless"})
                    return error.exit_code
                if error is not None:
                    raise error
            return 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _status(self, supervisor: Supervisor, view: SupervisorView) -> None:
        interval_s = self._plan.settings.supervisor.status_interval_s
        every = 1 if self._screen.is_terminal else PLAIN_STATUS_EVERY
        before: Totals | None = None
        looks = 0
        while True:
            await asyncio.sleep(interval_s)
            looks += 1
            await self._keep_kafka()
            await view.look()
            if looks % every:
                continue
            merged = await view.scrape()
            self._last_ledger = view.ledger_of(merged)
            down = [role for role, slot in supervisor.slots.items() if slot.child is None]
            if merged.silent:  # sums without them would show rates that never were
                self._screen.status(f"no answer yet: {', '.join(merged.silent)}")
                continue
            now = Totals.of(merged, time.monotonic())
            if before is not None:
                self._screen.status(rate_line(rates(before, now), down))
            before = now

    async def _keep_kafka(self) -> None:
        """Start the embedded broker again when its process has died."""
        broker = self._plan.broker
        for node_id in broker.dead_nodes() if broker else ():
            assert broker is not None
            self._kafka = Check(ok=False, detail="died; starts again")
            await broker.start_node(node_id)
            self._kafka = Check(ok=True, detail=broker.bootstrap)
            log.warning("the embedded Kafka had died and runs again", extra={"action": "kafka_restarted"})

    async def _close(self, supervisor: Supervisor, view: SupervisorView) -> bool:
        """Children, Kafka, ports; everything shares one deadline."""
        self._screen.close()
        self._screen.progress("Stopping …")
        self._health.stopping()
        if self._node is not None:
            self._node.leave()
        deadline = Deadline(self._plan.settings.health.stop_deadline_s)
        orderly = await supervisor.stop(Deadline(deadline.remaining_s() * 0.8), lambda: self._drain(view))
        if supervisor.started:
            self._screen.line(ledger_line(view.ledger_of(await view.scrape())))
        if self._node is not None:
            await asyncio.to_thread(self._node.stop)
        orderly &= await self._stop_kafka(deadline)
        await view.close()
        await stop_all(self._servers, timeout_s=2.0)
        self._screen.close()
        return orderly

    async def _drain(self, view: SupervisorView) -> None:
        """Return when no stage has records waiting, or when they cannot be worked off in time."""
        ends_s = time.monotonic() + self._plan.settings.supervisor.drain_timeout_s
        first: Look | None = None
        while True:
            merged = await view.scrape()
            now = Look(time.monotonic(), merged.total("stream_lag_records"))
            if merged.silent and now.at_s < ends_s:  # too busy to answer is not at the end
                await asyncio.sleep(DRAIN_POLL_S)
                continue
            first = first or now
            verdict = outlook(first, now, ends_s)
            if verdict == "done":
                break
            if verdict == "hopeless" or now.at_s + DRAIN_POLL_S >= ends_s:
                self._screen.line(f"{now.lag:,.0f} records wait in Kafka; the next start goes on with them.")
                break
            self._screen.progress(f"Stopping: {now.lag:,.0f} records are being worked off …")
            await asyncio.sleep(DRAIN_POLL_S)
        self._screen.progress("Stopping …")

    async def _stop_kafka(self, deadline: Deadline) -> bool:
        """Last, because everything else leaves its last words in it; with five seconds in any case."""
        if self._plan.broker is None:
            return True
        self._screen.progress("Stopping Kafka …")
        stopping = asyncio.create_task(self._plan.broker.stop(), name="stop Kafka")
        await asyncio.wait({stopping}, timeout=max(5.0, deadline.remaining_s()))
        if stopping.done():
            await stopping
            return True
        log.error("Kafka did not stop in time", extra={"action": "stop_deadline_exceeded"})
        stopping.cancel()
        await asyncio.wait({stopping})
        return False

    def _at_once(self, supervisor: Supervisor) -> None:
        """The second Ctrl-C: nothing is waited for. The kernel ends what is tied to this process."""
        supervisor.kill_all()
        self._screen.close()
        exit_now(130)

    def _block(self, bootstrap: str, late: Sequence[str], failing: str | None) -> str:
        settings = self._plan.settings
        inner, health, metrics = self._servers
        return block(
            api=f"http://{settings.http.host}:{settings.http.port}" if "api-gateway" in self._plan.roles else inner.url,
            health=health.url,
            metrics=metrics.url,
            bootstrap=bootstrap,
            embedded=self._plan.broker is not None,
            data=self._plan.data_folder,
            late=late,
            failing=failing,
            program=typed(sys.argv[0]),
        )


def typed(called: str) -> str:
    """What a person types here for this program, which was `called` so: by name where the shell finds it."""
    if Path(called).name != PROGRAM or shutil.which(PROGRAM) is not None:
        return PROGRAM
    return os.path.relpath(called)


async def _both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    first, second = await asyncio.gather(one, other)
    return first, second


async def _awaited(work: Awaitable[T]) -> T:
    return await work
