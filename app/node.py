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
from typing import Final

import app
from app.adapters.connection import security_options
from app.adapters.group_leave import GroupRemover
from app.domain import detector
from app.domain.cluster import NodeView, ProcessView
from app.domain.detector import Own, Patience
from app.node_children import Children, Kill
from app.node_removal import Removal
from app.ports import Clock
from config.cluster import ClusterSettings
from config.settings import Settings

log = logging.getLogger(__name__)

STOP_S: Final = 3.0


def node_id_of(settings: Settings) -> str:
    """The name of this node: the settings', or one that stays the same for a data folder of this host."""
    if settings.cluster.node_id:
        return settings.cluster.node_id
    folder = str(Path(settings.tables.directory).expanduser().absolute())
    return f"{socket.gethostname()}-{hashlib.blake2s(folder.encode(), digest_size=4).hexdigest()}"


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
    kill: Kill
    processes: Callable[[], tuple[ProcessView, ...]] = tuple


class Node:
    """A running node; `start`, then `stop`."""

    def __init__(self, plan: NodePlan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._patience = patience_of(plan.settings.cluster)
        self._epoch = self._clock.now_ms()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._up = threading.Event()
        self._children: Children | None = None
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)
        self.node_id = node_id_of(plan.settings)

    # ---- what others call, in any thread ----

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()
        self._up.wait()

    def stop(self) -> None:
        """Return when the watch has ended; the members that this node still has have left by themselves."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(STOP_S)

    def started(self, role: str, pid: int, beats_fd: int) -> None:
        """A child of this node runs; its beats come in at `beats_fd`, which is the node's from now on."""
        if not self._thread.is_alive():
            os.close(beats_fd)
            return
        assert self._children is not None
        self._loop.call_soon_threadsafe(self._children.started, role, pid, beats_fd)

    def view(self) -> NodeView:
        """What this node says of itself."""
        http, processes = self._plan.settings.http, self._processes()
        return NodeView(
            node_id=self.node_id,
            epoch=self._epoch,
            version=app.__version__,
            state="ready" if processes and all(process.ready for process in processes) else "joining",
            api=f"{http.host}:{http.port}" if "api-gateway" in self._plan.roles else "",
            clock_ms=self._clock.now_ms(),
            processes=processes,
        )

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except Exception:
            log.exception("the watch over this node's processes failed", extra={"action": "process_failed"})
        finally:
            self._up.set()
            self._loop.close()

    async def _live(self) -> None:
        """(1) watch, remove and keep the connection warm (2) at the stop: end what is under way (3) close."""
        remover = GroupRemover(
            self._plan.bootstrap_servers,
            f"{self._plan.settings.kafka.client_id}-node",
            security_options(self._plan.settings.kafka),
        )

        removal = Removal(remover, self._clock)
        self._children = Children(
            self._patience, self._clock.monotonic_s, removal.of_child, self._plan.kill, remover.know
        )
        self._up.set()
        parts = [
            asyncio.create_task(remover.keep_warm(), name="warm connection"),
            asyncio.create_task(self._look(self._children), name="detector"),
            asyncio.create_task(self._ending.wait(), name="stop"),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)  # 1
            for task in done:
                task.result()
        finally:
            await self._children.close()  # 2
            for task in parts:
                task.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await remover.close()  # 3

    async def _look(self, children: Children) -> None:
        begun_s = self._clock.monotonic_s()
        own = Own(begun_s, begun_s)
        while True:
            now_s = self._clock.monotonic_s()
            own = detector.awake(own, now_s, self._patience)
            children.look(own, now_s)
            await asyncio.sleep(self._patience.beat_s / 2)

    def _processes(self) -> tuple[ProcessView, ...]:
        own = self._plan.processes()
        return own if self._children is None else own + self._children.views()
