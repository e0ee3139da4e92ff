"""`bench broker-loss`: SIGKILL of a broker of three under load, by turns the leader of a partition and the controller.

Three nodes that are broker and controller each, as in the fault suite, with times tuned for quick notice (`TUNED`);
one engine. What is counted is what a reader of the histories sees (`app/bench/ends.py`).
"""

import asyncio
import random
import time
from itertools import cycle, islice
from statistics import median
from typing import Final

from app.adapters.embedded import EmbeddedKafka
from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.ends import gap_ms
from app.bench.failover import QUIET_S, all_ended, loaded, watched
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress
from config.topics import WORKFLOW_COMMANDS

RATE: Final = 100
KILLS: Final = 20
BROKERS: Final = 3
VICTIMS: Final = ("leader", "controller")
AFTER_MS: Final = 6_000
LED_WITHIN_S: Final = 90.0
TUNED: Final = {
    # A broker not heard of for this long loses its partitions; 9 s and 2 s by default.
    "broker.session.timeout.ms": "600",
    "broker.heartbeat.interval.ms": "150",
    # A follower asks a leader that does not lead yet again after this long; 1 s by default, in which nothing that
    # waits for all replicas is acknowledged.
    "replica.fetch.backoff.ms": "50",
    # A controller not heard of for this long is replaced; 2, 2 and 1 s by default.
    "controller.quorum.fetch.timeout.ms": "600",
    "controller.quorum.request.timeout.ms": "600",
    "controller.quorum.election.timeout.ms": "300",
    # Leadership goes back to a broker that is in sync again after this long, between two kills; 300 s by default.
    "leader.imbalance.check.interval.seconds": "5",
}
PROMISES: Final = {"leader_max_ms": 1_500, "controller_max_ms": 3_000}


async def bench_broker_loss(broker: BenchBroker, kills: int, progress: Progress, rate: int = RATE) -> Result:
    """Kill a broker `kills` times under `rate` executions a second; the gaps between ends as a reader sees them.

    Raises `SideFailed` when the brokers are not three of its own.
    """
    kafka = broker.kafka
    if kafka is None or len(kafka.pids) != BROKERS:
        raise SideFailed(f"it kills brokers, and needs {BROKERS} of its own")
    instants: list[tuple[str, float]] = []
    async with watched(broker) as (engine, seen):
        async with loaded(engine, rate) as sent:
            await asyncio.sleep(QUIET_S)
            for number, victim in enumerate(islice(cycle(VICTIMS), kills)):
                progress("killing", number, kills)
                await asyncio.sleep(QUIET_S * random.uniform(0.5, 1.5))
                node = await _victim(kafka, victim)
                instants.append((victim, time.time() * 1000))
                kafka.kill(node)
                await asyncio.sleep(AFTER_MS / 1000)
                await kafka.start_node(node)
                await _until_all_lead(kafka)
            await asyncio.sleep(QUIET_S)
        ends = await all_ended(engine, sent, seen)
    gaps = [(victim, gap_ms(seen, instant, instant + AFTER_MS)) for victim, instant in instants]
    value: dict[str, float] = {}
    for victim in VICTIMS:
        if found := [gap for name, gap in gaps if name == victim]:
            value |= {f"{victim}_p50_ms": median(found), f"{victim}_max_ms": max(found)}
    about = {
        **machine(),
        "brokers": BROKERS,
        "kills": kills,
        "rate": rate,
        "executions": len(ends.ended),
        "starts": sent.as_dict(),
        "availability": sent.availability(ends),
        "ends_sent_again": ends.sent_again,
        "broker_settings": TUNED,
        "gap": "the longest time between two ends that a reader sees on any one partition, the kill included",
        "leader": "leads a partition of the commands, and is not the active controller",
        "controller": "the active controller, which leads partitions as well",
        "promises": PROMISES,
        "durability": {OURS: "acks all, replication 3, min.insync.replicas 2, fsync left to the operating system"},
    }
    runs = tuple(Run(number, OURS, {f"{victim}_gap_ms": gap}) for number, (victim, gap) in enumerate(gaps))
    return Result("broker-loss", "ms", value, {}, about, runs)


async def _victim(kafka: EmbeddedKafka, which: str) -> int:
    """The node to kill. Raises `SideFailed` when there is none of that kind."""
    controller = kafka.controller()
    if which == "controller":
        if controller not in kafka.pids:
            raise SideFailed("no broker says that it is the active controller")
        return controller
    leaders = {await kafka.leader(WORKFLOW_COMMANDS.name, number) for number in range(BROKERS)}
    if others := sorted(leaders & set(kafka.pids) - {controller}):
        return random.choice(others)
    raise SideFailed(f"no {which} to kill: the controller is {controller}, partitions are led by {sorted(leaders)}")


async def _until_all_lead(kafka: EmbeddedKafka) -> None:
    """Until each broker leads a partition again, as Kafka gives leadership back to one that is in sync once more."""
    deadline = time.monotonic() + LED_WITHIN_S
    while {await kafka.leader(WORKFLOW_COMMANDS.name, number) for number in range(BROKERS)} != set(kafka.pids):
        if time.monotonic() > deadline:
            raise SideFailed(f"a broker that was killed leads nothing {LED_WITHIN_S:.0f} s after it came back")
        await asyncio.sleep(0.5)
