"""Replays recorded data over the same path as the fleet's."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple

from agents.generate import Sender, record_ms, source_of
from agents.ledger import Books
from app import metrics
from app.adapters.csv_replay import BadRow, Recording, Row
from app.codec import cloudevents_headers, encode_dead_letter, encode_metadata, encode_sample, encode_truth
from app.domain.device import DeviceMetadata
from app.domain.faults import Fault
from app.domain.reading import Sample
from app.domain.replay import RECORDED, Recorded, expanded
from app.ports import Clock, OutRecord
from config.replay import ReplaySettings
from config.topics import DEVICE_DEADLETTER, DEVICE_METADATA, DEVICE_TRUTH

log = logging.getLogger(__name__)

MAX_PAUSE_S = 0.1  # a slow recording still notices within this time that it is to stop


class ReplayLimits(NamedTuple):
    """How to replay: `speed` 0 is as fast as possible; for `times` see `ReplaySettings`."""

    speed: float = 1.0
    times: Literal["now", "keep"] = "now"
    chunk_rows: int = 1000
    retry_ms: int = 5
    cloudevents_headers: bool = False


class ReplayDone(NamedTuple):
    """What a replay sent; `finished` False when it was stopped before the last row."""

    samples: int
    dead_letters: int
    truths: int
    finished: bool


def limits_of(settings: ReplaySettings, *, with_headers: bool = False) -> ReplayLimits:
    """The limits that settings mean."""
    return ReplayLimits(settings.speed, settings.times, settings.chunk_rows, settings.retry_ms, with_headers)


async def replay(
    recording: Recording,
    publisher: Sender,
    clock: Clock,
    ledger: Books,
    limits: ReplayLimits,
    stop: asyncio.Event,
    pause: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> ReplayDone:
    """Send every row as a sample, every bad row as a dead letter and the labels as truth.

    A row is due at its place in the recording divided by the speed. A producer that is full makes
    the replay wait: nothing of a recording is dropped.
    """
    for topic in (ledger.topic, DEVICE_TRUTH.name, DEVICE_METADATA.name, DEVICE_DEADLETTER.name):
        await publisher.partitions(topic)
    run = _Run(recording, publisher, clock, ledger, limits, stop, pause)
    done = await run.play()
    log.info("replay ended", extra={"action": "replay_ended", **done._asdict()})
    return done


class _Run:
    """One replay under way."""

    def __init__(
        self,
        recording: Recording,
        publisher: Sender,
        clock: Clock,
        ledger: Books,
        limits: ReplayLimits,
        stop: asyncio.Event,
        pause: Callable[[float], Awaitable[Any]],
    ) -> None:
        survey = recording.survey
        self._recording = recording
        self._sender = publisher
        self._clock = clock
        self._ledger = ledger
        self._limits = limits
        self._stop = stop
        self._pause = pause
        self._started_ms = clock.now_ms()
        anchor_ms = survey.first_ms if limits.speed == 1.0 else survey.last_ms
        self._shift_ms = self._started_ms - anchor_ms if limits.times == "now" else 0
        self._truth = expanded(survey.intervals(), self._shift_ms)
        self._next_truth = 0
        self._truths = 0
        self._sequence: Counter[str] = Counter()
        self._source = source_of(recording.mapping.device)
        self._samples = 0
        self._dead_letters = 0
        self._unbooked_generated = 0
        self._unbooked_accepted = 0

    async def play(self) -> ReplayDone:
        """Metadata, then the rows with the truth between them, then the devices' last words."""
        place = self._recording.mapping.device.model_dump(exclude={"id", "column"})
        metadata = self._recording.survey.metadata(place, self._started_ms)
        for each in metadata:
            await self._send_metadata(each)
        rows = self._recording.rows()
        while chunk := await asyncio.to_thread(_chunk, rows, self._limits.chunk_rows):
            for row in chunk:
                if self._stop.is_set() or not await self._play_row(row):
                    return self._done(finished=False)
            await self._yield_for(0)
        await self._send_truth(self._recording.survey.last_ms + 1, at_end=True)
        now_ms = self._clock.now_ms()
        for each in metadata:
            await self._send_metadata(each._replace(state="OFFLINE", since=now_ms))
        return self._done(finished=not self._stop.is_set())

    def _done(self, *, finished: bool) -> ReplayDone:
        self._book()
        return ReplayDone(self._samples, self._dead_letters, self._truths, finished)

    def _book(self) -> None:
        """Bring the ledger up to date; by the chunk and before every pause, not by the row."""
        if self._unbooked_generated or self._unbooked_accepted:
            self._ledger.generated({RECORDED: self._unbooked_generated})
            self._ledger.accepted(self._unbooked_accepted)
            self._unbooked_generated = self._unbooked_accepted = 0

    async def _yield_for(self, pause_s: float) -> None:
        self._book()
        await self._pause(pause_s)

    async def _play_row(self, row: Row) -> bool:
        """Send one row; False when the replay was stopped instead."""
        if isinstance(row, BadRow):
            return await self._send_bad(row)
        due_ms = await self._wait_until_due(row.at_ms)
        if due_ms is None:
            return False
        await self._send_truth(row.at_ms, at_end=False)
        return await self._send_sample(row, due_ms)

    async def _wait_until_due(self, at_ms: int) -> float | None:
        """The wall clock at which a row is due, once it has come; None when the replay was stopped."""
        if not self._limits.speed:
            return float(self._clock.now_ms())
        due_ms = self._started_ms + (at_ms - self._recording.survey.first_ms) / self._limits.speed
        while (wait_s := (due_ms - self._clock.now_ms()) / 1000) > 0:
            if self._stop.is_set():
                return None
            await self._yield_for(min(wait_s, MAX_PAUSE_S))
        return due_ms

    async def _send_sample(self, row: Recorded, due_ms: float) -> bool:
        self._sequence[row.device_id] += 1
        at_ms = row.at_ms + self._shift_ms
        now_ms = self._clock.now_ms()
        sample = Sample(
            device_id=row.device_id,
            session_id=self._started_ms,
            seq=self._sequence[row.device_id],
            source_timestamp=at_ms,
            recorded_timestamp=now_ms,
            is_historical=False,
            metrics=row.readings,
        )
        self._unbooked_generated += 1
        value = encode_sample(sample)
        at = record_ms(at_ms, now_ms)
        headers = cloudevents_headers(sample, self._source) if self._limits.cloudevents_headers else ()
        record = OutRecord(self._ledger.topic, row.device_id.encode(), value, at, headers, intended_ms=due_ms)
        if not await self._send(record):
            self._ledger.dropped("stopped", 1)
            return False
        self._unbooked_accepted += 1
        self._samples += 1
        return True

    async def _send_bad(self, row: BadRow) -> bool:
        self._unbooked_generated += 1
        value = encode_dead_letter(row.reason, row.detail, row.original, line=row.line, file=row.file)
        if not await self._send(OutRecord(DEVICE_DEADLETTER.name, None, value, self._clock.now_ms())):
            self._ledger.dropped("stopped", 1)
            return False
        metrics.DEAD_LETTERS.labels(row.reason).inc()
        self._ledger.dead_lettered(1)
        self._dead_letters += 1
        return True

    async def _send_truth(self, until_ms: int, *, at_end: bool) -> None:
        """The labels that begin or end at or before `until_ms`; at the end, also the ends of what has begun."""
        survey = self._recording.survey
        while self._next_truth < len(self._truth):
            at_ms, fault = self._truth[self._next_truth]
            if at_ms > until_ms and not at_end:
                return
            # A label beyond the recording is not of what was sent.
            if fault.from_ts <= survey.last_ms + self._shift_ms:
                if not await self._send_fault(fault):
                    return
                self._truths += 1
            self._next_truth += 1

    async def _send_fault(self, fault: Fault) -> bool:
        key = fault.device_id.encode()
        return await self._send(OutRecord(DEVICE_TRUTH.name, key, encode_truth(fault), self._clock.now_ms()))

    async def _send_metadata(self, metadata: DeviceMetadata) -> None:
        key = metadata.device.device_id.encode()
        await self._send(OutRecord(DEVICE_METADATA.name, key, encode_metadata(metadata), self._clock.now_ms()))

    async def _send(self, record: OutRecord) -> bool:
        """Hand over one record, waiting for room; False when the replay was stopped meanwhile."""
        topic, key, value, timestamp_ms, headers, partition, intended_ms = record
        while not self._sender.send_nowait(topic, key, value, timestamp_ms, partition, headers, intended_ms):
            if self._stop.is_set():
                return False
            await self._yield_for(self._limits.retry_ms / 1000)
        return True


def _chunk(rows: Iterator[Row], count: int) -> list[Row]:
    return list(islice(rows, count))
