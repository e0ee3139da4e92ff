"""Faults of what comes in: poison, too much at once, and groups that are never left in peace."""

import asyncio
import time
from typing import Final

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from app.adapters.topic_reader import TopicReader
from app.chaos import poison
from app.chaos.scene import Entry, NoVictim, Scene, Struck
from app.chaos.schedule import Kind, Planned
from app.chaos.workflows import POISON
from app.errors import HeadraceError
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER

OVERLOAD: Final = 3.0
# Times the usual rate that must have been sent at least. An open loop sends 1.0 when nothing is asked of it.
CLEARLY: Final = 1.5
REBALANCE_EVERY_S: Final = 2.0
GROUPS: Final = ("headrace-workflow", "headrace-tasks-far", "headrace-transform")
LETTERS_WAIT_S: Final = 60.0
POISONED: Final = 3
SEND_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.5


async def overload(scene: Scene, planned: Planned) -> Struck:
    """Three times the load: clearly more than usual was sent for the first time, and some of it was acknowledged."""
    tally = scene.driver.tally
    before, accepted, began = tally.asked - tally.again, len(tally.accepted), time.monotonic()
    scene.driver.factor *= OVERLOAD
    try:
        await asyncio.sleep(planned.length_s)
    finally:
        scene.driver.factor /= OVERLOAD
    seconds = time.monotonic() - began
    sent = (tally.asked - tally.again - before) / seconds
    acknowledged = (len(tally.accepted) - accepted) / seconds
    proof = {"sent_per_s": round(sent, 1), "acknowledged_per_s": round(acknowledged, 1), "usual": scene.driver.rate}
    return Struck("the API", proof if sent >= CLEARLY * scene.driver.rate and acknowledged else {})


async def rebalance(scene: Scene, planned: Planned) -> Struck:
    """Every two seconds a healthy member is taken out of each group, and must come back."""
    from app.adapters.group_leave import GroupRemover  # noqa: PLC0415 - the way of the product, only here

    remover = GroupRemover(scene.rig.bootstrap, "chaos-rebalance")
    ends_s = time.monotonic() + planned.length_s
    removed = turn = 0
    try:
        while time.monotonic() < ends_s:
            for group in GROUPS:
                try:
                    members = await remover.members_of(group, "")
                    if members:
                        removed += await remover.remove(members[turn % len(members)])
                except (KafkaError, OSError, TimeoutError):
                    continue  # the broker that leads this group is another fault's victim now
            turn += 1
            await asyncio.sleep(REBALANCE_EVERY_S)
    finally:
        await remover.close()
    return Struck("members of groups", {"removed": removed, "turns": turn} if removed else {})


async def letters(scene: Scene, planned: Planned) -> Struck:
    """Records that cannot be read, on every partition of the commands; each must become a dead letter."""
    reader = TopicReader(KafkaSettings(bootstrap_servers=scene.rig.bootstrap))
    try:
        before = await reader.ends(WORKFLOW_DEADLETTER.name)
        places = await _send(scene)
        ends_s = time.monotonic() + LETTERS_WAIT_S
        while (missing := places - await _lettered(reader, before)) and time.monotonic() < ends_s:  # noqa: ASYNC110 - Kafka does not call
            await asyncio.sleep(_POLL_S)
    except (HeadraceError, KafkaError, OSError, TimeoutError) as error:
        raise NoVictim(planned.kind) from error
    return Struck("the commands", {} if missing else {"records": len(places), "dead_letters": len(places)})


async def _send(scene: Scene) -> set[tuple[int, int]]:
    """Partition and offset of each record."""
    producer = AIOKafkaProducer(bootstrap_servers=scene.rig.bootstrap, acks="all", enable_idempotence=True)
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await producer.start()
        try:
            sent = [
                await producer.send_and_wait(WORKFLOW_COMMANDS.name, value, key, partition=partition)
                for partition in range(scene.rig.shape.partitions)
                for key, value in poison.letters()
            ]
        finally:
            await producer.stop()
    return {(each.partition, each.offset) for each in sent}


async def _lettered(reader: TopicReader, since: dict[int, int]) -> set[tuple[int, int]]:
    """The commands that have become dead letters."""
    end = await reader.ends(WORKFLOW_DEADLETTER.name)
    found = set()
    async for batch in reader.read(WORKFLOW_DEADLETTER.name, since, end):
        for record in batch:
            letter = orjson.loads(record.value or b"{}")
            if letter.get("topic") == WORKFLOW_COMMANDS.name:
                found.add((letter["partition"], letter["offset"]))
    return found


async def crashes(scene: Scene, _: Planned) -> Struck:
    """Executions whose handler ends its process, raises, hangs and aborts before it ends well."""
    refused = scene.driver.tally.failed
    answered = await scene.driver.start_now(POISON, POISONED)
    # Whose starts were refused meanwhile is not told: only what is surely accepted counts.
    count = answered - (scene.driver.tally.failed - refused)
    return Struck("task processes", {"executions": count} if count > 0 else {})


FAULTS: Final = (
    Entry(Kind("overload", (10.0, 20.0)), overload),
    Entry(Kind("rebalance", (6.0, 20.0)), rebalance),
    Entry(Kind("poison-records"), letters),
    Entry(Kind("poison-tasks"), crashes),
)
