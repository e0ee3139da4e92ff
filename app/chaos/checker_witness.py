"""Reads topics while a run goes on, so that the final read is not the only one: a line for each record that came.

python -m app.chaos.checker_witness --bootstrap 127.0.0.1:9092 --topic workflow.events --file witness.jsonl
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.adapters.consumers import stop_consumer
from app.adapters.records import install
from app.adapters.topic_reader import TopicReader
from app.chaos.checker_cluster import digest
from app.domain.workflow.events import ExecutionEnded
from app.ports import InRecord
from app.workflow_wire import decode_run
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_EVENTS

_POLL_MS = 50
# How long it reads on after it was told to stop; it is killed 6 s after.
_REST_S = 4.0


def line_of(record: InRecord, at_ns: int) -> dict[str, Any]:
    """A record as it was read."""
    ended: tuple[str, ...] = ()
    if record.topic == WORKFLOW_EVENTS.name:
        with suppress(ValueError):  # what cannot be read the checker says
            run = decode_run(record.value)
            ended = (run.execution_id,) if isinstance(run.events[-1], ExecutionEnded) else ()
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "hash": digest(record.key, record.value),
        "at_ns": at_ns,
        "ended": ended,
    }


async def witness(bootstrap: str, topics: Sequence[str], file: BinaryIO, stop: asyncio.Event, every: int = 1) -> None:
    """Follow every partition from its beginning to where it ends at `stop`, whatever becomes of the brokers meanwhile.

    Of `every` records of a partition one is written down, and each that ends an execution.
    """
    install()
    reader = TopicReader(KafkaSettings(bootstrap_servers=bootstrap))
    where = [TopicPartition(topic, number) for topic in topics for number in range(await reader.partitions(topic))]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        client_id="headrace-witness",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=_POLL_MS,
    )
    await consumer.start()
    try:
        consumer.assign(where)
        while not stop.is_set():
            await _write_down(consumer, file, every)
        ends = await consumer.end_offsets(where)
        deadline = time.monotonic() + _REST_S
        while time.monotonic() < deadline and not await _has_read(consumer, ends):
            await _write_down(consumer, file, every)
    finally:
        await stop_consumer(consumer)


async def _write_down(consumer: AIOKafkaConsumer, file: BinaryIO, every: int) -> None:
    with suppress(KafkaError):  # a broker that is away is a part of the run: it is asked again
        for found in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
            at_ns = time.time_ns()
            lines = [line_of(one, at_ns) for one in found]
            kept = [line for line in lines if line["ended"] or line["offset"] % every == 0]
            file.writelines(orjson.dumps(line) + b"\n" for line in kept)
        file.flush()


async def _has_read(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
    return all([await consumer.position(part) >= end for part, end in ends.items()])


async def run(bootstrap: str, topics: Sequence[str], path: Path, every: int) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with path.open("ab") as file:
        await witness(bootstrap, topics, file, stop, every)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options and read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", action="append", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="one of so many records is written down, and each end")
    options = parser.parse_args(arguments)
    asyncio.run(run(options.bootstrap, options.topic, options.file, options.every))
    return 0


if __name__ == "__main__":
    sys.exit(main())
