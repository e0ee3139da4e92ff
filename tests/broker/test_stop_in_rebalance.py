"""A member whose stop meets a rebalance leaves its group at once; stock Faust lets the others wait for its session."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from app.adapters.faust_app import running
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.transport import TransportLimits
from tests.helpers.broker import TopicFactory
from tests.helpers.faust import Seen, a_group, joined, our_app
from tests.helpers.kafka import records, until

pytestmark = pytest.mark.broker

PARTITIONS = 4
SESSION_S = 30


async def test_member_that_stops_in_the_middle_of_a_rebalance_leaves_the_group_at_once(
    broker: str, new_topic: TopicFactory
) -> None:
    topic, group = new_topic(PARTITIONS), a_group()
    limits = TransportLimits(drain_s=SESSION_S)
    stays, goes, comes = (our_app(broker, group, limits=limits, session_timeout_ms=SESSION_S * 1_000) for _ in range(3))
    seen, held = Seen(), Seen(ack=False)
    for app in (stays, goes, comes):
        app.add_agent("counting", topic, held.batches if app is goes else seen.batches)

    async def come_and_let_go(arriving: AsyncExitStack) -> None:
        await until(lambda: goes.should_stop, "it stops, and waits for its agent")
        before = stays.rebalancing_count
        await arriving.enter_async_context(running(comes))
        await until(lambda: stays.rebalancing_count > before, "the group rebalances")
        held.acking.set()

    async with running(stays), BatchProducer(ProducerLimits(broker)) as producer, AsyncExitStack() as arriving:
        await joined(stays, PARTITIONS)
        async with running(goes):
            await until(lambda: len(goes.consumer.assignment()) == PARTITIONS // 2, "it has its share")
            for partition in range(PARTITIONS):
                await producer.publish(records(topic, [b"x"], partition))
            await held.count(1)
            coming = asyncio.create_task(come_and_let_go(arriving))
        began = time.perf_counter()
        await coming
        await joined(stays, PARTITIONS // 2)
        await joined(comes, PARTITIONS // 2)
        assert time.perf_counter() - began < SESSION_S / 2
