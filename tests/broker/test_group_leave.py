"""Laws of removing other processes' members from groups, on a real broker."""

import asyncio
import os
import signal
import sys

import pytest
from aiokafka import AIOKafkaConsumer

from app.adapters.group_leave import GroupRemover
from app.domain.cluster import GroupSeat
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import until

pytestmark = pytest.mark.broker

# Its session outlives the test: nobody but the remover ends it.
MEMBER = """
import asyncio, sys
from aiokafka import AIOKafkaConsumer
async def main():
    async with AIOKafkaConsumer(sys.argv[1], bootstrap_servers=sys.argv[2], group_id=sys.argv[3], client_id="x-host-7",
                                session_timeout_ms=300_000, heartbeat_interval_ms=50):
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_dead_member_is_found_and_removed_once_and_its_partitions_move(broker: str, new_topic: TopicFactory):
    topic = new_topic(4)
    group = f"{topic}-group"
    remover = GroupRemover(broker, "test")
    remover.know([group])
    warm = asyncio.create_task(remover.keep_warm())
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", MEMBER, topic, broker, group)
    survivor = AIOKafkaConsumer(
        topic, bootstrap_servers=broker, group_id=group, client_id="x-host-8", heartbeat_interval_ms=50
    )
    await survivor.start()
    try:
        await until(lambda: len(survivor.assignment()) == 2, "the two share the partitions")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        (dead,) = await remover.members_of(group, "-host-7")
        assert dead.group == group
        assert await remover.remove(dead)
        await until(lambda: len(survivor.assignment()) == 4, "the survivor has all")
        assert not await remover.remove(dead)
        assert not await remover.remove(GroupSeat(group, "nobody"))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        warm.cancel()
        await asyncio.gather(warm, return_exceptions=True)
        await survivor.stop()
        await remover.close()
