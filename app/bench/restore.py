"""`bench restore`: time until one partition's tables are open: from the changelog alone, from the disk, kept warm."""

import asyncio
import resource
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from app.adapters.changelog_follower import KafkaChangelogFollower
from app.adapters.changelog_reader import KafkaChangelogReader
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.rocks import RocksFolder, RocksLimits
from app.adapters.topics_admin import delete_topics, ensure_topics
from app.bench.broker import BenchBroker
from app.bench.child import SideFailed
from app.bench.environments import Say
from app.bench.result import Result, Run
from app.bench.series import machine
from app.bench.side import OURS, Progress
from config.kafka import KafkaSettings
from config.topics import changelog
from tables.partition import Changes, SingleTrip, TablePartition
from tables.restore import Opening, Place, Restored, open_partition
from tables.standby import Standbys

ROWS = 1_000_000
ROW_BYTES = 300
WARM_TIMEOUT_S = 300.0
PROMISES = {"cold_s": 30}
ROWS_A_TRANSACTION = 5_000
UNDER_WAY = 4


def now_ms() -> int:
    return int(time.time() * 1000)


async def fill(tables: TablePartition, rows: int, row_bytes: int) -> float:
    """Write every row, some transactions under way at a time; rows a second."""
    began = time.perf_counter()
    settling: set[asyncio.Task[None]] = set()
    for first in range(0, rows, ROWS_A_TRANSACTION):
        value = b"x" * row_bytes
        changes = Changes({b"d%09d" % key: value for key in range(first, min(rows, first + ROWS_A_TRANSACTION))})
        written = tables.write(changes, "input", first, timestamp_ms=now_ms())
        settling.add(asyncio.create_task(tables.settle(written, timestamp_ms=now_ms())))
        if len(settling) >= UNDER_WAY:
            done, settling = await asyncio.wait(settling, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    await asyncio.gather(*settling)
    return rows / (time.perf_counter() - began)


async def bench_restore(broker: BenchBroker, rows: int, runs: int, say: Say, progress: Progress) -> Result:
    """Fill, close, and open again: the same folder, an empty one, and one that a standby has kept warm."""
    done: list[Run] = []
    for number in range(runs):
        progress("restoring", number, runs)
        value = await _once(broker, rows)
        done.append(Run(number, OURS, value, {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}))
        say(f"run {number + 1}/{runs}: " + ", ".join(f"{name} {figure:g}" for name, figure in value.items()))
    values = [run.value for run in done if isinstance(run.value, dict)]
    ours = {name: median(value[name] for value in values) for name in values[0]}
    settings = {
        **machine(),
        "rows": rows,
        "row_bytes": ROW_BYTES,
        "measured": "one partition, from the claim on the changelog to the first transaction that counts",
        "promises": PROMISES,
        **await broker.facts(),
    }
    return Result("restore", "s", ours, {}, settings, tuple(done))


async def _once(broker: BenchBroker, rows: int) -> dict[str, float]:
    bootstrap = broker.bootstrap_servers
    spec = changelog(f"bench-{uuid.uuid4().hex[:8]}")
    folder, reader = RocksFolder(RocksLimits()), KafkaChangelogReader(bootstrap, spare=1)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-tables-") as where:

        def place(name: str) -> Place:
            return Place(Path(where) / name, spec.name, 0)

        async with BatchProducer(ProducerLimits(bootstrap, batch_records=4_000)) as producer:

            async def opened(name: str, warm: Opening | None = None) -> tuple[TablePartition, Restored]:
                return await open_partition(
                    place(name), folder, reader, producer, lambda: True, now_ms, single_trip=SingleTrip(), warm=warm
                )

            await ensure_topics(bootstrap, [spec], KafkaSettings(partitions=1))
            try:
                tables, _ = await opened("first")
                written_a_s = await fill(tables, rows, ROW_BYTES)
                tables.close()
                tables, same = await opened("first")
                tables.close()
                tables, cold = await opened("second")
                count = sum(1 for _ in tables.range(b"", b"\xff"))
                tables.close()
                warm = await _warm_restore(
                    bootstrap, spec.name, place("third"), folder, lambda one: opened("third", one)
                )
            finally:
                await reader.close()
                await delete_topics(bootstrap, [spec.name])
    if count != rows:
        raise SideFailed(f"{rows:,} rows were written and {count:,} restored")
    return {
        "cold_s": round(cold.seconds, 3),
        "same_folder_s": round(same.seconds, 3),
        "warm_s": round(warm.seconds, 3),
        "cold_rows_per_s": round(cold.records / cold.seconds),
        "write_rows_per_s": round(written_a_s),
    }


async def _warm_restore(
    bootstrap: str,
    topic: str,
    place: Place,
    folder: RocksFolder,
    opened: Callable[[Opening | None], Awaitable[tuple[TablePartition, Restored]]],
) -> Restored:
    """Follow until nothing is behind, then take over."""
    async with KafkaChangelogFollower(bootstrap, topic) as follower:
        standbys = Standbys(lambda _: place, folder, follower, now_ms)
        standbys.keep({0})
        following = asyncio.create_task(standbys.run())
        try:
            async with asyncio.timeout(WARM_TIMEOUT_S):
                while standbys.behind(0) != 0:  # noqa: ASYNC110 - the standby tells nobody
                    await asyncio.sleep(0.05)
            tables, restored = await opened(standbys.take(0))
            tables.close()
            return restored
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            standbys.close()
