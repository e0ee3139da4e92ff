"""Looks at a Kafka from outside: who it says it is, whether that can be reached from here, and its clock."""

import asyncio
import contextlib
import socket
import time
import uuid
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from app.adapters.connection import security_options
from app.adapters.topics_admin import delete_topics, ensure_topics
from app.errors import BrokerUnavailable
from config.kafka import KafkaSettings
from config.topics import TopicSpec

CONNECT_TIMEOUT_S = 5.0


class Advertised(NamedTuple):
    """A broker by the address it tells clients to use; `problem` is why that does not work from here."""

    node_id: int
    host: str
    port: int
    problem: str | None


class ClockOffset(NamedTuple):
    """How far the broker's clock is ahead of ours, known to plus or minus `uncertainty_ms`."""

    offset_ms: float
    uncertainty_ms: float


async def advertised_brokers(kafka: KafkaSettings) -> list[Advertised]:
    """The brokers as the first one that answers names them. Raises `BrokerUnavailable`.

    A client uses the bootstrap address for this one question and then only what is advertised.
    """
    client = AIOKafkaClient(
        bootstrap_servers=kafka.bootstrap_servers,
        client_id=f"{kafka.client_id}-doctor",
        request_timeout_ms=int(CONNECT_TIMEOUT_S * 1000),
        **security_options(kafka),
    )
    try:
        await client.bootstrap()
        brokers = [(each.nodeId, each.host, each.port) for each in client.cluster.brokers()]
    except (KafkaError, OSError, TimeoutError) as error:
        raise BrokerUnavailable(f"No Kafka broker answers at {kafka.bootstrap_servers}: {error}.") from error
    finally:
        await client.close()
    problems = await asyncio.gather(*(connection_problem(host, port) for _, host, port in brokers))
    return [Advertised(*broker, problem) for broker, problem in sorted(zip(brokers, problems, strict=True))]


async def connection_problem(host: str, port: int) -> str | None:
    """Why nothing can be connected to, or None."""
    try:
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"{host} cannot be resolved ({error.strerror or error})"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"{host}:{port} does not answer within {CONNECT_TIMEOUT_S:g} s"
    except OSError as error:
        return f"{host}:{port} cannot be connected to ({error.strerror or error})"
    writer.close()
    with contextlib.suppress(OSError):  # it answered; how it says goodbye does not matter
        await writer.wait_closed()
    return None


async def clock_offset(kafka: KafkaSettings) -> ClockOffset:
    """The broker's clock against ours, by the time it writes into a record of a topic made and deleted for that.

    Raises a `HeadraceError` when the broker lets us make no topic or does not answer.
    """
    name = f"headrace.doctor.{uuid.uuid4().hex[:12]}"
    extra = {"message.timestamp.type": "LogAppendTime"}
    await ensure_topics(kafka.bootstrap_servers, [TopicSpec(name, "none", "none", partitions=1, extra=extra)], kafka)
    try:
        async with asyncio.timeout(kafka.request_timeout_ms / 1000):
            return await _measured(kafka, name)
    except (KafkaError, OSError, TimeoutError) as error:
        raise BrokerUnavailable(f"The broker takes no records: {error}.") from error
    finally:
        await delete_topics(kafka.bootstrap_servers, [name], kafka)


async def _measured(kafka: KafkaSettings, topic: str) -> ClockOffset:
    """The first record opens connections; the second is the measurement."""
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers,
        client_id=f"{kafka.client_id}-doctor",
        linger_ms=0,
        **security_options(kafka),
    )
    try:
        await producer.start()
        await producer.send_and_wait(topic, b"clock")
        before_ms = time.time() * 1000
        sent = await producer.send_and_wait(topic, b"clock")
        after_ms = time.time() * 1000
    finally:
        await producer.stop()
    # The broker's timestamp is cut to whole milliseconds.
    return ClockOffset(sent.timestamp + 0.5 - (before_ms + after_ms) / 2, (after_ms - before_ms) / 2 + 0.5)
