"""The broker as benchmarks need it: topics of their own, loaded input, offsets and append times."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from app.adapters.consumers import stop_consumer
from app.adapters.embedded import EmbeddedKafka
from app.bench.payload import Record
from app.bench.statistics import Appends, steady_rate
from app.domain.murmur2 import partition_for
from app.errors import BrokerUnavailable

PARTITIONS = 4
LOAD_BATCH_RECORDS = 1000
WARM_UP_SHARE = 0.2
# Input keeps its events' own times, which retention by time must not count against it.
INPUT_TOPIC = {"retention.ms": "-1", "segment.bytes": str(256 << 20)}
OUTPUT_TOPIC = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}


class BenchBroker:
    """One broker under test; every topic and group it names is deleted at the end. Use as a context manager.

    `kafka` are the processes, where they are the run's own.
    """

    def __init__(self, bootstrap_servers: str, kafka: EmbeddedKafka | None = None) -> None:
        self.kafka = kafka
        self.bootstrap_servers = bootstrap_servers
        self.prefix = f"bench-{os.getpid()}-{secrets.token_hex(3)}"
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        self._named = 0

    async def __aenter__(self) -> Self:
        try:
            await self._admin.start()
            await self._reader.start()
        except (KafkaError, OSError) as error:
            await stop_consumer(self._reader)
            await self._admin.close()
            raise BrokerUnavailable(f"No Kafka broker answers at {self.bootstrap_servers}: {error}.") from error
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.delete_topics(self.prefix)
        await stop_consumer(self._reader)
        await self._admin.close()

    def name(self, purpose: str) -> str:
        """A name no other run has; processors derive their group and inner topics from it."""
        self._named += 1
        return f"{self.prefix}-{self._named}-{purpose}"

    async def create_topic(self, purpose: str, config: Mapping[str, str], partitions: int = PARTITIONS) -> str:
        """A fresh topic, ready to be written to."""
        name = self.name(purpose)
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=dict(config))
        answer = await self._admin.create_topics([topic])
        for _, code, text in answer.topic_errors:
            if code:
                raise BrokerUnavailable(f"The topic {name} could not be created: {text}.")
        await self._until_led(name, partitions)
        return name

    async def _until_led(self, topic: str, partitions: int) -> None:
        async with asyncio.timeout(15):
            while True:
                # A topic made a moment ago may be unknown for some milliseconds more.
                with contextlib.suppress(UnknownTopicOrPartitionError):
                    described = await self._admin.describe_topics([topic])
                    led = [p for p in described[0]["partitions"] if p["leader"] >= 0]
                    if len(led) == partitions:
                        return
                await asyncio.sleep(0)

    async def topics(self) -> list[str]:
        """Every topic on the broker."""
        return list(await self._admin.list_topics())

    async def delete_topics(self, part: str) -> None:
        """Delete every topic with `part` in its name: processors build the names of their inner topics round it."""
        names = [name for name in await self.topics() if part in name]
        if names:
            await self._admin.delete_topics(names)

    def _parts(self, topic: str, partitions: int = PARTITIONS) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in range(partitions)]

    async def end_offsets(self, topic: str) -> list[int]:
        found = await self._reader.end_offsets(self._parts(topic))
        return [found[part] for part in self._parts(topic)]

    async def count(self, topic: str) -> int:
        """Records appended to `topic` so far, by its end offsets (nothing is ever deleted from it)."""
        return sum(await self.end_offsets(topic))

    async def facts(self) -> dict[str, str]:
        """What the broker promises when it acknowledges, for the reader of a result."""
        topic = await self.create_topic("facts", {})
        answer = await self._admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        config = {entry[0]: entry[1] for resource in answer[0].resources for entry in resource[4]}
        await self.delete_topics(topic)
        never = config.get("flush.messages") == str(2**63 - 1)
        return {
            "replication": "1",
            "min_insync_replicas": config.get("min.insync.replicas", "?"),
            "fsync": "left to the operating system" if never else f"every {config.get('flush.messages')} messages",
        }

    # ---- input ----

    async def load(self, topic: str, records: Iterable[Record]) -> int:
        """Append `records` in order, keyed by murmur2, in batches of a thousand a partition; returns their number."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap_servers,
            acks="all",
            enable_idempotence=True,
            max_batch_size=4 << 20,
            max_request_size=16 << 20,
        )
        await producer.start()
        loaded = 0
        try:
            for lanes in _lanes(records):
                # One batch of a partition at a time keeps its order; the four partitions go out together.
                sent = [await _send(producer, topic, number, lane) for number, lane in enumerate(lanes) if lane]
                await asyncio.gather(*sent)
                loaded += sum(map(len, lanes))
        finally:
            await producer.stop()
        return loaded

    async def loaded(self, topic: str, records: Iterable[Record]) -> None:
        """`load` into a fresh topic, or more of it, and prove by its end offsets that it is all there once."""
        before = await self.count(topic)
        sent = await self.load(topic, records)
        if (there := await self.count(topic) - before) != sent:
            raise BrokerUnavailable(f"The input could not be loaded: {there:,} of {sent:,} records are on the broker.")

    # ---- output ----

    async def append_times(self, topic: str) -> Appends:
        """First and last append by the broker's clock, and the rate after the first fifth (warm-up) of the records."""
        ends = await self.end_offsets(topic)
        total = sum(ends)
        first_ms, last_ms = await self._first_append(topic), await self._last_append(topic, ends)
        low, high = first_ms, last_ms
        while low < high:
            middle = (low + high) // 2
            if await self._appended_before(topic, middle + 1, ends) >= total * WARM_UP_SHARE:
                high = middle
            else:
                low = middle + 1
        before = await self._appended_before(topic, low + 1, ends)
        return Appends(steady_rate(total, before, low, last_ms), first_ms, last_ms)

    async def _first_append(self, topic: str) -> int:
        found: dict[Any, Any] = await self._reader.offsets_for_times(dict.fromkeys(self._parts(topic), 0))
        return min(int(at.timestamp) for at in found.values() if at is not None)

    async def _last_append(self, topic: str, ends: Sequence[int]) -> int:
        last = 0
        for part, end in zip(self._parts(topic), ends, strict=True):
            if end:
                async for record in self._read(part, end - 1, end):
                    last = max(last, record.timestamp)
        return last

    async def _appended_before(self, topic: str, time_ms: int, ends: Sequence[int]) -> int:
        found = await self._reader.offsets_for_times(dict.fromkeys(self._parts(topic), time_ms))
        return sum(
            end if found.get(part) is None else found[part].offset
            for part, end in zip(self._parts(topic), ends, strict=True)
        )

    async def values(self, topic: str, limit: int | None = None) -> list[list[bytes]]:
        """The first `limit` values (or all) of each partition, in order."""
        rows: list[list[bytes]] = []
        for part, end in zip(self._parts(topic), await self.end_offsets(topic), strict=True):
            upto = end if limit is None else min(end, limit)
            rows.append([record.value async for record in self._read(part, 0, upto)])
        return rows

    async def _read(self, part: TopicPartition, start: int, end: int) -> AsyncIterator[Any]:
        """Records of one partition from `start` to before `end`."""
        if start >= end:
            return
        self._reader.assign([part])
        self._reader.seek(part, start)
        try:
            async with asyncio.timeout(60):
                while True:
                    for records in (await self._reader.getmany(part, timeout_ms=1000, max_records=5000)).values():
                        for record in records:
                            if record.offset >= end:
                                return
                            yield record
                            if record.offset == end - 1:
                                return
        finally:
            # An assignment left on a topic that is then deleted makes the client ask for it without a pause.
            self._reader.unsubscribe()


def _lanes(records: Iterable[Record]) -> Iterator[list[list[Record]]]:
    """Cut the stream in blocks, each split by the key's partition into lanes of about a thousand records."""
    partitions: dict[bytes, int] = {}
    rest = iter(records)
    while block := list(islice(rest, LOAD_BATCH_RECORDS * PARTITIONS)):
        lanes: list[list[Record]] = [[] for _ in range(PARTITIONS)]
        for record in block:
            number = partitions.get(record.key)
            if number is None:
                number = partitions[record.key] = partition_for(record.key, PARTITIONS)
            lanes[number].append(record)
        yield lanes


async def _send(
    producer: AIOKafkaProducer, topic: str, partition: int, lane: Sequence[Record]
) -> "asyncio.Future[object]":
    batch = producer.create_batch()
    for record in lane:
        batch.append(key=record.key, value=record.value, timestamp=record.timestamp_ms)
    sent: asyncio.Future[object] = await producer.send_batch(batch, topic, partition=partition)
    return sent
