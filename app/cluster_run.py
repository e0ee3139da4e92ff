"""A whole cluster on this machine: one embedded Kafka and N nodes, each a `headrace up` of its own, to start and kill.

async with LocalCluster(nodes=3, folder=folder, settings={"device.count": 10}) as cluster:
    cluster.bootstrap, cluster.nodes[0].api_url, cluster.nodes[0].pids()["worker"]
    await cluster.kill_node(1)
    await cluster.start_node(1)
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import psutil

import app
from app.adapters.embedded import EmbeddedKafka, tied
from app.adapters.embedded.ports import choose_ports
from app.errors import EnvironmentError_, UserError
from config.embedded import EmbeddedSettings

HOST: Final = "127.0.0.1"
SUPERVISOR: Final = "supervisor"
MIXED_ROLES: Final = (
    ("producer", "worker", "coordinator", "api-gateway"),
    ("worker", "coordinator", "api-gateway"),
    ("worker", "coordinator"),
)
"""The roles of the first nodes where nothing is said; the last stands for all that follow."""

# All of the nodes and then Kafka stop within 30 s: the nodes together, the brokers in what is left.
NODES_STOP_S: Final = 22.0
KAFKA_STOP_S: Final = 6.0
_POLL_S: Final = 0.05
_PROBE_TIMEOUT_S: Final = 2.0
_GONE_S: Final = 10.0
_LAST_WORDS: Final = 15


@dataclass(slots=True)
class LocalNode:
    """One node: what it is started with, where it answers, and the process that it is now.

    `settings` and `environ` hold for the next start. `api_url` is empty without the role `api-gateway`.
    """

    name: str
    roles: tuple[str, ...]
    folder: Path
    api_port: int
    health_port: int
    metrics_port: int
    settings: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def pid(self) -> int | None:
        """The process id of its supervisor; None when it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def reap(self) -> None:
        """Return when its supervisor, which has been killed, is gone whole."""
        if self.process is not None:
            self.process.wait()

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs and before its first start."""
        return None if self.process is None else self.process.poll()

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self.api_port}" if "api-gateway" in self.roles else ""

    @property
    def health_url(self) -> str:
        return f"http://{HOST}:{self.health_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}"

    @property
    def log_file(self) -> Path:
        return self.folder / "node.log"

    def pids(self) -> dict[str, int]:
        """Its processes now: `supervisor`, and each role that has one."""
        if self.pid is None:
            return {}
        found = {SUPERVISOR: self.pid}
        for child in _children(self.pid):
            with suppress(psutil.Error):
                words = child.cmdline()
                if "--roles" in words:
                    found[words[words.index("--roles") + 1]] = child.pid
        return found

    def last_words(self) -> str:
        """The end of its log, for a message."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LAST_WORDS:])


class LocalCluster:
    """Nodes and brokers that live as long as the block; call from the main thread, where children are tied to us."""

    def __init__(
        self,
        *,
        folder: Path,
        nodes: int = 3,
        brokers: int = 1,
        roles: Sequence[Sequence[str]] = MIXED_ROLES,
        settings: Mapping[str, Any] | None = None,
        config: Path | None = None,
        bootstrap: str = "",
        embedded: EmbeddedSettings | None = None,
        overrides: Mapping[str, str] | None = None,
        api_port: int = 0,
        demonstrate: bool = False,
        ready_s: float = 240.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`roles` are those of each node, the last for all that follow; `settings` are `section.key` of every node.

        With `bootstrap` no broker is started. `overrides` are further settings of the brokers. The first node's API
        takes `api_port` when it is free; with `demonstrate` it has the workflows of `headrace up`. `ready_s` is how
        long a node may take to be ready.
        """
        if nodes < 1:
            raise UserError(f"A cluster of {nodes} nodes cannot be started: name 1 or more.")
        if brokers not in (1, 3):
            raise UserError(f"A cluster of {brokers} brokers cannot be started: 1, or 3 of which one may be lost.")
        self.folder = folder.expanduser().absolute()
        self.nodes: list[LocalNode] = []
        self.kafka: EmbeddedKafka | None = None
        self._roles = [tuple(each) for each in roles]
        self._wanted = nodes
        self._settings = dict(settings or {})
        self._config = config
        self._bootstrap = bootstrap
        self._api_port = api_port
        self._demonstrate = demonstrate
        self._ready_s = ready_s
        self._say = say
        if not bootstrap:
            own = (embedded or EmbeddedSettings(port=0, heap_mib=384 if brokers == 1 else 256)).model_copy(
                update={"data_dir": str(self.folder / "kafka"), "stop_timeout_s": KAFKA_STOP_S}
            )
            self.kafka = EmbeddedKafka(own, nodes=brokers, overrides=overrides, say=say)

    @property
    def bootstrap(self) -> str:
        """Kafka's host:port list."""
        return self._bootstrap if self.kafka is None else self.kafka.bootstrap

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Kafka, then the first node alone (it makes the topics), then the others together; all are ready then.

        Raises `EnvironmentError_` with the last words of a node that ended or was not ready in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.kafka is not None:
                await self.kafka.start()
            self._add_nodes(self._wanted)
            for first, last in ((0, 1), (1, self._wanted)):
                for index in range(first, last):
                    self._spawn(self.nodes[index])
                await asyncio.gather(*(self.ready(index) for index in range(first, last)))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> bool:
        """Every node in order and at once, then Kafka; True when nothing had to be killed. Leaves no process."""
        for index in range(len(self.nodes)):
            self.resume_node(index)  # one that is paused could not stop
        orderly = await asyncio.gather(*(self.stop_node(index) for index in range(len(self.nodes))))
        if self.kafka is not None:
            self._say("Stopping Kafka …")
            await self.kafka.stop()
        return all(orderly)

    async def start_node(self, index: int, *, wait: bool = True) -> None:
        """Start a node that does not run; with `wait` it is ready then."""
        self._spawn(self.nodes[index])
        if wait:
            await self.ready(index)

    async def add_node(self, roles: Sequence[str], *, wait: bool = True) -> int:
        """One node more; its index."""
        self._add_nodes(len(self.nodes) + 1, roles)
        await self.start_node(len(self.nodes) - 1, wait=wait)
        return len(self.nodes) - 1

    async def stop_node(self, index: int, timeout_s: float = NODES_STOP_S) -> bool:
        """SIGTERM, and SIGKILL when that takes longer than `timeout_s`; True for an end in order, or none needed."""
        node = self.nodes[index]
        if node.process is None or node.pid is None:
            return True
        node.process.send_signal(signal.SIGTERM)
        ends_s = time.monotonic() + timeout_s
        while (code := node.process.poll()) is None:
            if time.monotonic() > ends_s:
                await self.kill_node(index)
                return False
            await asyncio.sleep(_POLL_S)
        return code == 0

    async def kill_node(self, index: int) -> None:
        """SIGKILL to all of a node at once; returns when nothing of it is left."""
        node = self.nodes[index]
        if node.process is None or node.pid is None:
            return
        family = _children(node.pid)
        node.process.kill()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        await asyncio.to_thread(node.process.wait)
        ends_s = time.monotonic() + _GONE_S
        while any(_lives(child) for child in family) and time.monotonic() < ends_s:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(_POLL_S / 5)

    def pause_node(self, index: int) -> None:
        """SIGSTOP to all of a node."""
        self._signal(index, signal.SIGSTOP)

    def resume_node(self, index: int) -> None:
        """SIGCONT to all of a node."""
        self._signal(index, signal.SIGCONT)

    async def ready(self, index: int) -> None:
        """Return when the node says that it is ready. Raises `EnvironmentError_` when it ends or takes too long."""
        node = self.nodes[index]
        ends_s = time.monotonic() + self._ready_s
        said = "nothing yet"
        async with httpx.AsyncClient(trust_env=False, timeout=_PROBE_TIMEOUT_S) as client:
            while node.pid is not None:
                with suppress(httpx.HTTPError):
                    answer = await client.get(f"{node.health_url}/health/ready")
                    if answer.status_code == 200:
                        return
                    said = answer.text
                if time.monotonic() > ends_s:
                    raise EnvironmentError_(
                        f"{node.name} is not ready after {self._ready_s:g} s; it says {said}\n{node.last_words()}"
                    )
                await asyncio.sleep(_POLL_S)
        raise EnvironmentError_(
            f"{node.name} ended with exit code {node.exit_code}; the end of {node.log_file}:\n{node.last_words()}"
        )

    def _signal(self, index: int, which: signal.Signals) -> None:
        for pid in self.nodes[index].pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, which)

    def _add_nodes(self, count: int, roles: Sequence[str] | None = None) -> None:
        ports = _free_ports(3 * (count - len(self.nodes)), self._api_port if not self.nodes else 0)
        while len(self.nodes) < count:
            api, health, metrics = (ports.pop(0) for _ in range(3))
            at = len(self.nodes)
            name = f"node-{at + 1}"
            own = tuple(roles) if roles is not None else self._roles[min(at, len(self._roles) - 1)]
            self.nodes.append(LocalNode(name, own, self.folder / name, api, health, metrics))

    def _spawn(self, node: LocalNode) -> None:
        assert node.pid is None, "the node runs already"
        node.folder.mkdir(parents=True, exist_ok=True)
        tie = "signal" if sys.platform == "linux" else "pipe"
        with node.log_file.open("ab") as log:
            node.process = subprocess.Popen(
                [sys.executable, "-I", "-S", tied.__file__, tie, str(os.getpid()), *self.command(node)],
                cwd=node.folder,
                env={**_environment(), **node.environ},
                stdin=subprocess.PIPE if tie == "pipe" else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the nodes in order
            )

    def command(self, node: LocalNode) -> list[str]:
        """What the node is started with; a person could type it in its folder."""
        own = node.folder / ".headrace"
        values = {
            "tables.directory": str(own / "tables"),
            "http.executions.directory": str(own / "executions"),
            # What tasks leave behind for one another is where every node finds it.
            "tasks.payload_directory": str(self.folder / "payloads"),
            "tasks.files_directory": str(self.folder / "files"),
            "tasks.sqlite_paths": [str(self.folder / "files")],
            "supervisor.demo_workflows": self._demonstrate and node is self.nodes[0],
            "health.stop_deadline_s": NODES_STOP_S - 2,
            "cluster.node_id": node.name,
            **self._settings,
            "kafka.bootstrap_servers": self.bootstrap,
            "http.port": node.api_port,
            "health.port": node.health_port,
            "metrics.port": node.metrics_port,
            **node.settings,
        }
        flags = [word for key, value in values.items() for word in ("--set", f"{key}={_text(value)}")]
        file = ["--config", str(self._config.expanduser().absolute())] if self._config else []
        return [sys.executable, "-m", "app", "up", "--roles", ",".join(node.roles), *file, *flags]


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _environment() -> dict[str, str]:
    """Ours, and our own code is found first whatever lies in the folder of a node."""
    root = str(Path(app.__file__).resolve().parent.parent)
    paths = [root, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def _free_ports(count: int, first: int = 0) -> list[int]:
    """So many ports of loopback that nobody listens on; `first` is the first of them when it is free."""
    others = [(0, "")] * count
    with suppress(EnvironmentError_):
        return choose_ports([(first, ""), *others][:count])
    return choose_ports(others)
