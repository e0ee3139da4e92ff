"""The sink loop: batches of records in, rows into one sink, each range acknowledged only when all of it is safe."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import SystemRandom
from typing import Literal, NamedTuple, Protocol

from app import metrics
from app.codec import encode_dead_letter_record
from app.domain.backoff import BackoffPolicy, delay_ms
from app.domain.deadletter import Origin, dead_letter
from app.errors import SinkRejected, SinkUnavailable
from app.ports import Clock, InRecord, OutRecord, Publisher, Sink, SinkRow
from config.topics import DEVICE_DEADLETTER

log = logging.getLogger(__name__)

UNREADABLE = "sink_unreadable"
REJECTED = "sink_rejected"
# As base64 this stays below the broker's default limit of 1 MiB for a record.
DEAD_LETTER_KEEP_BYTES = 512 << 10

_DRAW = SystemRandom().random
ToRows = Callable[[InRecord], Sequence[SinkRow] | str]


class SinkBatch(Protocol):
    """One event of the batch-native transport; `ack` gives its whole range back as done."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def records(self) -> Sequence[InRecord]: ...
    def ack(self) -> None: ...


class SinkState(NamedTuple):
    """How a sink is doing: for health and logs.

    `attempt` counts the failures in a row, `cause` is the last one; `pending_records` wait in this
    loop, the oldest of them from `oldest_timestamp_ms` (its Kafka timestamp; None when none waits).
    """

    sink: str
    phase: Literal["opening", "writing", "retrying", "idle"]
    attempt: int = 0
    cause: str = ""
    pending_records: int = 0
    oldest_timestamp_ms: int | None = None


class Gathering(NamedTuple):
    """Bounds of one write: batches that wait are merged until one of these is reached."""

    rows: int = 1000
    bytes: int = 4 << 20
    wait_ms: int = 500


@dataclass(frozen=True, slots=True)
class _Stage:
    sink: Sink
    publisher: Publisher
    to_rows: ToRows
    policy: BackoffPolicy
    clock: Clock
    on_state: Callable[[SinkState], None]
    gathering: Gathering
    keep_bytes: int
    draw: Callable[[], float]
    pause: Callable[[float], Awaitable[None]]


class _Refusal(NamedTuple):
    record: InRecord
    reason: str
    detail: str


async def sink(
    batches: AsyncIterator[SinkBatch],
    *,
    sink: Sink,
    publisher: Publisher,
    to_rows: ToRows,
    policy: BackoffPolicy,
    clock: Clock,
    on_state: Callable[[SinkState], None],
    gathering: Gathering = Gathering(),  # noqa: B008 - a tuple, never changed
    keep_bytes: int = DEAD_LETTER_KEEP_BYTES,
    draw: Callable[[], float] = _DRAW,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Write every record of `batches` to `sink`, and return when `batches` ends.

    For each group of batches that are there together:
    (1) records are read into rows; those that cannot be are put aside;
    (2) rows are written; `SinkUnavailable` repeats the write with growing waits, without end;
        rows in `SinkRejected` are put aside;
    (3) what was put aside goes to the dead-letter topic and is acknowledged by the broker;
    (4) the ranges are acknowledged, in their order.

    A crash at any point repeats the group: sinks take repeats without effect. A failure to publish
    dead letters and every other error passes through, and with it nothing is acknowledged.
    """
    stage = _Stage(sink, publisher, to_rows, policy, clock, on_state, gathering, keep_bytes, draw, pause)
    on_state(SinkState(sink.name, "opening"))
    await _insist(stage, sink.open, 0, ())
    on_state(SinkState(sink.name, "idle"))
    async with aclosing(_groups(batches, gathering, clock)) as groups:
        async for group in groups:
            await _handle(stage, group)


async def _handle(stage: _Stage, group: Sequence[SinkBatch]) -> None:
    """Take one group through the four steps of `sink`."""
    records = [record for batch in group for record in batch.records]
    stage.on_state(_state(stage, "writing", records))
    # (1)
    readable, refusals = _read(stage, records)
    # (2)
    for part in _parts(readable, stage.gathering):
        refusals += await _write(stage, part)
    # (3)
    if refusals:
        await _bury(stage, refusals)
    # (4)
    for batch in group:
        batch.ack()
        if batch.records:
            age_s = max(0.0, (stage.clock.now_ms() - batch.records[-1].timestamp) / 1000)
            metrics.LAG_SECONDS.labels(batch.topic, str(batch.partition)).set(age_s)
    stage.on_state(SinkState(stage.sink.name, "idle"))


def _read(
    stage: _Stage, records: Sequence[InRecord]
) -> tuple[list[tuple[InRecord, Sequence[SinkRow]]], list[_Refusal]]:
    readable: list[tuple[InRecord, Sequence[SinkRow]]] = []
    refusals: list[_Refusal] = []
    for record in records:
        rows = stage.to_rows(record)
        if isinstance(rows, str):
            refusals.append(_Refusal(record, UNREADABLE, rows))
        elif rows:
            readable.append((record, rows))
    if refusals:
        metrics.SINK_RECORDS.labels(stage.sink.name, "rejected").inc(len(refusals))
    return readable, refusals


Part = list[tuple[InRecord, Sequence[SinkRow]]]


def _parts(readable: Part, limits: Gathering) -> Iterator[Part]:
    """Cut into writes within the limits; the rows of one record stay together, as file sinks need them."""
    part: Part = []
    rows = size = 0
    for record, of_record in readable:
        more = len(record.value or b"")
        if part and (rows + len(of_record) > limits.rows or size + more > limits.bytes):
            yield part
            part, rows, size = [], 0, 0
        part.append((record, of_record))
        rows += len(of_record)
        size += more
    if part:
        yield part


async def _write(stage: _Stage, part: Part) -> list[_Refusal]:
    """Write one part, however long it takes; return what the sink refuses for good."""
    rows = [row for _, of_record in part for row in of_record]
    owners = [record for record, of_record in part for _ in of_record]
    counted = metrics.SINK_RECORDS
    name = stage.sink.name
    reasons: dict[int, str] = {}

    async def attempt() -> None:
        with metrics.SINK_DURATION.labels(name).time():
            await stage.sink.write(rows)

    try:
        await _insist(stage, attempt, len(rows), owners)
    except SinkRejected as rejected:
        reasons = rejected.reasons
        counted.labels(name, "rejected").inc(len(reasons))
    counted.labels(name, "written").inc(len(rows) - len(reasons))
    # One dead letter a record, however many of its rows were refused.
    details: dict[int, list[str]] = {}
    for index, why in sorted(reasons.items()):
        details.setdefault(id(owners[index]), []).append(why)
    return [_Refusal(record, REJECTED, "; ".join(details[id(record)])) for record, _ in part if id(record) in details]


async def _insist(
    stage: _Stage, attempt: Callable[[], Awaitable[None]], rows: int, records: Sequence[InRecord]
) -> None:
    """Repeat `attempt` while the sink is unavailable; the waits grow, the number of attempts has no end."""
    failures = 0
    while True:
        try:
            await attempt()
        except SinkUnavailable as error:
            failures += 1
            metrics.SINK_RECORDS.labels(stage.sink.name, "retried").inc(rows)
            wait_ms = delay_ms(stage.policy, failures, stage.draw(), int(error.facts.get("retry_after_ms", 0)))
            stage.on_state(_state(stage, "retrying", records, failures, str(error)))
            log.warning(
                "%s; next attempt in %d ms",
                error,
                wait_ms,
                extra={"action": "sink_unavailable", "sink": stage.sink.name, "attempt": failures, "wait_ms": wait_ms},
            )
            await stage.pause(wait_ms / 1000)
        else:
            break
    if failures:
        stage.on_state(_state(stage, "writing", records))
        log.info(
            "sink %s takes rows again",
            stage.sink.name,
            extra={"action": "sink_recovered", "sink": stage.sink.name, "attempts": failures + 1},
        )


async def _bury(stage: _Stage, refusals: Sequence[_Refusal]) -> None:
    """Publish dead letters; return when the broker has them."""
    now_ms = stage.clock.now_ms()
    letters = []
    for record, reason, detail in refusals:
        origin = Origin(
            record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, record.headers
        )
        letter = dead_letter(
            origin,
            stage=f"sink:{stage.sink.name}",
            reason=reason,
            detail=detail,
            now_ms=now_ms,
            keep_bytes=stage.keep_bytes,
        )
        letters.append(OutRecord(DEVICE_DEADLETTER.name, letter.key, encode_dead_letter_record(letter), now_ms))
    await stage.publisher.publish(letters)
    for refusal in refusals:
        metrics.DEAD_LETTERS.labels(refusal.reason).inc()


def _state(
    stage: _Stage,
    phase: Literal["writing", "retrying"],
    records: Sequence[InRecord],
    attempt: int = 0,
    cause: str = "",
) -> SinkState:
    oldest = min((record.timestamp for record in records), default=None)
    return SinkState(stage.sink.name, phase, attempt, cause, len(records), oldest)


async def _groups(
    batches: AsyncIterator[SinkBatch], limits: Gathering, clock: Clock
) -> AsyncGenerator[list[SinkBatch], None]:
    """Merge batches that arrive within `wait_ms` until they reach the limits; at most one is read ahead."""
    ahead: asyncio.Task[SinkBatch | None] | None = None
    try:
        while True:
            ahead = ahead or asyncio.create_task(_next(batches), name="sink read-ahead")
            batch = await ahead
            ahead = None
            if batch is None:
                return
            group = [batch]
            until_s = clock.monotonic_s() + limits.wait_ms / 1000
            while not _full(group, limits):
                ahead = asyncio.create_task(_next(batches), name="sink read-ahead")
                done, _ = await asyncio.wait({ahead}, timeout=max(0.0, until_s - clock.monotonic_s()))
                if not done:
                    break
                another = ahead.result()
                if another is None:
                    break
                ahead = None
                group.append(another)
            yield group
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)


def _full(group: Sequence[SinkBatch], limits: Gathering) -> bool:
    records = sum(len(batch.records) for batch in group)
    if records >= limits.rows:
        return True
    return sum(len(record.value or b"") for batch in group for record in batch.records) >= limits.bytes


async def _next(batches: AsyncIterator[SinkBatch]) -> SinkBatch | None:
    """Return the next batch, or None at the end."""
    return await anext(batches, None)
