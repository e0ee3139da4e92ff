"""One node of the cluster: a thread that watches over its processes and over the other nodes.

It is a thread with a loop of its own so that nothing which the main loop does delays it: what it decides it decides by
the clock, and a stall of its own makes it begin to count anew.
"""

import asyncio
import hashlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import app
from app.adapters.beats import Seats
from app.adapters.clock import SystemClock
from app.adapters.connection import security_options
from app.adapters.group_leave import GroupRemover
from app.cluster_registry import ClusterRegistry
from app.domain import detector
from app.domain.cluster import GroupSeat, NodeView, ProcessView
from app.domain.detector import NEVER, Own, Patience
from app.domain.membership import has_heir
from app.errors import EnvironmentError_, HeadraceError
from app.http.health import Check
from app.node_children import Children, Kill
from app.node_peers import MACHINE, PID, Peers, machine_id
from app.node_removal import Removal
from app.ports import Clock
from app.task_ends import error_of
from config.cluster import ClusterSettings
from config.settings import Settings

log = logging.getLogger(__name__)

STOP_S: Final = 6.0
POLL_S: Final = 0.02
ENDED_POLL_S: Final = 0.25
TELL_INTERVAL_S: Final = 1.0
ANYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - addresses to compare with


def node_id_of(settings: Settings, roles: Sequence[str]) -> str:
    """The name of this node: the settings', or one of its own on this host that stays the same from start to start.

    Several workers may share a folder, such as an API beside an engine: what tells them apart are roles and ports, and
    where a port is any free one, the process.
    """
    if settings.cluster.node_id:
        return settings.cluster.node_id
    folder = str(Path(settings.tables.directory).expanduser().absolute())
    ports = [settings.health.port or f"process {os.getpid()}", settings.http.port if "api-gateway" in roles else ""]
    named = "\x1f".join(map(str, [folder, *sorted(roles), *ports]))
    return f"{socket.gethostname()}-{hashlib.blake2s(named.encode(), digest_size=4).hexdigest()}"


def patience_of(settings: ClusterSettings) -> Patience:
    """The settings in seconds."""
    return Patience(
        beat_s=settings.beat_interval_ms / 1000,
        frozen_after_s=settings.frozen_after_ms / 1000,
        kill_after_s=settings.frozen_kill_after_s,
        unreachable_after_s=settings.unreachable_after_ms / 1000,
    )


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What a node is made of; `kill` is called in the node's thread.

    `processes` gives the views of processes that have no supervisor, that is of this one.
    """

    settings: Settings
    bootstrap_servers: str
    roles: Sequence[str]
    kill: Kill = lambda _role, _pid, _why: None
    processes: Callable[[], tuple[ProcessView, ...]] = tuple


class Node:
    """A running node; `start`, then `stop`. `failure` is why it ended before it was asked to."""

    def __init__(self, plan: NodePlan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._patience = patience_of(plan.settings.cluster)
        self._epoch = clock.now_ms()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._up = threading.Event()
        self._beats = ""
        self._leaving = False
        self._facts = MappingProxyType({"host": socket.gethostname(), MACHINE: machine_id(), PID: str(os.getpid())})
        self._children: Children | None = None
        self._registry: ClusterRegistry | None = None
        self._told_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)
        self.failure: BaseException | None = None
        self.node_id = node_id_of(plan.settings, plan.roles)

    # ---- what others call, in any thread ----

    def start(self) -> None:
        """Begin to watch; returns when it does. Raises `EnvironmentError_` when the port of the beats is taken."""
        self._thread.start()
        self._up.wait()
        if self.failure is not None:
            raise self.failure

    async def joined(self) -> None:
        """Return when the cluster has taken the node in. Raises why it has not."""
        while self._registry is None or not self._registry.joined.is_set():
            if not self._thread.is_alive():
                break
            await asyncio.sleep(POLL_S)
        if self.failure is not None:
            raise self.failure

    async def ended(self) -> None:
        """Return when it has ended. Raises why, when nobody asked it to."""
        while self._thread.is_alive():  # noqa: ASYNC110 - a thread ends without telling a loop
            await asyncio.sleep(ENDED_POLL_S)
        if self.failure is not None:
            raise self.failure

    def check(self) -> Check:
        """Whether it is a member in good standing."""
        return Check(ok=False, detail="starts") if self._registry is None else self._registry.check()

    @property
    def leads(self) -> bool:
        """Whether this node does what one has to do for all."""
        return self._registry is not None and self._registry.leader == self.node_id

    def leave(self) -> None:
        """This node is about to stop: that it falls silent is no surprise."""
        self._leaving = True

    def stop(self) -> None:
        """Return when it has left; the members that its processes still have leave by themselves."""
        self.leave()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(STOP_S)

    def started(self, role: str, pid: int, beats_fd: int) -> None:
        """A child of this node runs; its beats come in at `beats_fd`, which is the node's from now on."""
        if not self._thread.is_alive() or self._children is None:
            os.close(beats_fd)
            return
        self._loop.call_soon_threadsafe(self._children.started, role, pid, beats_fd)

    def view(self) -> NodeView:
        """What this node says of itself."""
        http, processes = self._plan.settings.http, self._processes()
        is_ready = bool(processes) and all(process.ready for process in processes)
        registered = 0 if self._registry is None else self._registry.epoch
        return NodeView(
            node_id=self.node_id,
            epoch=registered or self._epoch,
            version=app.__version__,
            state="leaving" if self._leaving else "ready" if is_ready else "joining",
            beats=self._beats,
            api=f"{http.host}:{http.port}" if "api-gateway" in self._plan.roles else "",
            processes=processes,
            facts=self._facts,
        )

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except HeadraceError as error:
            self.failure = error
        except Exception as error:
            log.exception("the watch over this node's processes failed", extra={"action": "process_failed"})
            self.failure = error
        finally:
            self._up.set()
            self._loop.close()

    async def _live(self) -> None:
        """(1) listen (2) watch, beat, remove, be registered (3) at the stop: end what is under way (4) close."""
        settings, bootstrap = self._plan.settings, self._plan.bootstrap_servers
        remover = GroupRemover(
            bootstrap, f"{settings.kafka.client_id}-node", security_options(settings.kafka), self._clock.monotonic_s
        )
        removal = Removal(remover, self._clock)
        children = Children(
            self._patience,
            self._clock.monotonic_s,
            removal.of_child,
            self._plan.kill,
            remover.know,
            has_heir=lambda seats: self._has_heir(seats, peers.unreachable),
        )
        peers = Peers(self._patience, self.view, self._clock.monotonic_s, removal.of_peer, remover.know)
        await self._listen(peers)  # 1
        registry = ClusterRegistry(
            settings, self.view, self._clock, bootstrap=bootstrap, unreachable=lambda: peers.unreachable
        )
        peers.alive = self._tell_registry
        self._children, self._registry = children, registry
        self._up.set()
        parts = [  # 2
            asyncio.create_task(registry.run(self._ending), name="registry"),
            asyncio.create_task(remover.keep_warm(), name="warm connection"),
            asyncio.create_task(self._look(children, peers), name="detector"),
            asyncio.create_task(self._meet(registry, peers), name="other nodes"),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if error := error_of(task):
                    raise error
        finally:
            await children.close()  # 3
            await peers.close()
            for task in parts:
                task.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await remover.close()  # 4

    async def _listen(self, peers: Peers) -> None:
        cluster = self._plan.settings.cluster
        try:
            port = await peers.start(cluster.host, cluster.port)
        except OSError as error:
            raise EnvironmentError_(
                f"The beats of other nodes cannot come in at {cluster.host}:{cluster.port}: {error.strerror};"
                " set cluster.host or cluster.port."
            ) from error
        host = cluster.advertised_host or (socket.gethostname() if cluster.host in ANYWHERE else cluster.host)
        self._beats = f"{host}:{port}"

    async def _look(self, children: Children, peers: Peers) -> None:
        begun_s = self._clock.monotonic_s()
        own = Own(begun_s, begun_s)
        while True:
            now_s = self._clock.monotonic_s()
            own = detector.awake(own, now_s, self._patience)
            children.look(own, now_s)
            peers.look(own, now_s)
            await asyncio.sleep(self._patience.beat_s / 2)

    async def _meet(self, registry: ClusterRegistry, peers: Peers) -> None:
        while True:
            peers.know(registry.roster.views)
            await asyncio.sleep(self._patience.beat_s)

    def _tell_registry(self, node_id: str) -> None:
        now_s = self._clock.monotonic_s()
        if self._registry is not None and now_s - self._told_s.get(node_id, NEVER) >= TELL_INTERVAL_S:
            self._told_s[node_id] = now_s
            self._registry.alive(node_id)

    def _has_heir(self, seats: Sequence[GroupSeat], unreachable: Sequence[str]) -> bool:
        return self._registry is not None and has_heir(self._registry.roster, seats, {self.node_id, *unreachable})

    def _processes(self) -> tuple[ProcessView, ...]:
        own = self._plan.processes()
        return own if self._children is None else own + self._children.views()


async def be_node(settings: Settings, roles: frozenset[str], seats: Seats) -> None:
    """Be a node that is this one process, until cancelled. Raises why it may not be one, or why it failed."""

    def processes() -> tuple[ProcessView, ...]:
        return (ProcessView(",".join(sorted(roles)), os.getpid(), seats.ready, seats.now()),)

    plan = NodePlan(settings, settings.kafka.bootstrap_servers, tuple(sorted(roles)), processes=processes)
    node = Node(plan, SystemClock())
    try:
        await asyncio.to_thread(node.start)
        await node.ended()
    finally:
        # The loop that waits here would stand still: what leaves its groups does so in that loop.
        node.leave()
        await asyncio.shield(asyncio.to_thread(node.stop))
