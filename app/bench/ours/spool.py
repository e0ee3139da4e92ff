"""Our spool in its benchmark: filled by one process as fast as the disk takes it, sent by its successor."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop

from agents.ledger import Books
from agents.spooling import Spooler, SpoolingLimits
from app.adapters import collector
from app.adapters.clock import SystemClock
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.producer_back import Retractable
from app.adapters.spool import Spool, SpoolRules
from app.bench.payload import Plan, Record, samples
from app.codec import as_historical
from app.domain.spool import Kept, SpoolLimits

BATCH_RECORDS = 1_000
LOOK_S = 0.02


def opened(spec: dict[str, Any], books: Books) -> Spool:
    """The spool with the limits of the settings, but for room for all of it."""
    limits = SpoolLimits(1 << 40, 365 * 86_400_000, spec["segment_bytes"])
    rules = SpoolRules(limits, spec["fsync_interval_ms"])
    return Spool(Path(spec["folder"]), lambda: rules, SystemClock(), books.lost_from_spool)


def batches(source: Iterator[Record]) -> Iterator[list[Kept]]:
    """Batches of samples as the fleet's are kept."""
    while part := [Kept(key, as_historical(value), at_ms) for key, value, at_ms in islice(source, BATCH_RECORDS)]:
        yield part


async def fill(spec: dict[str, Any]) -> dict[str, Any]:
    """Write every sample, none of which is made before the clock starts."""
    spool = opened(spec, Books(spec["topic"]))
    await spool.open()
    began = time.perf_counter()
    for batch in batches(samples(Plan(spec["records"], spec["start_ms"]))):
        await spool.write(batch)
    filled_s, size = time.perf_counter() - began, spool.bytes
    await spool.close()
    return {"fill_s": filled_s, "spool_bytes": size}


async def send(spec: dict[str, Any]) -> dict[str, Any]:
    """Find what is there and send it, to the last acknowledgement."""
    books = Books(spec["topic"])
    limits = SpoolingLimits(2_000, 50, BATCH_RECORDS, spec["producer"]["buffer_records"], 0)
    async with BatchProducer(ProducerLimits(spec["bootstrap"], **spec["producer"]), books.delivered) as producer:
        await producer.partitions(spec["topic"])
        way = Retractable(producer, spec["topic"])
        spooler = Spooler(way, opened(spec, books), books, lambda: limits, SystemClock())
        began = time.perf_counter()
        await spooler.start()
        found_s = time.perf_counter() - began
        while books.ledger.acknowledged < books.ledger.recovered - sum(books.ledger.dropped.values()):
            await asyncio.sleep(LOOK_S)
            print(json.dumps({"event": "progress", "done": books.ledger.acknowledged}), flush=True)
        sent_s = time.perf_counter() - began
        await spooler.finish()
    ledger = books.ledger
    return {
        "found_s": found_s,
        "send_s": sent_s,
        "recovered": ledger.recovered,
        "acknowledged": ledger.acknowledged,
        "dropped": dict(ledger.dropped),
        "balances": books.balances(0) and ledger.in_flight == 0,
    }


async def run(spec: dict[str, Any]) -> None:
    collector.widen()  # as every process of the service does
    found = await (fill if spec["do"] == "fill" else send)(spec)
    print(json.dumps({"event": "result", **found}), flush=True)


if __name__ == "__main__":
    uvloop.run(run(json.loads(Path(sys.argv[-1]).read_text())))
