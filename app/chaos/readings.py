"""The load of telemetry: samples by the product's own producer, with a seq for each device and nothing taken for sent.

What is about to be sent is written to readings.jsonl first, what came of it to acks.jsonl; books.jsonl gets the last
word. One instant of all devices is one call of the producer.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from app.adapters.producer import BatchProducer, ProducerLimits
from app.chaos.oplog import OpLog, Outcome
from app.codec import encode_sample
from app.domain.reading import GOOD, Reading, Sample
from app.errors import HeadraceError
from app.ports import OutRecord
from config.topics import DEVICE_TELEMETRY

# Instants on their way at once; beyond it an instant is not generated at all.
INSTANTS_MAX: Final = 2_000
STOP_TIMEOUT_S: Final = 60.0
_PERIOD_S: Final = 60.0


@dataclass(slots=True)
class Sent:
    """What has become of the samples so far."""

    generated: int = 0
    acknowledged: int = 0
    unknown: int = 0
    left_out: int = 0
    readings: int = 0

    def as_dict(self) -> dict[str, int]:
        return {
            "samples": self.generated,
            "acknowledged": self.acknowledged,
            "unknown": self.unknown,
            "left_out": self.left_out,
            "readings": self.readings,
        }


class Readings:
    """`devices` with `metrics` each, one sample every `interval_s`."""

    def __init__(self, bootstrap: str, folder: Path, devices: int, metrics: int, interval_s: float) -> None:
        self.sent = Sent()
        self._limits = ProducerLimits(bootstrap, client_id="chaos-readings", flush_interval_ms=20.0)
        self._folder = folder
        self._devices = [f"chaos-{number:04}" for number in range(devices)]
        self._metrics = [f"metric-{number}" for number in range(metrics)]
        self._interval_s = interval_s
        self._session = time.time_ns() // 1_000_000
        self._seq = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is under way is waited for, and the books are closed."""
        loop = asyncio.get_running_loop()
        async with (
            OpLog(self._folder / "readings.jsonl", "readings") as intents,
            OpLog(self._folder / "acks.jsonl", "readings") as acks,
        ):
            producer = BatchProducer(self._limits)
            await producer.start()
            try:
                await producer.partitions(DEVICE_TELEMETRY.name)
                due_s = loop.time()
                while not stop.is_set():
                    if due_s <= loop.time():
                        self._begin(producer, intents, acks)
                        due_s += self._interval_s
                    await asyncio.sleep(max(0.001, due_s - loop.time()))
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=STOP_TIMEOUT_S)
            finally:
                await producer.stop(STOP_TIMEOUT_S)
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self._close_books()

    def _begin(self, producer: BatchProducer, intents: OpLog, acks: OpLog) -> None:
        if len(self._tasks) >= INSTANTS_MAX:
            self.sent.left_out += len(self._devices)
            return
        self._seq += 1
        task = asyncio.create_task(self._send(producer, intents, acks, self._seq))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, producer: BatchProducer, intents: OpLog, acks: OpLog, seq: int) -> None:
        """One instant: the intent is on the disk, then the samples go out, then it is known what came of them."""
        records = self._records(seq, time.time_ns() // 1_000_000)
        (op,) = await intents.intend([{"devices": len(records), "session": self._session, "seq": seq}])
        self.sent.generated += len(records)
        try:
            await producer.publish(records)
        except HeadraceError:
            outcome: Outcome = "info"
            self.sent.unknown += len(records)
        else:
            outcome = "ok"
            self.sent.acknowledged += len(records)
            self.sent.readings += len(records) * len(self._metrics)
        for device in self._devices:
            ack = {"device": device, "session": self._session, "first": seq, "last": seq, "outcome": outcome}
            acks.outcome(op, outcome, ack)

    def _records(self, seq: int, now_ms: int) -> Sequence[OutRecord]:
        wave = math.sin(now_ms / 1000 / _PERIOD_S * math.tau)
        records = []
        for number, device in enumerate(self._devices):
            readings = tuple(
                Reading(metric, round(20.0 + number + wave * (place + 1), 3), "CEL", GOOD, 0)
                for place, metric in enumerate(self._metrics)
            )
            sample = Sample(device, self._session, seq, now_ms, now_ms, False, readings)
            records.append(OutRecord(DEVICE_TELEMETRY.name, device.encode(), encode_sample(sample), now_ms))
        return records

    def _close_books(self) -> None:
        sent = self.sent
        row: dict[str, Any] = {
            "producer": "chaos-readings",
            "generated": sent.generated,
            "acknowledged": sent.acknowledged,
            "dropped": {"unknown": sent.unknown} if sent.unknown else {},
            "in_flight": sent.generated - sent.acknowledged - sent.unknown,
        }
        (self._folder / "books.jsonl").write_bytes(orjson.dumps(row) + b"\n")
