"""Life of one process: ports first, then roles, a watchdog beside them, and a stop in order within one deadline."""

import asyncio
import ctypes
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import uvloop
from starlette.types import ASGIApp

import app
from app.adapters import collector, runtime_metrics
from app.adapters.beats import PipeBeats, Seats
from app.domain import watchdog
from app.domain.watchdog import StallPolicy, Watch
from app.errors import HeadraceError, Stalled
from app.http.config import document, publish_hash
from app.http.health import Check, HealthRegistry
from app.http.ops import Group, ops_app
from app.http.server import Address, HttpServer, bind, bind_all, stop_all
from app.http.view import LocalView, ledger_of_process
from app.metrics import REGISTRY
from app.task_ends import error_of
from config.settings import Settings

log = logging.getLogger(__name__)

ANNOUNCE_FD = "HEADRACE_ANNOUNCE_FD"
BEATS_FD = "HEADRACE_BEATS_FD"
SUPERVISOR_PID = "HEADRACE_SUPERVISOR_PID"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT_CHECK_INTERVAL_S = 1.0
READY_INTERVAL_S = 0.5
HURRIED_STOP_S = 2.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

RunRoles = Callable[[Settings, frozenset[str], HealthRegistry, asyncio.Event], Coroutine[Any, Any, None]]


class Deadline:
    """One budget of time shared by every step of a stop."""

    def __init__(self, seconds: float, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._ends_s = monotonic_s() + seconds

    def remaining_s(self, at_most_s: float = float("inf")) -> float:
        return max(0.0, min(at_most_s, self._ends_s - self._monotonic_s()))


@dataclass(frozen=True, slots=True)
class Parent:
    """The supervisor of this process, if it has one; `announce_fd` is the pipe to it, `beats_fd` that of beats."""

    pid: int | None = None
    announce_fd: int | None = None
    beats_fd: int | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Parent":
        pid, fd, beats = environ.get(SUPERVISOR_PID), environ.get(ANNOUNCE_FD), environ.get(BEATS_FD)
        return cls(int(pid) if pid else None, int(fd) if fd else None, int(beats) if beats else None)

    def announce(self, message: dict[str, Any]) -> None:
        """Write one JSON line to the supervisor; without one, nothing."""
        if self.announce_fd is None:
            return
        try:
            os.write(self.announce_fd, json.dumps(message).encode() + b"\n")
        except OSError as error:
            log.info("the supervisor hears no more", extra={"action": "announce_failed", "error": str(error)})


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process with its parent, and end at once if the parent is gone already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def main(
    settings: Settings,
    roles: frozenset[str],
    run_roles: RunRoles,
    current: Callable[[], Settings] | None = None,
    seats: Seats | None = None,
) -> int:
    """Run `roles` until a signal stops them; the exit code of the process.

    `current` gives the settings in force where they can be reloaded; `/config` shows them. `seats` are what the
    roles hold in their groups. Raises `UserError` when a port cannot be had; every other failure is logged here.
    """
    parent = Parent.from_environ(os.environ)
    if parent.pid is not None:
        die_with_parent(parent.pid)
    return uvloop.run(
        _Process(settings, roles, run_roles, parent, current or (lambda: settings), seats or Seats()).run()
    )


def ops_addresses(settings: Settings) -> tuple[Address, Address]:
    """Where health and metrics are served."""
    health, metrics = settings.health, settings.metrics
    return (
        Address(health.host, health.port, "the health endpoint", "health.port"),
        Address(metrics.host, metrics.port, "the metrics endpoint", "metrics.port"),
    )


def on_stop_signals(stop: asyncio.Event, at_once: Callable[[], None]) -> None:
    """The first signal sets `stop`, the second calls `at_once`."""

    def asked(which: signal.Signals) -> None:
        if stop.is_set():
            at_once()
        log.info("stopping", extra={"action": "stop_requested", "signal": which.name})
        stop.set()

    loop = asyncio.get_running_loop()
    for which in STOP_SIGNALS:
        loop.add_signal_handler(which, asked, which)


def exit_now(code: int) -> NoReturn:
    """End without another turn of the loop: something that must not be waited for is still running."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # called within a write to one of them, it may not be flushed
        os._exit(code)


class _Process:
    """The state of one run."""

    def __init__(
        self,
        settings: Settings,
        roles: frozenset[str],
        run_roles: RunRoles,
        parent: Parent,
        current: Callable[[], Settings],
        seats: Seats,
    ) -> None:
        self._seats = seats
        self._settings = settings
        self._current = current
        self._roles = roles
        self._run_roles = run_roles
        self._parent = parent
        self._health = HealthRegistry(roles, app.__version__)
        self._stop = asyncio.Event()
        self._loaded = asyncio.Event()
        self._cut_short = False

    async def run(self) -> int:
        """1 bind and answer, 2 announce, 3 run, 4 stop within the deadline, 5 last words, 6 close."""
        runtime_metrics.install()
        collector.widen()
        servers = [HttpServer(asgi, listening) for asgi, listening in self._listen()]  # 1
        on_stop_signals(self._stop, lambda: exit_now(130))
        for server in servers:
            await server.start()
        name = ",".join(sorted(self._roles))
        self._parent.announce({"pid": os.getpid(), "role": name, "health_url": servers[0].url})  # 2
        log.info(
            "process started",
            extra={"action": "process_started", "roles": name, "urls": [server.url for server in servers]},
        )
        code, overdue = await self._live(servers)  # 3 and 4
        self._parent.announce({"ledger": ledger_of_process()})  # 5
        await stop_all(servers, timeout_s=2.0)  # 6
        log.info("process stopped", extra={"action": "process_stopped", "roles": name, "exit_code": code})
        if overdue:
            exit_now(code)
        return code

    @property
    def _is_node(self) -> bool:
        """Whether this process has no supervisor and is a node of the cluster by itself."""
        settings = self._settings
        return self._parent.pid is None and settings.cluster.enabled and bool(settings.kafka.bootstrap_servers)

    async def _work(self) -> None:
        """The roles, once the watch is loaded: two threads must not load Kafka clients at the same time."""
        if self._is_node:
            # It takes seconds on a busy machine; health answers meanwhile.
            await asyncio.to_thread(importlib.import_module, "app.node")
            self._loaded.set()
        await self._run_roles(self._settings, self._roles, self._health, self._stop)

    async def _be_seen(self) -> None:
        """Beat to the supervisor, or be a node of the cluster where there is none. Raises why it may not be one."""
        if self._parent.beats_fd is not None:
            interval_s = self._settings.cluster.beat_interval_ms / 1000
            beats = PipeBeats(self._parent.beats_fd, self._seats, interval_s)
            beats.start()
            try:
                await asyncio.Event().wait()
            finally:
                beats.stop()
        await self._loaded.wait()
        await importlib.import_module("app.node").be_node(self._settings, self._roles, self._seats)

    def _listen(self) -> list[tuple[ASGIApp, socket.socket]]:
        """Under a supervisor one free loopback port, else the ports of the settings."""
        publish_hash(self._settings)
        view = LocalView(self._health, REGISTRY, lambda: document(self._current()))
        only_health: tuple[Group, ...] = ("health",)
        only_metrics: tuple[Group, ...] = ("metrics",)
        if self._parent.announce_fd is not None:
            return [(ops_app(view), bind("127.0.0.1", 0, "the health of a child process", "health.port"))]
        at, metrics_at = bind_all(*ops_addresses(self._settings))
        return [(ops_app(view, only_health), at), (ops_app(view, only_metrics), metrics_at)]

    async def _live(self, servers: list[HttpServer]) -> tuple[int, bool]:
        """The exit code, and whether something is still running that would not stop."""
        roles = asyncio.create_task(self._work(), name="roles")
        beside = [
            asyncio.create_task(watch(self._health, self._settings), name="watchdog"),
            asyncio.create_task(
                runtime_metrics.watch_loop(self._settings.metrics.loop_lag_interval_ms / 1000), name="loop lag"
            ),
            asyncio.create_task(freeze_when_started(self._health), name="gc freeze"),
            asyncio.create_task(self._be_seen(), name="node"),
            asyncio.create_task(_keep_ready(self._health, self._seats), name="readiness"),
        ]
        if self._parent.pid is not None:
            beside.append(asyncio.create_task(_follow_parent(self._parent.pid), name="parent check"))
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        watched = [roles, stopped, *beside, *(server.task for server in servers if server.task)]
        code = await self._first_end(roles, watched)
        overdue = await self._end(roles, code)
        for task in [stopped, *beside]:
            task.cancel()
        await asyncio.gather(stopped, *beside, return_exceptions=True)
        if not overdue:
            code = code or (0 if self._cut_short else _outcome(roles, stopping=self._stop.is_set()))
        return (code or 1) if overdue else code, overdue

    async def _first_end(self, roles: asyncio.Task[None], watched: list[asyncio.Task[Any]]) -> int:
        """Wait for the first end that matters; non-zero when it is not a stop and not the roles' own."""
        pending = set(watched)
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            failed = [(task, error) for task in done if task is not roles and (error := error_of(task))]
            if failed:
                task, error = failed[0]
                log.critical(
                    f"{task.get_name()}: {error}",
                    exc_info=None if isinstance(error, HeadraceError) else error,
                    extra={"action": "process_failed"},
                )
                return error.exit_code if isinstance(error, HeadraceError) else 1
            if roles in done or self._stop.is_set():
                return 0

    async def _end(self, roles: asyncio.Task[None], code: int) -> bool:
        """Let the roles drain; cancel them when time is up. True when even that does not end them.

        What failed beside its roles, or never came up, does not drain: what it holds is redelivered. But a producer's
        readings are nowhere else.
        """
        came_up = self._health.startup().ok or "producer" in self._roles
        self._health.stopping()
        self._stop.set()
        drains = code == 0 and came_up
        await asyncio.wait({roles}, timeout=self._settings.health.stop_deadline_s if drains else HURRIED_STOP_S)
        if roles.done():
            return False
        if code == 0 and not came_up:
            roles.cancel()
            await asyncio.wait({roles}, timeout=HURRIED_STOP_S)
            self._cut_short = roles.cancelled()
            if roles.done():
                return False
        log.error("the roles did not stop in time", extra={"action": "stop_deadline_exceeded"})
        roles.cancel()
        await asyncio.wait({roles}, timeout=2.0)
        return True


def _outcome(roles: asyncio.Task[None], *, stopping: bool) -> int:
    error = error_of(roles)
    if error is None:
        return 0 if stopping and not roles.cancelled() else 1
    if isinstance(error, HeadraceError):
        log.critical(str(error), extra={"action": "roles_failed", "error": type(error).__name__})
        return error.exit_code
    log.critical("the roles crashed", exc_info=error, extra={"action": "roles_failed"})
    return 1


async def watch(health: HealthRegistry, settings: Settings, monotonic_s: Callable[[], float] = time.monotonic) -> None:
    """Look at every watched stage; a stall turns readiness off, and raises `Stalled` when it lasts."""
    policy = StallPolicy(settings.health.stall_after_s, settings.health.exit_after_s)
    watches: dict[str, Watch] = {}
    health.add("progress", lambda: _progress_check(watches, policy), probe="guard")
    while True:
        now_s = monotonic_s()
        for name, progress in health.watched.items():
            seen = progress()
            known = watches.get(name)
            watches[name] = watchdog.begin(now_s, seen) if known is None else watchdog.observe(known, now_s, seen)
            found = watchdog.verdict(watches[name], policy)
            if found != "ok" and known is not None and watchdog.verdict(known, policy) == "ok":
                log.error(
                    "%s: %s for %.0f s",
                    name,
                    watches[name].complaint,
                    watches[name].idle_s,
                    extra={"action": "stage_stalled", "waits": where_tasks_wait()},
                )
            if found == "dead":
                raise Stalled(f"{name}: {watches[name].complaint} for {watches[name].idle_s:.0f} s.")
        for name in watches.keys() - health.watched.keys():
            del watches[name]
        await asyncio.sleep(settings.health.watchdog_interval_s)


def where_tasks_wait() -> list[str]:
    """Each task of this loop by name, and the awaits it is in, the innermost last: what a stall is found by."""
    found = []
    for task in asyncio.all_tasks():
        places: list[str] = []
        awaited: Any = task.get_coro()
        while awaited is not None and (frame := getattr(awaited, "cr_frame", None)) is not None:
            places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
            awaited = getattr(awaited, "cr_await", None)
        found.append(f"{task.get_name()}: {' > '.join(places[-6:])}")
    return sorted(found)


def _progress_check(watches: dict[str, Watch], policy: StallPolicy) -> Check:
    stalled = {name: seen for name, seen in watches.items() if watchdog.verdict(seen, policy) != "ok"}
    detail = "; ".join(f"{name}: {seen.complaint} for {seen.idle_s:.0f} s" for name, seen in stalled.items())
    return Check(not stalled, detail)


async def freeze_when_started(health: HealthRegistry) -> None:
    """Once all that lives as long as the process is built, spare the collector from walking it again and again."""
    while not health.startup().ok:  # noqa: ASYNC110 - checks are asked, they do not call
        await asyncio.sleep(0.25)
    collector.freeze()


async def _keep_ready(health: HealthRegistry, seats: Seats) -> None:
    """Whether this process is ready, for those who ask in another thread."""
    while True:
        ready = health.report("ready")[0] == 200
        if ready != seats.ready:
            seats.ready = ready
            seats.tell()
        await asyncio.sleep(READY_INTERVAL_S)


async def _follow_parent(pid: int) -> None:
    """Where the kernel does not kill a child with its parent, see that the parent has changed."""
    while os.getppid() == pid:  # noqa: ASYNC110 - the kernel sends no event for this
        await asyncio.sleep(PARENT_CHECK_INTERVAL_S)
    exit_now(1)
