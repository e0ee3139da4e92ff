"""The whole API beside a real broker: the gateway on a thread and loop of its own, asked over real sockets."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.adapters.clock import SystemClock
from app.adapters.topics_admin import ensure_topics
from app.definition_wire import Definition, registration, version_of
from app.domain.workflow.placement import partition_of
from app.http.gateway import Gateway
from app.http.health import HealthRegistry
from app.ports import OutRecord
from app.roles.context import Context
from app.roles.gateway import open_gateway, run_gateway
from config.settings import Settings
from config.topics import TELEMETRY_TOPICS, WORKFLOW_EVENTS, WORKFLOW_TOPICS

DEADLINE_S = 60.0
PARTITIONS = 4


class Node:
    """One API process, but for the process."""

    def __init__(self, bootstrap: str, folder: Path, **http: Any) -> None:
        # The histories of tests are of a fixed day, which goes on receding.
        kept = {"directory": str(folder), "retention_s": 10 * 365 * 86_400}
        executions = {**kept, **http.pop("executions", {})}
        self.settings = Settings(
            kafka={"bootstrap_servers": bootstrap, "partitions": PARTITIONS},
            http={"port": 0, "executions": executions, **http},
            log={"level": "WARNING"},
        )
        self._loop = asyncio.new_event_loop()
        self._opened = threading.Event()
        self._stop: asyncio.Event | None = None
        self.gateway: Gateway | None = None
        self.health = HealthRegistry(frozenset({"api-gateway"}), "1")
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        self._context = Context(self.settings, lambda: self.settings, self.health, self._stop, SystemClock())
        await ensure_topics(
            self.settings.kafka.bootstrap_servers, (*TELEMETRY_TOPICS, *WORKFLOW_TOPICS), self.settings.kafka
        )
        self.gateway = await open_gateway(self._context)
        self._opened.set()
        await run_gateway(self._context, self.gateway)

    @property
    def url(self) -> str:
        assert self._opened.wait(DEADLINE_S)
        assert self.gateway is not None
        return self.gateway.url

    def client(self, timeout_s: float = 30.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=timeout_s)

    def until_ready(self) -> None:
        until(lambda: self.health.ready().ok, f"ready: {self.health.ready()}")

    def publish(self, records: Sequence[OutRecord]) -> None:
        """Send records through the gateway's own producer."""
        publisher = until(lambda: self.gateway is not None and self.gateway.publisher, "a producer")
        asyncio.run_coroutine_threadsafe(publisher.publish(records), self._loop).result(DEADLINE_S)

    def register(self, document: dict[str, Any]) -> str:
        """Make a workflow known; its version."""
        definition = Definition(document["id"], version_of(document), document)
        self.publish(registration(definition, _now_ms()))
        until(lambda: self.gateway and self.gateway.definitions.latest(definition.id), definition.id)
        return definition.version

    def tell(self, *runs: tuple[str, bytes]) -> None:
        """Write runs of events as an engine does: (execution_id, run)."""
        topic = WORKFLOW_EVENTS.name
        self.publish(
            [OutRecord(topic, name.encode(), run, _now_ms(), (), partition_of(name, PARTITIONS)) for name, run in runs]
        )

    def close(self) -> None:
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the gateway does not stop"
        self._loop.close()


@contextmanager
def node(bootstrap: str, folder: Path, **http: Any) -> Iterator[Node]:
    """A gateway that ends with the block."""
    made = Node(bootstrap, folder, **http)
    try:
        yield made
    finally:
        made.close()


def until(found: Any, what: str) -> Any:
    """The first answer that is true, asked again and again."""
    ends_s = time.monotonic() + DEADLINE_S
    while not (answer := found()):
        assert time.monotonic() < ends_s, f"not within {DEADLINE_S} s: {what}"
        threading.Event().wait(0.02)
    return answer


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
