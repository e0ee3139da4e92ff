"""The embedded Kafka: one broker for a laptop, or three for tests that lose one."""

import asyncio
import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from app.adapters.embedded.archive import SharedArchive
from app.adapters.embedded.cache import FolderLock, cache_folder, disk_errors
from app.adapters.embedded.jars import ensure_jars
from app.adapters.embedded.java import Java, find_java
from app.adapters.embedded.kraft import (
    HOST,
    NodePlan,
    broker_properties,
    cluster_id_of,
    format_folder,
    new_kafka_uuid,
    write_configuration,
)
from app.adapters.embedded.node import Node
from app.adapters.embedded.ports import choose_ports
from app.adapters.topics_admin import partition_leader, wait_for_broker
from app.errors import EnvironmentError_
from config.embedded import EmbeddedSettings

log = logging.getLogger(__name__)

# The JVM of a starter that was killed a moment ago needs this long to be gone.
_PREVIOUS_RUN_S = 5.0


def _say_nothing(_: str) -> None:
    """Nobody listens."""


class EmbeddedKafka:
    """A real Apache Kafka on loopback: `async with EmbeddedKafka(settings) as kafka: kafka.bootstrap`.

    Start and stop may run in different event loops, but `start` belongs in the main thread: on Linux
    the JVM dies with the thread that started it. The data folder is kept between runs.
    """

    def __init__(
        self,
        settings: EmbeddedSettings,
        *,
        nodes: int = 1,
        overrides: Mapping[str, str] | Callable[[NodePlan], Mapping[str, str]] | None = None,
        say: Callable[[str], None] = _say_nothing,
    ) -> None:
        """`overrides` are further broker settings, or give them a node; `say` hears what is being waited for.

        With several nodes all ports are free ones.
        """
        self._settings = settings
        self._say = say
        self._count = nodes
        self._overrides = overrides if callable(overrides) else lambda _: overrides or {}
        self._folder = Path(settings.data_dir).expanduser().absolute()
        self._cache = cache_folder(settings.cache_dir)
        self._lock = FolderLock(self._folder)
        self._nodes: dict[int, Node] = {}
        self._java: Java | None = None
        self._class_path: list[Path] = []
        self._archive: SharedArchive | None = None

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:PORT`, one for each node."""
        return ",".join(f"{HOST}:{node.plan.port}" for node in self._nodes.values())

    @property
    def data_folder(self) -> Path:
        return self._folder

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each node that runs."""
        return {node_id: node.pid for node_id, node in self._nodes.items() if node.pid is not None}

    async def start(self) -> None:
        """Start every node and return when the cluster answers.

        1. take the data folder; 2. find Java and the jars; 3. choose ports; 4. prepare the folders;
        5. start the processes; 6. wait until they listen and know one another.
        Raises `EnvironmentError_` with one sentence when something of this machine is not as needed.
        """
        with disk_errors("Kafka's data", self._folder):
            await self._take_folder()  # 1
            try:
                java, self._class_path = await self._find_parts()  # 2
                self._archive = SharedArchive(self._class_path[0].parent, java, self._class_path)
                self._java = java
                self._nodes = {plan.node_id: Node(plan) for plan in self._plans()}  # 3
                self._say("Starting Kafka …")
                await asyncio.to_thread(self._prepare)  # 4
                await self._start_nodes(list(self._nodes))  # 5, 6
            except BaseException:
                self._kill_all()
                raise
        log.info("Kafka is ready", extra={"action": "kafka_ready", "bootstrap": self.bootstrap, "pids": self.pids})

    async def stop(self) -> None:
        """Stop every node in order; one that does not stop in time is killed. Never leaves a process."""
        try:
            for node in self._nodes.values():
                node.terminate()
            ended = await asyncio.gather(
                *(node.wait_ended(self._settings.stop_timeout_s) for node in self._nodes.values())
            )
            if self._archive and ended and all(ended):
                self._archive.keep()
        finally:
            self._kill_all()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def kill(self, node_id: int) -> None:
        """SIGKILL one node."""
        self._nodes[node_id].kill()

    async def stop_node(self, node_id: int) -> None:
        """Stop one node in order."""
        self._nodes[node_id].terminate()
        await self._nodes[node_id].wait_ended(self._settings.stop_timeout_s)

    async def start_node(self, node_id: int) -> None:
        """Start a node again that was stopped, killed or has died."""
        await self._start_nodes([node_id])

    def dead_nodes(self) -> list[int]:
        """The nodes whose process has ended, for whoever supervises."""
        return [node_id for node_id, node in self._nodes.items() if node.pid is None]

    async def leader(self, topic: str, partition: int) -> int:
        """The node that leads a partition; -1 when none does."""
        alive = ",".join(f"{HOST}:{self._nodes[node_id].plan.port}" for node_id in self.pids)
        return await partition_leader(alive, topic, partition)

    def controller(self) -> int:
        """The node that is the active controller, as the quorum's own files tell it; -1 when there is none."""
        found = (-1, -1)
        for node in self._nodes.values():
            # A file that is being written, or of a node that has not begun, says nothing.
            with contextlib.suppress(OSError, ValueError, KeyError):
                told = json.loads((node.plan.data / "__cluster_metadata-0" / "quorum-state").read_text())
                found = max(found, (told["leaderEpoch"], told["leaderId"]))
        return found[1]

    async def _find_parts(self) -> tuple[Java, list[Path]]:
        """Java and the jars, side by side; either may have to be fetched."""
        looking = asyncio.create_task(asyncio.to_thread(find_java, self._settings.java_home, self._cache))
        try:
            class_path = await asyncio.to_thread(ensure_jars, self._cache)
            if not looking.done():  # only now: the bar of the jars has had the line until here
                self._say("Preparing Java …")
        except BaseException:
            # A thread cannot be interrupted, but its error must not go unheard after this one.
            looking.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise
        return await looking, class_path

    async def _take_folder(self) -> None:
        if not await asyncio.to_thread(self._lock.acquire, _PREVIOUS_RUN_S):
            raise EnvironmentError_(
                f"{self._folder} is in use by another Headrace (process {self._lock.holder()}); stop it, "
                "or set embedded.data_dir and embedded.port to others."
            )

    def _plans(self) -> list[NodePlan]:
        several = self._count > 1
        wanted = []
        for _ in range(self._count):
            wanted.append((0 if several else self._settings.port, "embedded.port"))
            wanted.append((0 if several else self._settings.controller_port, "embedded.controller_port"))
        ports = choose_ports(wanted)
        return [
            NodePlan(number, port, controller_port, self._folder / f"node-{number}")
            for number, (port, controller_port) in enumerate(zip(ports[::2], ports[1::2], strict=True), start=1)
        ]

    def _prepare(self) -> None:
        free_mib = shutil.disk_usage(self._folder).free >> 20
        if free_mib < self._settings.min_free_mib:
            raise EnvironmentError_(
                f"The disk of {self._folder} is full: {free_mib} MiB are free and Kafka needs "
                f"{self._settings.min_free_mib} (embedded.min_free_mib)."
            )
        plans = [node.plan for node in self._nodes.values()]
        cluster_id = next(filter(None, map(cluster_id_of, plans)), None) or new_kafka_uuid()
        for plan in plans:
            write_configuration(plan, broker_properties(plan, plans, self._settings, self._overrides(plan)))
            if cluster_id_of(plan) is None:
                # Started only to prepare a folder: the quickest compiler, no heap to speak of.
                command = self._java_command(["-XX:TieredStopAtLevel=1", "-Xmx128m"])
                format_folder(plan, cluster_id, command, self._class_path[0].parent)

    async def _start_nodes(self, node_ids: Sequence[int]) -> None:
        self._discard_archive_after_crash(node_ids)
        try:
            await self._start_once(node_ids)
        except EnvironmentError_:
            if not self._discard_archive_after_crash(node_ids):
                raise
            for node_id in node_ids:
                self._nodes[node_id].kill()
            await self._start_once(node_ids)

    def _discard_archive_after_crash(self, node_ids: Sequence[int]) -> bool:
        """An archive may be damaged in ways the JVM does not see; it must never stand in the way of a start."""
        assert self._archive is not None, "start() sets it first"
        if not any(self._nodes[node_id].crashed for node_id in node_ids) or not self._archive.discard():
            return False
        log.info("The class archive is left out after a crash of the JVM", extra={"action": "class_archive_discarded"})
        return True

    async def _start_once(self, node_ids: Sequence[int]) -> None:
        assert self._archive is not None, "start() sets it first"
        assert self._lock.fd is not None, "start() takes the folder first"
        for node_id in node_ids:
            node = self._nodes[node_id]
            # One node alone makes the archive, and only when it will be asked to stop together with the rest.
            flags = self._archive.flags() if node_id == 1 or self._archive.path.exists() else []
            command = self._java_command([*self._jvm_flags(node.plan), *flags])
            node.spawn([*command, "kafka.Kafka", str(node.plan.properties)], keep_open_fd=self._lock.fd)
        timeout_s = self._settings.start_timeout_s
        await asyncio.gather(*(self._nodes[node_id].wait_listening(timeout_s) for node_id in node_ids))
        await wait_for_broker(self.bootstrap, timeout_s, brokers=len(self.pids))

    def _jvm_flags(self, plan: NodePlan) -> list[str]:
        return [
            f"-Xmx{self._settings.heap_mib}m",
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",  # as Kafka's own start script
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",
            f"-XX:ErrorFile={plan.folder}/jvm-crash.log",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile=file:{plan.folder}/log4j2.properties",
        ]

    def _java_command(self, flags: Sequence[str]) -> list[str]:
        assert self._java is not None, "start() finds it first"
        return [str(self._java.program), *flags, "-cp", ":".join(map(str, self._class_path))]

    def _kill_all(self) -> None:
        for node in self._nodes.values():
            node.kill()
        self._lock.release()
