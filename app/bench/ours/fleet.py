"""Our producer process in the latency benchmark: the real fleet agent, open loop, with the real producer.

Every record's latency runs from the instant at which its reading was due to its acknowledgement, so a
stall counts against all the readings that fell due in it (no coordinated omission).
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from agents.generate import fleet_of, generate, limits_of
from agents.ledger import Books
from app import metrics
from app.adapters import collector
from app.adapters.clock import SystemClock
from app.adapters.producer import BatchProducer, ProducerLimits
from app.bench.statistics import weighted_latency, weighted_mean
from config.device import DeviceSettings


class Recorder(metrics.WeightedHistogram):
    """The send-duration metric, which keeps every value besides: buckets would round the percentiles."""

    def __init__(self) -> None:
        super().__init__("bench_send", "Latency.", metrics.LATENCY_BUCKETS_S, CollectorRegistry())
        self.values: list[tuple[float, int]] = []

    def observe_many(self, value: float, count: int) -> None:
        super().observe_many(value, count)
        self.values.append((value * 1000, count))


class Apart:
    """The producer, with truth and metadata on the run's own topic: no topic of a real fleet is written to.

    `stop` is set `seconds` after the first reading fell due, however long the fleet took to warm up.
    """

    def __init__(self, producer: BatchProducer, spec: dict[str, Any], stop: asyncio.Event) -> None:
        self._producer = producer
        self._telemetry = spec["topic"]
        self._facts = spec["facts"]
        self._seconds = spec["seconds"]
        self._stop = stop
        self._begun = False

    def _name(self, topic: str) -> str:
        return topic if topic == self._telemetry else self._facts

    async def partitions(self, topic: str) -> int:
        return await self._producer.partitions(self._name(topic))

    def send_nowait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        intended_ms: float | None = None,
    ) -> bool:
        if not self._begun:
            self._begin(intended_ms)
        return self._producer.send_nowait(self._name(topic), key, value, timestamp_ms, partition, headers, intended_ms)

    def _begin(self, intended_ms: float | None) -> None:
        if intended_ms is not None:
            self._begun = True
            past_s = time.time() - intended_ms / 1000
            asyncio.get_running_loop().call_later(self._seconds - past_s, self._stop.set)


async def _hold(spec: dict[str, Any]) -> BatchProducer | None:
    """A second producer that keeps `buffered_records` waiting, as many as a stalled broker would leave behind."""
    count = spec.get("buffered_records", 0)
    if not count:
        return None
    hour_ms = 3_600_000
    limits = ProducerLimits(
        bootstrap_servers=spec["bootstrap"],
        flush_interval_ms=hour_ms,
        batch_records=count + 1,
        buffer_records=count + 1,
    )
    producer = BatchProducer(limits)
    await producer.start()
    await producer.partitions(spec["facts"])
    for index in range(count):
        # Bytes of their own for each record, of the size of a sample of the fleet.
        value = (b"%08d" % index) * 64
        assert producer.send_nowait(spec["facts"], b"held-%04d" % (index % 1000), value, 0, None, ())
    return producer


async def run(spec: dict[str, Any]) -> None:
    collector.widen()
    recorder = Recorder()
    metrics.SEND_DURATION = recorder
    settings = DeviceSettings(**spec["device"])
    books = Books(spec["topic"])
    stop = asyncio.Event()
    limits = ProducerLimits(bootstrap_servers=spec["bootstrap"], **spec["producer"])
    async with BatchProducer(limits, books.delivered) as producer:
        sender = Apart(producer, spec, stop)
        fleet = fleet_of(settings)
        held = await _hold(spec)
        collector.freeze()
        print(json.dumps({"event": "ready"}), flush=True)
        await generate(fleet, sender, SystemClock(), books, lambda: limits_of(settings), stop)
        await producer.flush()
    if held is not None:
        await held.stop()
    ledger = books.ledger
    result = {
        "event": "result",
        "latency_ms": weighted_latency(recorder.values).as_dict(),
        "mean_ms": weighted_mean(recorder.values),
        "generated": ledger.generated,
        "acknowledged": ledger.acknowledged,
        "dropped": dict(ledger.dropped),
        "balances": books.balances(0),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    uvloop.run(run(json.loads(Path(sys.argv[-1]).read_text())))
