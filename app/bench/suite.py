"""The benchmarks by name, the broker they share, and how much each measures by default."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from app.adapters.embedded import EmbeddedKafka
from app.bench.broker import BenchBroker
from app.bench.broker_loss import BROKERS, TUNED, bench_broker_loss
from app.bench.broker_loss import KILLS as BROKER_KILLS
from app.bench.capacity import SECONDS as CAPACITY_SECONDS
from app.bench.capacity import bench_capacity
from app.bench.environments import Say
from app.bench.executions import FINISHED, bench_executions
from app.bench.failover import KILLS, NAMES, Signal, bench_failover
from app.bench.processing import bench_rollup, bench_transform
from app.bench.producing import bench_batch_vs_single, bench_producer
from app.bench.restore import ROWS as RESTORE_ROWS
from app.bench.restore import bench_restore
from app.bench.result import Result
from app.bench.send_latency import SECONDS, bench_send_latency
from app.bench.side import Effort, Progress
from app.bench.spool import RATE as SPOOL_RATE
from app.bench.spool import SECONDS as SPOOL_SECONDS
from app.bench.spool import bench_spool
from app.bench.timers import SECONDS as TIMER_SECONDS
from app.bench.timers import bench_timers
from app.bench.trigger import SECONDS as TRIGGER_SECONDS
from app.bench.trigger import bench_trigger
from app.bench.workflow import bench_workflow
from config.embedded import EmbeddedSettings

Bench = Callable[[BenchBroker, Effort, Say, Progress], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One benchmark; `records` of the open loops are their seconds times 10,000, of `trigger` and `timers` seconds.

    What takes long is not part of `bench all`. `brokers` and `broker_settings` are of those that are its own.
    """

    name: str
    about: str
    run: Bench
    records: int
    runs: int = 3
    is_long: bool = False
    brokers: int = 1
    broker_settings: Mapping[str, str] = field(default_factory=dict)


async def _producer(broker: BenchBroker, effort: Effort, say: Say, _: Progress) -> Result:
    return await bench_producer(broker, effort, say)


async def _batch_vs_single(broker: BenchBroker, effort: Effort, say: Say, _: Progress) -> Result:
    return await bench_batch_vs_single(broker, effort, say)


async def _send_latency(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    seconds = max(1, effort.records // 10_000)
    return await bench_send_latency(broker, effort.runs, seconds, say, progress)


async def _capacity(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    return await bench_capacity(broker, max(1, effort.records // 10_000), say, progress)


async def _trigger(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    return await bench_trigger(broker, effort.records, say, progress)


async def _timers(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    return await bench_timers(broker, effort.runs, effort.records, say, progress)


async def _executions(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    return await bench_executions(broker, effort.records, say, progress)


async def _spool(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    return await bench_spool(broker, effort.runs, effort.records, say, progress)


def _failover(hurt: Signal) -> Bench:
    plot = Path("bench-results") / f"{NAMES[hurt]}.png"

    async def run(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
        return await bench_failover(broker, effort.records, say, progress, plot=plot, hurt=hurt, every_s=effort.every_s)

    return run


async def _broker_loss(broker: BenchBroker, effort: Effort, _: Say, progress: Progress) -> Result:
    return await bench_broker_loss(broker, effort.records, progress)


async def _restore(broker: BenchBroker, effort: Effort, say: Say, progress: Progress) -> Result:
    return await bench_restore(broker, effort.records, effort.runs, say, progress)


SUITE: tuple[Entry, ...] = (
    Entry("producer", "Records sent and acknowledged a second.", _producer, 1_000_000),
    Entry(
        "batch-vs-single", "Batches of a thousand beside one awaited send after the other.", _batch_vs_single, 500_000
    ),
    Entry("transform", "Map-and-forward: parse, convert, write on.", bench_transform, 1_000_000),
    Entry("rollup", "Tumbling windows with durable state.", bench_rollup, 1_000_000),
    Entry("send-latency", "10,000 messages/s, open loop, to acknowledgement.", _send_latency, SECONDS * 10_000, 1),
    Entry("capacity", "Memory and CPU of the producer at several loads.", _capacity, CAPACITY_SECONDS * 10_000, 1),
    Entry("spool", "Ten minutes of readings on disk, sent to the broker.", _spool, SPOOL_RATE * SPOOL_SECONDS, 1),
    Entry("workflow", "Three durable steps: executions a second, and one at a time.", bench_workflow, 20_000),
    Entry(
        "trigger", "HTTP starts at several rates, open loop, and the most there can be.", _trigger, TRIGGER_SECONDS, 1
    ),
    Entry("timers", "A thousand durable timers due each second: how late they fire.", _timers, TIMER_SECONDS, 1),
    Entry("restore", "A million rows opened: cold, from disk, kept warm.", _restore, RESTORE_ROWS, 1),
    Entry(
        "failover",
        "SIGKILL of an engine under load: how long nothing ends.",
        _failover("SIGKILL"),
        KILLS,
        1,
        is_long=True,
    ),
    Entry("failover-stop", "SIGSTOP of an engine instead.", _failover("SIGSTOP"), KILLS, 1, is_long=True),
    Entry("failover-restart", "Engines restarted in order instead.", _failover("SIGTERM"), KILLS, 1, is_long=True),
    Entry(
        "broker-loss",
        "SIGKILL of one broker of three under load.",
        _broker_loss,
        BROKER_KILLS,
        1,
        is_long=True,
        brokers=BROKERS,
        broker_settings=TUNED,
    ),
    Entry(
        "executions", "A million finished, 100,000 waiting: weight and reads.", _executions, FINISHED, 1, is_long=True
    ),
)


@contextlib.asynccontextmanager
async def broker_for(
    bootstrap_servers: str, say: Say, brokers: int = 1, broker_settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[BenchBroker]:
    """The broker of a run: the given one, or embedded ones of its own that leave nothing behind."""
    if bootstrap_servers:
        async with BenchBroker(bootstrap_servers) as broker:
            yield broker
        return
    with tempfile.TemporaryDirectory(prefix="headrace-bench-kafka-") as folder:
        say("starting a broker of its own" if brokers == 1 else f"starting {brokers} brokers of its own")
        settings = EmbeddedSettings(port=0, data_dir=str(Path(folder) / "kafka"))
        # Deleted topics leave the disk at once: a run writes a few hundred megabytes a side.
        overrides = {"log.segment.delete.delay.ms": "1000", **broker_settings}
        async with (
            EmbeddedKafka(settings, nodes=brokers, overrides=overrides) as kafka,
            BenchBroker(kafka.bootstrap, kafka) as broker,
        ):
            yield broker
