"""A process under test that applies the summing model's inputs to tables, and stops where it is told.

`python -m tests.helpers.table_worker BOOTSTRAP FOLDER CHANGELOG OUTPUT INPUTS PAUSE_AFTER STAGE [TRIPS]`: after
PAUSE_AFTER inputs it stops at STAGE of the next transaction (write, outputs, marker), says `paused` and waits
to be killed. STAGE `none` goes on to INPUTS and says `done`. TRIPS 1: it settles in one trip; the stage
`undelivered` then stops when the changelog has all of the transaction and its outputs are nowhere.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from app.adapters.changelog_reader import KafkaChangelogReader
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.rocks import RocksFolder, RocksLimits
from app.ports import OutRecord
from tables.changelog import MARKER
from tables.partition import SingleTrip, TablePartition
from tables.restore import Place, Restored, open_partition
from tests.helpers.tables import INPUT, apply_inputs

AT_ONCE = 3


class PausingProducer(BatchProducer):
    """A producer that stops before the outputs, or before the marker, once it is armed."""

    stage = ""

    async def publish(self, records: Sequence[OutRecord]) -> None:
        marks = any(record.key == MARKER for record in records)
        if self.stage == "undelivered" and marks:
            changelog = next(record.topic for record in records if record.key == MARKER)
            await super().publish([record for record in records if record.topic == changelog])
            await paused()
        if (self.stage == "outputs" and not marks) or (self.stage == "marker" and marks):
            await paused()
        await super().publish(records)
        if self.stage == "acknowledged" and marks:
            await paused()


async def paused() -> None:
    print("paused", flush=True)
    await asyncio.Event().wait()


def now_ms() -> int:
    return int(time.time() * 1000)


async def opened(
    bootstrap: str,
    folder: Path,
    changelog: str,
    producer: BatchProducer,
    limits: RocksLimits | None = None,
    single_trip: SingleTrip | None = None,
) -> tuple[TablePartition, Restored]:
    place = Place(folder, changelog, 0)
    reader = KafkaChangelogReader(bootstrap)
    rocks = RocksFolder(limits or RocksLimits())
    return await open_partition(place, rocks, reader, producer, lambda: True, now_ms, single_trip=single_trip)


async def apply(tables: TablePartition, output: str, upto: int) -> None:
    """Apply inputs one transaction after the other until `upto` are applied."""
    while (first := tables.applied.get(INPUT, -1) + 1) < upto:
        count = min(AT_ONCE, upto - first)
        changes = apply_inputs(tables, count)
        changes.outputs = [record._replace(topic=output) for record in changes.outputs]
        written = tables.write(changes, INPUT, first + count - 1, timestamp_ms=now_ms())
        await tables.settle(written, timestamp_ms=now_ms())
        await tables.deliver(timestamp_ms=now_ms())


async def work(
    bootstrap: str, folder: str, changelog: str, output: str, inputs: str, after: str, stage: str, trips: str = "2"
) -> None:
    single_trip = SingleTrip() if trips == "1" else None
    async with PausingProducer(ProducerLimits(bootstrap)) as producer:
        tables, _ = await opened(bootstrap, Path(folder), changelog, producer, single_trip=single_trip)
        await apply(tables, output, int(after))
        producer.stage = stage
        await apply(tables, output, int(inputs))
        tables.close()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
