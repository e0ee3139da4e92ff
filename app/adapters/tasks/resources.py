"""What the tasks of one process share: database engines, HTTP connections, a Kafka producer, and their end."""

import asyncio
import logging
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING

from app.adapters.tasks.http_clients import HttpClients
from app.domain.workflow.expressions import Expressions
from app.errors import HeadraceError, TaskFailed
from app.ports import Clock
from config.kafka import KafkaSettings
from config.tasks import TasksSettings

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from app.adapters.producer import BatchProducer, ProducerLimits
    from app.adapters.topic_reader import TopicReader

log = logging.getLogger(__name__)


class Resources:
    """Everything is opened when a task first asks for it, and closed by `close`. For one event loop.

    `kafka.bootstrap_servers` names the service's own cluster, `producer` how it is written to.
    """

    def __init__(
        self,
        settings: TasksSettings,
        kafka: KafkaSettings,
        producer: "ProducerLimits",
        expressions: Expressions,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.kafka = kafka
        self.expressions = expressions
        self.clock = clock
        self._limits = producer
        self._engines: OrderedDict[tuple[str, bool], AsyncEngine] = OrderedDict()
        self._producer: BatchProducer | None = None
        self._opening = asyncio.Lock()
        self._trust: ssl.SSLContext | None = None
        self.http = HttpClients(self._http_client, settings.http_connections)

    async def engine(self, url: str, *, read_only: bool = False) -> "AsyncEngine":
        """The engine of a database; the least recently used one gives way when there are too many.

        Raises `UserError` for a URL of no database we know, `TaskFailed` for a SQLite file that is not allowed.
        """
        from app.adapters.sinks.sql import SqlLimits, engine_of, with_driver  # noqa: PLC0415 - a vendor in need

        key = (url, read_only)
        engine = self._engines.get(key)
        if engine is None:
            settings = self.settings
            limits = SqlLimits(settings.sql_connect_timeout_ms / 1000, settings.sql_statement_timeout_ms / 1000)
            # A server that was started anew must not cost each pooled connection a failed attempt.
            engine = engine_of(
                _confined(with_driver("", url), settings.sqlite_paths),
                limits,
                connections=settings.sql_connections,
                read_only=read_only,
                ask_first=True,
                attach=False,
            )
            self._engines[key] = engine
        self._engines.move_to_end(key)
        while len(self._engines) > self.settings.sql_databases:
            _, oldest = self._engines.popitem(last=False)
            # Connections in use are closed when their task gives them back.
            await oldest.dispose()
        return engine

    def _http_client(self) -> "httpx.AsyncClient":
        """Follows no redirect, and refuses private addresses unless `tasks` allows them."""
        import httpx  # noqa: PLC0415 - a vendor in need

        from app.adapters.sinks.http import CheckedTransport  # noqa: PLC0415 - a vendor in need

        # At INFO the client logs each URL whole, and a URL may hold a secret.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        if self._trust is None:
            self._trust = httpx.create_ssl_context(trust_env=False)
        return httpx.AsyncClient(
            transport=CheckedTransport(
                self.settings.allow_private_addresses,
                None,
                keep_alive=self.settings.http_connections,
                trust=self._trust,
            ),
            timeout=httpx.Timeout(None, connect=self.settings.http_connect_timeout_ms / 1000),
            follow_redirects=False,
            # What a server gives one task it does not get back from another.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            # A proxy from the environment would connect to addresses that nobody checked.
            trust_env=False,
        )

    async def producer(self) -> "BatchProducer":
        """The producer of the service's own cluster, connected. Raises `BrokerUnavailable`."""
        if self._producer is None:
            from app.adapters.producer import BatchProducer  # noqa: PLC0415 - a vendor in need

            async with self._opening:
                if self._producer is None:
                    producer = BatchProducer(replace(self._limits, client_id=f"{self._limits.client_id}-tasks"))
                    await producer.start()
                    self._producer = producer
        return self._producer

    def reader(self) -> "TopicReader":
        """Reads slices of topics of the service's own cluster."""
        from app.adapters.topic_reader import TopicReader  # noqa: PLC0415 - a vendor in need

        return TopicReader(self.kafka)

    @property
    def files(self) -> Path:
        """The folder that file tasks are confined to."""
        return Path(self.settings.files_directory).expanduser()

    async def close(self) -> None:
        """Give everything back; a task that still runs fails."""
        engines, self._engines = list(self._engines.values()), OrderedDict()
        producer, self._producer = self._producer, None
        for engine in engines:
            await engine.dispose()
        await self.http.close()
        if producer is not None:
            try:
                await producer.stop()
            except HeadraceError as error:
                log.warning("%s", error, extra={"action": "producer_stop"})


def _confined(url: "URL", allowed: Sequence[str]) -> "URL":
    """The URL, of a SQLite file where it really lies. Raises `TaskFailed` of type `PathRefused`."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return url
    # What else a URL says could name another file (uri=true), or open it in another way.
    path = Path(url.database).expanduser().resolve()
    if url.query or not any(path.is_relative_to(Path(one).expanduser().resolve()) for one in allowed):
        raise TaskFailed("PathRefused", "the SQLite file of the url is not among tasks.sqlite_paths", retryable=False)
    return url.set(database=str(path))
