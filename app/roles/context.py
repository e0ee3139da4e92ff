"""What the roles of one process share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from app.adapters.beats import Seats
from app.adapters.connection import security_options
from app.adapters.faust_app import App, crashed, new_app
from app.adapters.group_membership import membership
from app.adapters.producer import BatchProducer, Delivered, ProducerLimits
from app.adapters.transport import TransportLimits
from app.http.health import HealthRegistry
from app.ports import Clock, Tracing
from app.task_ends import error_of
from config.live import Listener
from config.producer import ProducerSettings
from config.settings import Settings


def _never_changes(_: Listener) -> Callable[[], None]:
    return lambda: None


@dataclass(frozen=True, slots=True)
class Context:
    """`current` gives the settings in force; `settings` are those of the start.

    `subscribe` has a function called at each change of hot settings, and returns how to end that.
    """

    settings: Settings
    current: Callable[[], Settings]
    health: HealthRegistry
    stop: asyncio.Event
    clock: Clock
    subscribe: Callable[[Listener], Callable[[], None]] = _never_changes
    tracing: Tracing | None = None
    seats: Seats = field(default_factory=Seats)

    @property
    def bootstrap(self) -> str:
        """Kafka's host:port list."""
        return self.settings.kafka.bootstrap_servers

    def producer_limits(self, name: str) -> ProducerLimits:
        """The bounds of one of this process's producers."""
        kafka, producer = self.settings.kafka, self.settings.producer
        return ProducerLimits(
            bootstrap_servers=self.bootstrap,
            client_id=f"{kafka.client_id}-{name}",
            batch_records=producer.batch_size,
            batch_bytes=producer.max_batch_bytes,
            flush_interval_ms=producer.flush_interval_ms,
            batches_in_flight=producer.worker_count,
            buffer_records=producer.buffer_records,
            record_bytes=producer.max_request_bytes,
            compression=None if producer.compression == "none" else producer.compression,
            request_timeout_ms=producer.request_timeout_ms,
            acks=producer.acks,
            idempotent=producer.idempotence,
            start_timeout_s=kafka.startup_timeout_s,
            security=security_options(kafka),
        )

    @contextlib.asynccontextmanager
    async def producer(self, name: str, delivered: Delivered | None = None) -> AsyncIterator[BatchProducer]:
        """A running producer that follows the hot settings."""
        producer = BatchProducer(hot_limits(self.producer_limits(name), self.current().producer), delivered)

        def follow(_: Settings, new: Settings) -> None:
            producer.limits = hot_limits(producer.limits, new.producer)

        leave = self.subscribe(follow)
        try:
            async with producer:
                yield producer
        finally:
            leave()

    def faust_app(self, group: str, limits: TransportLimits | None = None, **settings: Any) -> App:
        """A Faust app of one consumer group."""
        kafka = self.settings.kafka
        app = new_app(
            f"{kafka.client_id}-{group}",
            self.bootstrap,
            limits=limits,
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=kafka.heartbeat_interval_ms,
            security=security_options(kafka),
            **settings,
        )
        app.conf.broker_rebalance_timeout = kafka.rebalance_timeout_ms / 1000
        app.conf.broker_max_poll_interval = kafka.max_poll_interval_ms / 1000
        tell_seats(app, self.seats)
        self.health.watch(f"membership of {app.conf.id}", lambda: membership(app))
        return app


def tell_seats(app: App, seats: Seats) -> None:
    """Have `seats` know at any time what the group has given to this app."""
    group = app.conf.id
    seats.watch(group, lambda: app.member_id)

    async def on_assigned(_: Any, assigned: Any, **__: Any) -> None:
        seats.took(group, app.consumer_generation_id, (f"{tp.topic}-{tp.partition}" for tp in assigned))

    app.on_partitions_assigned.connect(on_assigned, weak=False)


def hot_limits(limits: ProducerLimits, settings: ProducerSettings) -> ProducerLimits:
    """The same limits with what may change while the producer runs."""
    return replace(limits, batch_records=settings.batch_size, flush_interval_ms=settings.flush_interval_ms)


async def first_of(*endings: "asyncio.Future[Any]") -> None:
    """Wait for the first ending, cancel the others, and raise what it raised."""
    try:
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for ending in endings:
            if not ending.done():
                ending.cancel()
        await asyncio.gather(*endings, return_exceptions=True)
    for ending in endings:
        if error := error_of(ending):
            raise error


async def raise_crash(app: App) -> None:
    """Wait for the app to crash, and raise why."""
    raise await crashed(app)


def stopped(stop: asyncio.Event) -> "asyncio.Task[Any]":
    """The end that was asked for, as something to wait for."""
    return asyncio.create_task(stop.wait(), name="stop")
