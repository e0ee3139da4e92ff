"""The Kafka client under the batched producer: made, ended at once, and its refusals in our words."""

# ruff: noqa: SLF001 - see `Client`
import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import TopicPartition

from app.errors import BrokerUnavailable
from app.ports import OutRecord

log = logging.getLogger(__name__)

TOO_LARGE: Final = "record_too_large"
UNKNOWN_TOPIC: Final = "unknown_topic"
_CLOSE_S: Final = 2.0
# The client's limit leaves room for a batch's own header and the request around it; ours is what cuts.
_FRAME_BYTES: Final = 4096
# The client's batch builder takes a list and only reads it.
_NO_HEADERS: Final[list[tuple[str, bytes]]] = []

# Errors of the client as a whole: a new client can still deliver the batch.
_CLIENT_ERRORS: Final = (OutOfOrderSequenceNumber, UnknownProducerId, ProducerFenced, ProducerClosed)
# Errors of the destination: no record of the batch would fare better alone.
_WHOLE_BATCH: Final = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, InvalidTopicError)
_REASONS: Final[dict[type[BaseException], str]] = {
    MessageSizeTooLargeError: TOO_LARGE,
    RecordListTooLargeError: TOO_LARGE,
    TopicAuthorizationFailedError: "not_authorized",
    UnknownTopicOrPartitionError: UNKNOWN_TOPIC,
}


@dataclass(frozen=True, slots=True)
class ProducerLimits:
    """What bounds the producer; the units are in the names.

    `record_bytes` bounds one record and `batch_bytes` one batch, before compression.
    """

    bootstrap_servers: str
    client_id: str = "headrace"
    batch_records: int = 1000
    batch_bytes: int = 1_000_000
    flush_interval_ms: float = 5.0
    batches_in_flight: int = 8
    buffer_records: int = 100_000
    buffer_bytes: int = 256 << 20
    record_bytes: int = 1_048_576
    compression: str | None = None
    request_timeout_ms: int = 15_000
    acks: str = "all"
    idempotent: bool = True
    start_timeout_s: float = 30.0
    security: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.record_bytes <= self.buffer_bytes, "a record must fit into the buffer"


class ClientClosed(KafkaError):
    """The client was ended while it was asked something."""


class Refusal(NamedTuple):
    """Why the broker will never take a batch as it is: the metric label, and whether parts of it may fare better."""

    reason: str
    divisible: bool


class Client:
    """One aiokafka producer that can be ended at once; it leans on private names of aiokafka 0.14, pinned."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._running: set[asyncio.Future[Any]] = set()
        # Only the sender itself knows its requests; they must be ended with it.
        self._request = producer._sender._send_produce_req
        producer._sender._send_produce_req = self._send_request

    async def _send_request(self, *args: Any) -> None:
        request = asyncio.current_task()
        assert request is not None, "the sender gives each request a task"
        self._running.add(request)
        try:
            await self._request(*args)
        finally:
            self._running.discard(request)

    async def partitions(self, topic: str) -> int:
        """Number of partitions. Raises `KafkaError` when the broker knows no such topic."""
        asking = asyncio.ensure_future(self._producer.partitions_for(topic))
        self._running.add(asking)
        try:
            await asyncio.wait([asking])
        finally:
            self._running.discard(asking)
            asking.cancel()
        if asking.cancelled():
            raise ClientClosed
        return len(asking.result())

    def knows(self, topic: str) -> bool:
        """Whether records of the topic may be sent without asking for its partitions first."""
        return self._producer.client.cluster.partitions_for_topic(topic) is not None

    def send(self, topic: str, partition: int, records: Sequence[OutRecord]) -> "asyncio.Future[Any]":
        """Queue a record batch; batches of a partition go out in order, one at a time. The topic is known.

        The client's own `append` is a Python wrapper of 0.4 µs round the compiled one that is used here,
        and its `send_batch` waits where the bounds of `app.adapters.producer` already hold.
        """
        accumulator = self._producer._message_accumulator
        if accumulator._exception is not None:
            raise accumulator._exception
        builder = self._producer.create_batch()
        append = builder._builder.append
        number = 0
        for _, key, value, timestamp_ms, headers, _, _ in records:
            packed = list(headers) if headers else _NO_HEADERS
            if append(number, timestamp_ms, key, value, packed) is None:
                raise AssertionError("a batch cut by bytes does not fit the client's batch")
            number += 1
        builder._relative_offset = number
        batch = accumulator._append_batch(builder, TopicPartition(topic, partition))
        batch._drain_waiter.add_done_callback(_read)
        sent: asyncio.Future[Any] = batch.future
        return sent

    def refusal(self, topic: str, error: BaseException) -> Refusal | None:
        """What an error says of a batch; None when another try may succeed."""
        if isinstance(error, UnknownTopicOrPartitionError):
            return Refusal(UNKNOWN_TOPIC, divisible=False)
        if isinstance(error, NotLeaderForPartitionError) and not self.knows(topic):
            # The client's word for a topic that was missing for a whole request time-out.
            return Refusal(UNKNOWN_TOPIC, divisible=False)
        if not isinstance(error, KafkaError) or error.retriable or isinstance(error, _CLIENT_ERRORS):
            return None
        if type(error) is KafkaError:
            return None  # "unexpected error during batch delivery": the client's own failure
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()
        return Refusal(_REASONS.get(type(error), name), divisible=not isinstance(error, _WHOLE_BATCH))

    async def close(self) -> None:
        """End the client and everything it has under way: nothing of it may reach the broker after its successor's.

        Its own stop() waits for its batches without a bound, and goes on sending when that wait is cut short.
        """
        await _close(self._producer, self._running)


def _read(waiter: "asyncio.Future[Any]") -> None:
    """The client sets its failure on this one too, for whom nobody waits."""
    if not waiter.cancelled():
        waiter.exception()


async def _close(producer: AIOKafkaProducer, running: Iterable["asyncio.Future[Any]"]) -> None:
    producer._closed = True
    sender = producer._sender
    ending = list(running)
    if sender is not None and sender.sender_task is not None:
        ending.append(sender.sender_task)
    for task in ending:
        task.cancel()
    try:
        async with asyncio.timeout(_CLOSE_S):
            await producer.client.close()
    except (TimeoutError, KafkaError, OSError) as error:
        log.info("a Kafka client did not close cleanly: %s", error, extra={"action": "producer_close"})
    if ending:
        await asyncio.wait(ending, timeout=_CLOSE_S)


async def connect(limits: ProducerLimits) -> Client:
    """A started client. Raises `BrokerUnavailable` when no broker answers in `start_timeout_s`."""
    largest = limits.batch_bytes + limits.record_bytes + _FRAME_BYTES
    producer = AIOKafkaProducer(
        bootstrap_servers=limits.bootstrap_servers,
        client_id=limits.client_id,
        acks=limits.acks if limits.acks == "all" else int(limits.acks),
        enable_idempotence=limits.idempotent,
        max_batch_size=largest,
        max_request_size=largest * 2,
        compression_type=limits.compression,
        request_timeout_ms=limits.request_timeout_ms,
        linger_ms=0,
        **limits.security,
    )
    try:
        async with asyncio.timeout(limits.start_timeout_s):
            await producer.start()
    except (KafkaError, OSError, TimeoutError) as error:
        await _close(producer, ())
        why = str(error) or "it took too long"
        raise BrokerUnavailable(f"No Kafka broker answers at {limits.bootstrap_servers}: {why}.") from error
    except BaseException:
        await _close(producer, ())
        raise
    return Client(producer)
