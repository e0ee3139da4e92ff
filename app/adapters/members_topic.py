"""The topic `cluster.members`: everybody's records folded into a roster, and one's own written."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from app.adapters.connection import security_options
from app.adapters.read_feed import ReadFeed
from app.cluster_wire import decode_node, encode_node
from app.domain import membership
from app.domain.cluster import NodeView
from app.domain.membership import Roster
from app.errors import BrokerUnavailable
from config.http import ReadModelSettings
from config.kafka import KafkaSettings
from config.topics import CLUSTER_MEMBERS

log = logging.getLogger(__name__)

Heard = Callable[[str, NodeView | None], None]
"""Called on the loop with each record in the order of the topic, after the roster has it."""

# Who waits for a broker that has lost its others should hear of it soon.
WRITE_TIMEOUT_MS: Final = 3_000
_BROKER_STAMPS: Final = 1  # LogAppendTime


@dataclass(frozen=True, slots=True)
class Written:
    """The broker has it. `clock_ahead_ms` is how far our clock is ahead of its, give or take `uncertainty_ms`."""

    clock_ahead_ms: float | None
    uncertainty_ms: float


class MembersTopic:
    """`roster` is everybody as the topic has it; `run` keeps it so, through any absence of the broker.

    Nothing of a record that cannot be read is believed; it is logged once a node.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        bootstrap_servers: str,
        limits: ReadModelSettings,
        *,
        heard: Heard = lambda _node_id, _view: None,
        topic: str = CLUSTER_MEMBERS.name,
        monotonic_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.roster = Roster()
        self._kafka = kafka
        self._bootstrap = bootstrap_servers
        self._heard = heard
        self._topic = topic
        self._monotonic_s = monotonic_s
        self._now_ms = now_ms
        self._unreadable: set[str] = set()
        self._producer: Any = None
        self._feed = ReadFeed(
            kafka,
            bootstrap_servers,
            limits,
            self._take,
            lambda: None,
            topics=(topic,),
            whole=(topic,),
            skippable=(),
            reader="the members of the cluster",
        )

    @property
    def ready(self) -> bool:
        """Everything that was on the topic when it was first reached has been read."""
        return self._feed.caught_up

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the topic until `stop`."""
        await self._feed.run(stop)

    def alive(self, node_id: str) -> None:
        """A sign of life of a node on another way than the topic."""
        self.roster = membership.heard(self.roster, node_id, self._monotonic_s())

    async def write(self, node_id: str, view: NodeView | None) -> Written:
        """Return when every in-sync replica has the record; None says that the node has left.

        Raises `BrokerUnavailable`, also when the brokers that are left may not take records.
        """
        try:
            async with asyncio.timeout(2 * WRITE_TIMEOUT_MS / 1000):
                return await self._write(node_id, view)
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            why = str(error) or f"no answer within {2 * WRITE_TIMEOUT_MS / 1000:g} s"
            raise BrokerUnavailable(f"Kafka at {self._bootstrap} does not take the record of this node: {why}.") from (
                error
            )

    async def close(self) -> None:
        """Let go of the connection for writing; the next record opens another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):  # it is not needed any more
                async with asyncio.timeout(WRITE_TIMEOUT_MS / 1000):
                    await producer.stop()

    async def _write(self, node_id: str, view: NodeView | None) -> Written:
        if self._producer is None:
            producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap,
                client_id=f"{self._kafka.client_id}-members",
                acks="all",
                request_timeout_ms=min(WRITE_TIMEOUT_MS, self._kafka.request_timeout_ms),
                retry_backoff_ms=self._kafka.retry_backoff_ms,
                metadata_max_age_ms=self._kafka.metadata_max_age_ms,
                **security_options(self._kafka),
            )
            self._producer = producer
            await producer.start()
        began_ms, began_s = self._now_ms(), self._monotonic_s()
        sent = await self._producer.send_and_wait(
            self._topic, None if view is None else encode_node(view), key=node_id.encode(), partition=0
        )
        took_ms = (self._monotonic_s() - began_s) * 1000
        ahead_ms = began_ms + took_ms / 2 - sent.timestamp if sent.timestamp_type == _BROKER_STAMPS else None
        return Written(ahead_ms, took_ms / 2)

    def _take(self, _: str, key: bytes | None, value: bytes | None) -> None:
        node_id = (key or b"").decode(errors="replace")
        try:
            view = None if value is None else decode_node(value)
            if not node_id or (view is not None and view.node_id != node_id):
                raise ValueError("its key and its value name different nodes")
        except ValueError as error:
            if node_id not in self._unreadable:
                self._unreadable.add(node_id)
                log.error(  # noqa: TRY400 - the message says all
                    "a record of %s is passed over: %s",
                    self._topic,
                    error,
                    extra={"action": "member_unreadable", "key": node_id},
                )
            return
        self._unreadable.discard(node_id)
        self.roster = membership.take(self.roster, node_id, view, self._monotonic_s())
        self._heard(node_id, view)
