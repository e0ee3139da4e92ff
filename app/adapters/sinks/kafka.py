"""The Kafka sink: rows to another topic, keyed by their identity.

At least once: a repeat after a crash writes the same records again. The key is the identity as a
JSON array, so a compacted topic keeps one record of each, and the headers `source_topic`,
`source_partition` and `source_offset` tell a consumer which records are repeats.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import orjson

from app.errors import BrokerUnavailable, PublishFailed, SinkRejected, SinkUnavailable
from app.ports import Clock, OutRecord, SinkRow

# What the broker or its limits say about the record itself; all else may pass with time.
REFUSALS = frozenset({"record_too_large", "batch_too_large", "invalid_record"})


class Producer(Protocol):
    """The part of `app.adapters.producer.BatchProducer` that is used."""

    async def start(self) -> None: ...
    async def stop(self, timeout_s: float = ...) -> None: ...
    async def publish(self, records: Sequence[OutRecord]) -> None: ...


class KafkaSink:
    """Sends rows with a producer of its own, so that its backlog fills no other's buffer.

    `connect` gives a new producer: after a failure the old one still holds records of the batch that
    will be written again.
    """

    def __init__(
        self, name: str, topic: str, connect: Callable[[], Producer], clock: Clock, write_timeout_s: float = 30.0
    ) -> None:
        self.name = name
        self._topic = topic
        self._connect = connect
        self._clock = clock
        self._write_timeout_s = write_timeout_s
        self._producer: Producer | None = None

    async def open(self) -> None:
        """Connect to the brokers. Raises `SinkUnavailable`."""
        if self._producer is not None:
            return
        producer = self._connect()
        try:
            await producer.start()
        except BrokerUnavailable as error:
            raise SinkUnavailable(f"sink {self.name}: {error}") from error
        self._producer = producer

    async def write(self, rows: Sequence[SinkRow]) -> None:
        """Send `rows`; see `app.ports.Sink`."""
        reasons: dict[int, str] = {}
        records: list[tuple[int, OutRecord]] = []
        for index, row in enumerate(rows):
            try:
                records.append((index, self._record(row)))
            except TypeError as error:
                reasons[index] = f"the row is not JSON: {error}"
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self.open()
                reasons.update(await self._send(records))
        except (TimeoutError, BrokerUnavailable, PublishFailed) as error:
            await self.close()
            raise SinkUnavailable(f"sink {self.name}: {str(error) or 'the broker does not answer in time'}") from error
        except asyncio.CancelledError:
            await self.close()
            raise
        if reasons:
            raise SinkRejected(reasons)

    async def close(self) -> None:
        """Leave the brokers; records under way are not waited for, since their batch is repeated."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop(timeout_s=0.0)

    async def _send(self, records: list[tuple[int, OutRecord]]) -> dict[int, str]:
        """Publish; halve a batch that holds a refused record until that record stands alone."""
        if not records:
            return {}
        assert self._producer is not None
        try:
            await self._producer.publish([record for _, record in records])
        except PublishFailed as failed:
            if failed.reason not in REFUSALS:
                raise
            if len(records) == 1:
                return {records[0][0]: str(failed)}
        else:
            return {}
        half = len(records) // 2
        return {**await self._send(records[:half]), **await self._send(records[half:])}

    def _record(self, row: SinkRow) -> OutRecord:
        topic, partition, offset = row.source
        return OutRecord(
            topic=self._topic,
            key=orjson.dumps(row.key),
            value=orjson.dumps(row.row),
            timestamp_ms=self._clock.now_ms(),
            headers=(
                ("kind", row.kind.encode()),
                ("version", b"%d" % row.version),
                ("source_topic", topic.encode()),
                ("source_partition", b"%d" % partition),
                ("source_offset", b"%d" % offset),
            ),
        )
