"""Time to restore one partition's tables: from the changelog alone, and with the folder still there.

    python -m app.bench.restore [--rows 1000000] [--row-bytes 300] [--updates 1] [--bootstrap HOST:PORT]

Without a broker an embedded one is started. The figures are those of one run.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from app.adapters.changelog_reader import KafkaChangelogReader
from app.adapters.embedded import EmbeddedKafka
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.rocks import RocksFolder, RocksLimits
from app.adapters.topics_admin import delete_topics, ensure_topics
from config.embedded import EmbeddedSettings
from config.topics import changelog
from tables.partition import Changes, TablePartition
from tables.restore import Place, Restored, open_partition

ROWS_A_TRANSACTION = 5_000
UNDER_WAY = 4


@contextlib.asynccontextmanager
async def broker_of(bootstrap: str) -> AsyncIterator[str]:
    """The given broker, or one of its own that leaves nothing behind."""
    if bootstrap:
        yield bootstrap
        return
    with tempfile.TemporaryDirectory(prefix="headrace-bench-kafka-") as folder:
        async with EmbeddedKafka(EmbeddedSettings(port=0, data_dir=folder)) as kafka:
            yield kafka.bootstrap


def now_ms() -> int:
    return int(time.time() * 1000)


async def fill(tables: TablePartition, rows: int, row_bytes: int, updates: int) -> float:
    """Write every row `updates` times, some transactions under way at a time; rows a second."""
    began = time.perf_counter()
    settling: set[asyncio.Task[None]] = set()
    for update in range(updates):
        for first in range(0, rows, ROWS_A_TRANSACTION):
            value = b"%08d" % update + b"x" * (row_bytes - 8)
            changes = Changes({b"d%09d" % key: value for key in range(first, min(rows, first + ROWS_A_TRANSACTION))})
            written = tables.write(changes, "input", update * rows + first, timestamp_ms=now_ms())
            settling.add(asyncio.create_task(tables.settle(written, timestamp_ms=now_ms())))
            if len(settling) >= UNDER_WAY:
                done, settling = await asyncio.wait(settling, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
    await asyncio.gather(*settling)
    return rows * updates / (time.perf_counter() - began)


async def measure(bootstrap: str, rows: int, row_bytes: int, updates: int) -> dict[str, Any]:
    """Fill, close, and open again: the same folder, then an empty one."""
    stage = f"bench-{uuid.uuid4().hex[:8]}"
    spec = changelog(stage)
    folder, reader = RocksFolder(RocksLimits()), KafkaChangelogReader(bootstrap)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-tables-") as where:
        async with BatchProducer(ProducerLimits(bootstrap, batch_records=4_000)) as producer:

            async def opened(name: str) -> tuple[TablePartition, Restored]:
                place = Place(Path(where) / name, spec.name, 0)
                return await open_partition(place, folder, reader, producer, lambda: True, now_ms)

            await ensure_topics(bootstrap, [spec])
            try:
                tables, _ = await opened("first")
                written_a_s = await fill(tables, rows, row_bytes, updates)
                tables.close()
                tables, same = await opened("first")
                tables.close()
                tables, other = await opened("second")
                count = sum(1 for _ in tables.range(b"", b"\xff"))
                tables.close()
            finally:
                await delete_topics(bootstrap, [spec.name])
    assert count == rows, "a restore that misses rows is no figure"
    return {
        "rows": rows,
        "row_bytes": row_bytes,
        "updates": updates,
        "write_rows_per_s": round(written_a_s),
        "same_folder_s": round(same.seconds, 3),
        "from_changelog_s": round(other.seconds, 3),
        "from_changelog_records_per_s": round(other.records / other.seconds),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


async def run(options: argparse.Namespace) -> None:
    async with broker_of(options.bootstrap) as bootstrap:
        print(json.dumps(await measure(bootstrap, options.rows, options.row_bytes, options.updates), indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options, measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--row-bytes", type=int, default=300)
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--bootstrap", default="")
    asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
