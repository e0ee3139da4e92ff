"""Feeds a read model from whole topics, without a consumer group, through any absence of the broker."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.adapters.connection import security_options
from app.adapters.consumers import LOOK_AGAIN_MS, stop_consumer
from app.adapters.topics_admin import describe_topics
from app.errors import Unavailable
from config.http import ReadModelSettings
from config.kafka import KafkaSettings
from config.topics import DEVICE_METADATA, DEVICE_ROLLUPS, DEVICE_SIGNALS, DEVICE_TELEMETRY

log = logging.getLogger(__name__)

TOPICS = (DEVICE_METADATA.name, DEVICE_TELEMETRY.name, DEVICE_ROLLUPS.name, DEVICE_SIGNALS.name)
Take = Callable[[str, bytes | None, bytes | None], None]

_BATCH_RECORDS = 1000  # applied without a breath: about 5 ms, so that requests are answered between
_POLL_TIMEOUT_MS = 200
_LOOK_S = 0.005  # between two looks of `read_all` at what was taken


class TopicsMissing(Exception):
    """The broker has none of these topics yet."""


class ReadFeed:
    """Reads every partition of `topics` and gives each record to `take(topic, key, value)`.

    Topics in `whole` (compacted ones) are read from the beginning, the rest from `lookback_s` ago, but
    no more than `lookback_max_records` of a topic, shared by its partitions.
    `caught_up` is true once everything that existed has been taken; `lag` is what waits now. Topics in
    `skippable` that are too far behind are skipped up to the newest record, and `skipped` is called.
    `reader` is what the log calls whom it feeds; `asked` that `read_all` is called.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        bootstrap_servers: str,
        limits: ReadModelSettings,
        take: Take,
        skipped: Callable[[], None],
        topics: Iterable[str] = TOPICS,
        whole: Iterable[str] = (DEVICE_METADATA.name,),
        skippable: Iterable[str] = (DEVICE_TELEMETRY.name,),
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        reader: str = "the read model",
        asked: bool = False,
    ) -> None:
        self._kafka = kafka
        self._bootstrap = bootstrap_servers
        self._limits = limits
        self._take = take
        self._skipped = skipped
        self._topics = tuple(topics)
        self._whole = frozenset(whole)
        self._skippable = frozenset(skippable)
        self._now_ms = now_ms
        self._reader = reader
        self._asked = asked
        self._failing = False
        self._asker: Any = None
        self._positions: dict[TopicPartition, int] = {}
        self._targets: dict[TopicPartition, int] = {}
        self.caught_up = False
        self.connected = False
        self.lag = 0
        self.taken = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Feed until `stop`; a broker that is away is tried again: one line when it goes, one when it is back."""
        while not stop.is_set():
            try:
                await self._feed(stop)
            except (KafkaError, Unavailable, TopicsMissing, OSError, TimeoutError) as error:
                self._away(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._limits.retry_backoff_ms / 1000)

    async def read_all(self) -> None:
        """Return when all that the topics hold at the time of the call has been taken; `run` is under way.

        Waits through an absence of the broker. Only of a feed that is `asked`.
        """
        assert self._asked
        while True:
            asker = self._asker
            if asker is not None:
                with contextlib.suppress(KafkaError, OSError, TimeoutError):
                    ends = await asker.end_offsets(list(self._positions))
                    while self._asker is asker:
                        if all(self._positions[partition] >= end for partition, end in ends.items()):
                            return
                        await asyncio.sleep(_LOOK_S)
            await asyncio.sleep(_LOOK_S)

    async def _feed(self, stop: asyncio.Event) -> None:
        """Read until `stop`, or until topics have grown: then return, to begin again with all partitions."""
        partitions = await self._partitions()
        consumer = self._consumer()
        # Of its own: a broker answers a connection in order, and a fetch that waits for records holds it.
        asker = self._consumer() if self._asked else None
        try:
            await consumer.start()
            await self._assign(consumer, partitions)
            if asker is not None:
                await asker.start()
            self._asker = asker
            self._back()
            looked_s = time.monotonic()
            while not stop.is_set():
                await self._poll(consumer)
                if time.monotonic() - looked_s > self._kafka.metadata_max_age_ms / 1000:
                    looked_s = time.monotonic()
                    if await self._partitions() != partitions:
                        return
        finally:
            self.connected = False
            self._asker = None
            await asyncio.gather(*(stop_consumer(each) for each in (consumer, asker) if each is not None))

    def _consumer(self) -> Any:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=f"{self._kafka.client_id}-reads",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_TIMEOUT_MS,
            consumer_timeout_ms=LOOK_AGAIN_MS,
            request_timeout_ms=self._kafka.request_timeout_ms,
            metadata_max_age_ms=self._kafka.metadata_max_age_ms,
            **security_options(self._kafka),
        )

    async def _partitions(self) -> list[TopicPartition]:
        # The consumer itself knows no partitions of topics that it is not subscribed to.
        states = await describe_topics(self._bootstrap, self._topics, self._kafka)
        if missing := set(self._topics) - {state.name for state in states}:
            raise TopicsMissing(f"there is no topic {', '.join(sorted(missing))} yet")
        return [TopicPartition(state.name, number) for state in states for number in range(state.partitions)]

    async def _assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """Every partition, from where it was left, else from the start chosen for its topic."""
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        begins = await self._begins(consumer, partitions, ends)
        for partition in partitions:
            known = self._positions.get(partition, begins[partition])
            # Offsets that went back mean another topic under the old name.
            at = known if known <= ends[partition] else begins[partition]
            consumer.seek(partition, at)
            self._positions[partition] = at
        self._targets = ends
        self._measure()

    async def _begins(
        self, consumer: Any, partitions: list[TopicPartition], ends: dict[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        whole = [partition for partition in partitions if partition.topic in self._whole]
        recent = [partition for partition in partitions if partition.topic not in self._whole]
        begins: dict[TopicPartition, int] = dict(await consumer.beginning_offsets(whole)) if whole else {}
        since_ms = self._now_ms() - self._limits.lookback_s * 1000
        found = await consumer.offsets_for_times(dict.fromkeys(recent, since_ms)) if recent else {}
        shares = Counter(partition.topic for partition in recent)
        for partition in recent:
            begin = found[partition].offset if found.get(partition) else ends[partition]
            most = max(1, self._limits.lookback_max_records // shares[partition.topic])
            begins[partition] = max(begin, ends[partition] - most)
        return begins

    async def _poll(self, consumer: Any) -> None:
        batches = await consumer.getmany(timeout_ms=_POLL_TIMEOUT_MS, max_records=_BATCH_RECORDS)
        take = self._take
        for partition, records in batches.items():
            topic = partition.topic
            for record in records:
                take(topic, record.key, record.value)
            self._positions[partition] = records[-1].offset + 1
            self.taken += len(records)
        for partition in self._positions:
            newest = consumer.highwater(partition)
            if newest is not None:
                self._targets[partition] = newest
            if not batches:  # nothing fetched: a tail of transaction markers or compacted records is passed too
                self._positions[partition] = await consumer.position(partition)
        self._measure()
        await self._skip(consumer)
        await asyncio.sleep(0)

    async def _skip(self, consumer: Any) -> None:
        """Only the newest telemetry is shown, so what cannot be kept up with is passed over."""
        behind = [
            partition
            for partition, end in self._targets.items()
            if partition.topic in self._skippable and end - self._positions[partition] > self._limits.lag_max_records
        ]
        if not behind:
            return
        passed = sum(self._targets[partition] - self._positions[partition] for partition in behind)
        await consumer.seek_to_end(*behind)
        for partition in behind:
            self._positions[partition] = await consumer.position(partition)
        self._skipped()
        log.info("%s skips old telemetry", self._reader, extra={"action": "read_model_skipped", "records": passed})

    def _measure(self) -> None:
        self.lag = sum(max(0, end - self._positions[partition]) for partition, end in self._targets.items())
        if self.connected and self.lag == 0:
            self.caught_up = True

    def _away(self, error: Exception) -> None:
        if not self._failing:
            # Said once: the broker of a fresh start is often a second behind its clients.
            log.info(
                f"{self._reader} waits for Kafka at {self._bootstrap}: {error}",
                extra={"action": "read_model_waits", "error": type(error).__name__},
            )
        self._failing = True

    def _back(self) -> None:
        self.connected = True
        self._failing = False
        self._measure()
        log.info("%s reads", self._reader, extra={"action": "read_model_reads", "lag": self.lag})
