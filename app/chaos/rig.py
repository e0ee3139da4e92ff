"""The cluster under test: nodes and brokers of this machine, with a link on every way that a fault may cut.

    driver ─ link api-N ─▶ node N ─ link kafka-N-B ─▶ broker B        node N ─ link sink ─▶ ledger

Each node has listeners of its own at each broker, advertised as its links, so that one node can be cut off alone.
Whoever judges talks to the brokers directly.
"""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

import psutil

from app.adapters.embedded import EmbeddedKafka
from app.adapters.embedded.kraft import NodePlan
from app.bench.child import Child, start
from app.chaos.proxy import Link
from app.cluster_run import HOST, SUPERVISOR, LocalCluster, LocalNode
from app.errors import EnvironmentError_
from config.embedded import EmbeddedSettings
from config.topics import WORKFLOW_EVENTS

QUEUE: Final = "far"
ROLES: Final = (("worker", "coordinator", "api-gateway"), ("worker", "coordinator", "api-gateway"))
# A cluster of a dozen processes on a machine that others use too.
READY_S: Final = 300.0
TASK_PROCESS: Final = "app.adapters.tasks.child"
SMALL_DISK_MIB: Final = 96
Needs = Literal["clock", "small disk"]
# Debian's package faketime; the variant for threads.
FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
# Below the range that the kernel gives to outgoing connections, and below that of the nodes.
_PORTS: Final = range(12_000, 20_000)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a run is made of."""

    nodes: int = 3
    brokers: int = 3
    partitions: int = 4
    roles: Sequence[Sequence[str]] = ROLES
    settings: Mapping[str, Any] = field(default_factory=dict)
    heap_mib: int = 256
    needs: frozenset[Needs] = frozenset()


class Rig:
    """The running whole; a context manager."""

    def __init__(self, folder: Path, shape: Shape, seed: int) -> None:
        self.folder = folder
        self.shape = shape
        self.links: dict[str, Link] = {}
        self.found_dead: list[str] = []
        self.ledger: Child | None = None
        self._witness: Child | None = None
        self.ledger_file = folder / "ledger.jsonl"
        self._chance = random.Random(seed)
        self._ports = iter(_free_ports())
        self._stack = AsyncExitStack()
        # Where the listener of a node at a broker is, and where its link.
        self._behind = {
            (node, broker): (next(self._ports), next(self._ports))
            for node in range(shape.nodes)
            for broker in range(1, shape.brokers + 1)
        }
        self.cluster = _Cluster(self)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        """Ledger, links, then brokers and nodes; stopped the other way round."""
        ledger_port = next(self._ports)
        argv = [sys.executable, "-m", "app.chaos.ledger", "--port", str(ledger_port), "--file", str(self.ledger_file)]
        self.ledger = await start(argv, self.folder)
        self._stack.push_async_callback(self.ledger.stop)
        await self._link("sink", next(self._ports), ledger_port)
        for (node, broker), (behind, before) in self._behind.items():
            await self._link(f"kafka-{node}-{broker}", before, behind)
        await self._stack.enter_async_context(self.cluster)
        for at, one in enumerate(self.cluster.nodes):
            if one.api_url:
                await self._link(f"api-{at}", next(self._ports), one.api_port)

    async def start_witness(self) -> None:
        """Read the events as they come, for whoever compares them later."""
        argv = [sys.executable, "-m", "app.chaos.checker_witness", "--bootstrap", self.bootstrap]
        argv += ["--topic", WORKFLOW_EVENTS.name, "--file", str(self.folder / "witness.jsonl")]
        self._witness = await start(argv, self.folder)
        self._stack.push_async_callback(self._witness.stop)

    async def stop_witness(self) -> None:
        """Its file is whole then. Raises `EnvironmentError_` when it has ended before."""
        assert self._witness is not None, "started"
        if (code := self._witness.process.returncode) is not None:
            heard = " | ".join([*self._witness.heard][-3:]) or "no output"
            raise EnvironmentError_(f"the witness has ended by itself with code {code}: {heard}")
        await self._witness.stop()

    async def _link(self, name: str, port: int, target_port: int) -> None:
        self.links[name] = await self._stack.enter_async_context(Link(port, target_port, self._chance, name))

    # ---- where things are ----

    @property
    def bootstrap(self) -> str:
        """The brokers, past the links."""
        return self.cluster.bootstrap

    @property
    def kafka(self) -> EmbeddedKafka:
        assert self.cluster.kafka is not None, "the rig starts its own brokers"
        return self.cluster.kafka

    @property
    def effects_url(self) -> str:
        """Where the workflows under test have their effects."""
        return f"http://{HOST}:{self.links['sink'].port}/effect"

    @property
    def api_ports(self) -> list[int]:
        """The links to the APIs."""
        return [link.port for name, link in self.links.items() if name.startswith("api-")]

    def links_of(self, prefix: str) -> list[Link]:
        """Links whose name begins so: `kafka-0-` are those of the first node."""
        return [link for name, link in self.links.items() if name.startswith(prefix)]

    def bootstrap_of(self, node: int) -> str:
        """The brokers as a node reaches them."""
        return ",".join(f"{HOST}:{before}" for (at, _), (_, before) in self._behind.items() if at == node)

    def listeners(self, plan: NodePlan) -> dict[str, str]:
        """The settings by which a broker has one listener more for each node."""
        ours = {f"NODE{node}": ports for (node, broker), ports in self._behind.items() if broker == plan.node_id}
        names = ("PLAINTEXT", "CONTROLLER", *ours)
        own = f"PLAINTEXT://{HOST}:{plan.port}"
        behind = [f"{name}://{HOST}:{at}" for name, (at, _) in ours.items()]
        before = [f"{name}://{HOST}:{at}" for name, (_, at) in ours.items()]
        return {
            "listeners": ",".join([own, f"CONTROLLER://{HOST}:{plan.controller_port}", *behind]),
            "advertised.listeners": ",".join([own, *before]),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in names),
            "inter.broker.listener.name": "PLAINTEXT",
        }

    def clock_file(self, node: int) -> Path:
        """How far the clock of a node is off stands in this file."""
        return self.folder / f"clock-{node}"

    def tables(self, node: int) -> Path:
        """The stores of a node."""
        return self.cluster.nodes[node].folder / ".headrace" / "tables"

    def clock_of(self, node: int) -> dict[str, str]:
        """The environment of the last node, whose wall clock can be set; its monotonic clock is the machine's."""
        if "clock" not in self.shape.needs or node != self.shape.nodes - 1:
            return {}
        if not FAKETIME.exists():
            raise EnvironmentError_("Faults of the clock need libfaketime: apt-get install faketime.")
        file = self.clock_file(node)
        file.write_text("+0\n")
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def small_disk(self, folder: Path) -> None:
        """Make `folder` a disk of its own that is soon full; it goes with the rig."""
        if os.geteuid() != 0:
            raise EnvironmentError_("Faults of the disk mount a small one, which only root may.")
        folder.mkdir(parents=True)
        size = f"size={SMALL_DISK_MIB}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
        self._stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)

    # ---- processes ----

    def processes(self, what: str) -> list[tuple[str, int]]:
        """Name and process id of all that are `what` now: a role, `supervisor` or `task process`."""
        found = []
        for node in self.cluster.nodes:
            if what == "task process":
                found += [(f"{node.name} {what}", pid) for pid in _task_processes(node)]
            elif (pid := node.pids().get(what)) is not None:
                found.append((f"{node.name} {what}", pid))
        return found

    def node_of(self, name: str) -> int:
        """The index of the node that a name of `processes` begins with."""
        return next(at for at, node in enumerate(self.cluster.nodes) if node.name == name.split(maxsplit=1)[0])

    async def until_ready(self) -> None:
        """Every node runs and is ready. Raises `EnvironmentError_`."""
        for at, node in enumerate(self.cluster.nodes):
            if node.pid is None:
                self.found_dead.append(node.name)
                await self.cluster.start_node(at)
            await self.cluster.ready(at)


class _Cluster(LocalCluster):
    """The nodes, each told of its own way to the brokers."""

    def __init__(self, rig: Rig) -> None:
        shape = rig.shape
        super().__init__(
            folder=rig.folder / "cluster",
            nodes=shape.nodes,
            brokers=shape.brokers,
            roles=shape.roles,
            ready_s=READY_S,
            settings={
                "kafka.partitions": shape.partitions,
                "supervisor.restart_backoff_ms": 100,
                "supervisor.restart_backoff_max_ms": 1_000,
                "tasks.queues": ["default", QUEUE],
                "tasks.python_modules": ["app.bench.ours", "app.chaos"],
                "tasks.allow_private_addresses": True,
                "log.level": "WARNING",
                **shape.settings,
            },
        )
        self._rig = rig
        settings = EmbeddedSettings(
            port=0, heap_mib=shape.heap_mib, data_dir=str(self.folder / "kafka"), start_timeout_s=READY_S
        )
        self.kafka = EmbeddedKafka(settings, nodes=shape.brokers, overrides=rig.listeners)

    def _add_nodes(self, count: int, roles: Sequence[str] | None = None) -> None:
        before = len(self.nodes)
        super()._add_nodes(count, roles)
        for at in range(before, len(self.nodes)):
            node = self.nodes[at]
            node.settings["kafka.bootstrap_servers"] = self._rig.bootstrap_of(at)
            node.environ.update(self._rig.clock_of(at))
            if "small disk" in self._rig.shape.needs and at == self._wanted - 1:
                self._rig.small_disk(node.folder / ".headrace")


def _task_processes(node: LocalNode) -> list[int]:
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(node.pids()[SUPERVISOR]).children(recursive=True) if node.pid else ():
            with suppress(psutil.Error):
                if TASK_PROCESS in child.cmdline():
                    found.append(child.pid)
    return found


def _free_ports() -> list[int]:
    """Ports of loopback that nobody listens on, beginning somewhere."""
    found = []
    offset = random.SystemRandom().randrange(len(_PORTS))
    for at in range(len(_PORTS)):
        port = _PORTS[(offset + at) % len(_PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            found.append(port)
        if len(found) == 200:
            break
    return found
