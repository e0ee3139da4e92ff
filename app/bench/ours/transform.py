"""Our map-and-forward: a Faust agent on the batch-native transport, its outputs sent in batches.

A batch is done in this order: (1) convert, (2) outputs acknowledged by the broker, (3) range
acknowledged to the transport, which then commits its offset. Up to `BATCHES_UNDER_WAY` batches are between (1)
and (3) at a time; the transport commits only the longest acknowledged prefix of a partition.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import mode.loop

mode.loop.use("uvloop")

import orjson  # noqa: E402 - the event loop is chosen first

from app.adapters import collector  # noqa: E402 - the event loop is chosen first
from app.adapters.faust_app import App, crashed, new_app, running  # noqa: E402
from app.adapters.producer import BatchProducer, ProducerLimits  # noqa: E402
from app.adapters.transport import RecordBatch  # noqa: E402
from app.ports import OutRecord  # noqa: E402

BATCHES_UNDER_WAY = 8


def converted(value: bytes) -> bytes:
    """One sample's work: parse, °C to °F in the first metric, add the site, write."""
    sample = orjson.loads(value)
    metric = sample["metrics"][0]
    metric["value"] = metric["value"] * 1.8 + 32
    metric["unit"] = "FAH"
    sample["site"] = "north"
    return orjson.dumps(sample)


def build(spec: dict[str, Any], producer: BatchProducer) -> App:
    app = new_app(spec["group"], spec["bootstrap"])
    output = spec["output"]

    def outputs(batch: RecordBatch) -> list[OutRecord]:
        # The key is the input's, so the partition is too: both topics have as many.
        number = batch.partition
        make = tuple.__new__  # half the cost of OutRecord(...)
        return [
            make(OutRecord, (output, r.key, converted(r.value or b""), r.timestamp, (), number, None))
            for r in batch.records
        ]

    async def deliver(event: Any, records: list[OutRecord], slots: asyncio.Semaphore) -> None:
        await producer.publish(records)
        event.ack()
        slots.release()

    async def forward(stream: Any) -> None:
        slots = asyncio.Semaphore(BATCHES_UNDER_WAY)
        # A failed output ends the group, the agent and the app: nothing it held was acknowledged.
        async with asyncio.TaskGroup() as group:
            async for event in stream.noack().events():
                await slots.acquire()
                group.create_task(deliver(event, outputs(event.value), slots))

    app.add_agent("forward", spec["input"], forward)
    return app


async def run(spec: dict[str, Any]) -> None:
    collector.widen()  # as every process of the service does
    limits = ProducerLimits(spec["bootstrap"], batch_records=4_000, buffer_records=200_000)
    async with BatchProducer(limits) as producer:
        await producer.partitions(spec["output"])
        async with running(build(spec, producer)) as app:
            print(json.dumps({"event": "ready"}), flush=True)
            raise await crashed(app)


if __name__ == "__main__":
    asyncio.run(run(json.loads(Path(sys.argv[-1]).read_text())))
