"""What only a Kafka sink does: headers of the source, refusals by the broker, a broker that is away."""

import pytest

from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.sinks.kafka import KafkaSink
from app.errors import SinkRejected, SinkUnavailable
from tests.helpers.broker import TopicFactory
from tests.helpers.databases import free_port
from tests.helpers.sinks import FixedClock, a_rollup, kafka_documents

pytestmark = pytest.mark.broker


def kafka_sink(bootstrap: str, topic: str, write_timeout_s: float = 10.0) -> KafkaSink:
    limits = ProducerLimits(bootstrap_servers=bootstrap, flush_interval_ms=0, start_timeout_s=1.0)
    return KafkaSink("t", topic, lambda: BatchProducer(limits), FixedClock(), write_timeout_s)


async def test_a_record_names_its_source_and_its_identity(broker: str, new_topic: TopicFactory) -> None:
    topic = new_topic(partitions=1)
    sink = kafka_sink(broker, topic)
    await sink.write([a_rollup(0, revision=2, offset=41)])
    await sink.close()
    (document,) = await kafka_documents(broker, topic)
    assert document["headers"] == {
        "kind": "rollups", "version": "2", "source_topic": "device.rollups", "source_partition": "0",
        "source_offset": "41",
    }  # fmt: skip
    assert list(document["key"].values()) == ["press-0001", "temperature", 1_763_689_000_000, 10_000]


async def test_several_refused_records_are_found_and_the_next_batch_goes_on(
    broker: str, new_topic: TopicFactory
) -> None:
    topic = new_topic(partitions=1)
    sink = kafka_sink(broker, topic)
    with pytest.raises(SinkRejected) as caught:
        await sink.write([a_rollup(i, note="x" * 2_000_000 if i in {1, 6} else "") for i in range(8)])
    await sink.write([a_rollup(8)])
    await sink.close()
    assert sorted(caught.value.reasons) == [1, 6]
    written = {int(document["headers"]["source_offset"]) for document in await kafka_documents(broker, topic)}
    assert written == {0, 2, 3, 4, 5, 7, 8}


async def test_what_the_topic_alone_refuses_is_found_too(broker: str, new_topic: TopicFactory) -> None:
    """The topic's own limit is smaller than the producer's: the broker refuses the whole record batch."""
    topic = new_topic(partitions=1, max_message_bytes="20000")
    sink = kafka_sink(broker, topic)
    with pytest.raises(SinkRejected) as caught:
        await sink.write([a_rollup(i, note="x" * 30_000 if i == 2 else "") for i in range(4)])
    await sink.close()
    assert sorted(caught.value.reasons) == [2]
    written = {int(document["headers"]["source_offset"]) for document in await kafka_documents(broker, topic)}
    assert written == {0, 1, 3}


async def test_a_topic_that_is_not_there_is_unavailable(broker: str) -> None:
    sink = kafka_sink(broker, "no-such-topic-at-all", write_timeout_s=3.0)
    with pytest.raises(SinkUnavailable):
        await sink.write([a_rollup(0)])
    await sink.close()


async def test_a_broker_that_is_away_is_unavailable_time_and_again() -> None:
    sink = kafka_sink(f"127.0.0.1:{free_port()}", "topic")
    for _ in range(2):
        with pytest.raises(SinkUnavailable):
            await sink.write([a_rollup(0)])
    await sink.close()
