"""librdkafka's murmur2 partitioner and ours send every key of the vector to the same partition."""

import pytest
from confluent_kafka import Producer

from app.adapters.producer import BatchProducer, ProducerLimits
from app.ports import OutRecord
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import T0_MS, read_topic
from tests.helpers.murmur2 import vector_keys

pytestmark = pytest.mark.broker


@pytest.mark.parametrize("partitioner", ["murmur2", "murmur2_random"])
async def test_librdkafka_and_ours_agree(broker: str, new_topic: TopicFactory, partitioner: str) -> None:
    theirs, ours, keys = new_topic(partitions=7), new_topic(partitions=7), vector_keys()
    librdkafka = Producer({"bootstrap.servers": broker, "partitioner": partitioner})
    for key in keys:
        librdkafka.produce(theirs, key=key, value=b"")
    assert librdkafka.flush(20) == 0
    async with BatchProducer(ProducerLimits(broker)) as producer:
        await producer.publish([OutRecord(ours, key, b"", T0_MS) for key in keys])
    found = {
        topic: {record.key: partition for partition, run in (await read_topic(broker, topic)).items() for record in run}
        for topic in (theirs, ours)
    }
    assert found[theirs] == found[ours]
    assert len(found[ours]) == len(set(keys))
    assert len(set(found[ours].values())) == 7
