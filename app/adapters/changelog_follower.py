"""Follows the ends of changelog partitions with one aiokafka consumer, outside any consumer group."""

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.adapters.consumers import LOOK_AGAIN_MS, stop_consumer
from app.ports import Followed

log = logging.getLogger(__name__)

# A fetch waits this long for more, so that a busy owner costs its standby 40 fetches a second and not hundreds.
FETCH_WAIT_MS: Final = 25
FETCH_MIN_BYTES: Final = 1 << 20
POLL_MS: Final = 100


class KafkaChangelogFollower:
    """A follower for `tables.standby`; use as an async context manager."""

    def __init__(self, bootstrap_servers: str, topic: str, batch_records: int = 2_000, **security: Any) -> None:
        self._topic = topic
        self._batch_records = batch_records
        self._starts: Mapping[int, int] | None = None
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            consumer_timeout_ms=LOOK_AGAIN_MS,
            fetch_min_bytes=FETCH_MIN_BYTES,
            max_partition_fetch_bytes=4 << 20,
            **security,
        )

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await stop_consumer(self._consumer)

    def follow(self, starts: Mapping[int, int]) -> None:
        """From the next `poll` on these partitions and no others, each from an offset."""
        self._starts = dict(starts)

    async def poll(self) -> Sequence[Followed]:
        """What has come; a broker that is away is waited for."""
        starts, self._starts = self._starts, None
        if starts is not None:
            self._begin(starts)
        try:
            found = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=self._batch_records)
        except KafkaError as error:
            log.warning("following %s: %s", self._topic, error, extra={"action": "standby_waits"})
            return ()
        if self._asked_anew():
            return ()  # this was read before
        ends = {where: self._consumer.highwater(where) for where in self._consumer.assignment()}
        # Nothing new is news too: it says where the end is.
        return [Followed(where.partition, found.get(where, ()), end) for where, end in ends.items() if end is not None]

    def _begin(self, starts: Mapping[int, int]) -> None:
        self._consumer.assign([TopicPartition(self._topic, partition) for partition in starts])
        for partition, offset in starts.items():
            self._consumer.seek(TopicPartition(self._topic, partition), offset)

    def _asked_anew(self) -> bool:
        return self._starts is not None
