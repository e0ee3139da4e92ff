"""Laws of scoring from the topics, on a real broker."""

from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer

from app.adapters.score_reader import Range, score_topics
from app.codec import encode_signal, encode_truth
from app.domain.faults import Fault
from app.domain.signal_rules import Threshold
from app.errors import BrokerUnavailable
from tests.helpers.broker import TopicFactory
from tests.helpers.signals import DEVICE, START_MS, compiled, rule, run, sample

pytestmark = pytest.mark.broker


async def send(broker: str, topic: str, values: Sequence[bytes | None]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, key=DEVICE.encode())


def fault(number: int, kind: str, from_ms: int, to_ms: int | None) -> bytes:
    to_ts = None if to_ms is None else START_MS + to_ms
    return encode_truth(Fault(f"f{number}", DEVICE, kind, None, START_MS + from_ms, to_ts, 1.0, 1))


def signals(at_ms: Sequence[int]) -> list[bytes]:
    """Signals raised at these times, each cleared a millisecond later."""
    rules = compiled(rule(Threshold(above=90.0)))
    samples = [each for at in at_ms for each in (sample(at, 95.0), sample(at + 1, 1.0))]
    return [encode_signal(each) for each in run(rules, samples)]


async def test_the_topics_are_read_to_their_ends_and_scored(broker: str, new_topic: TopicFactory) -> None:
    told, true = new_topic(partitions=3), new_topic(partitions=2)
    truth = [
        fault(1, "spike", 1_000, None),
        fault(1, "spike", 1_000, 2_000),
        fault(2, "drift", 10_000, 20_000),
        fault(3, "late", 30_000, 40_000),
        fault(4, "stuck", 50_000, None),
    ]
    await send(broker, true, [*truth, b"not json", None])
    once = signals([1_500, 30_500, 60_000])
    await send(broker, told, [*once, *once[:2], b'{"at": "soon", "state": "raised"}', b"[]"])
    found = await score_topics(
        {"bootstrap_servers": broker}, tolerance_ms=0, signals_topic=told, truth_topic=true, timeout_s=30
    )
    assert (found.signals, found.intervals, found.unreadable) == (3, 3, 4)
    total = found.score.total
    assert (total.detected, total.false_positives) == (2, 1), "the open fault lasts to the last signal"
    assert found.score.by_label["spike"].delay_ms == (500.0, 500.0, 500.0)
    within = Range(START_MS, START_MS + 40_000)
    part = await score_topics(
        {"bootstrap_servers": broker}, tolerance_ms=0, within=within, signals_topic=told, truth_topic=true, timeout_s=30
    )
    assert (part.signals, part.intervals) == (2, 2)


async def test_empty_topics_have_no_figures(broker: str, new_topic: TopicFactory) -> None:
    told, true = new_topic(partitions=1), new_topic(partitions=1)
    found = await score_topics(
        {"bootstrap_servers": broker}, tolerance_ms=0, signals_topic=told, truth_topic=true, timeout_s=30
    )
    assert found.score.total.precision is None


async def test_an_absent_broker_is_one_error() -> None:
    with pytest.raises(BrokerUnavailable):
        await score_topics({"bootstrap_servers": "127.0.0.1:1"}, tolerance_ms=0, timeout_s=5)
