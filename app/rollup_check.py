"""Holds the rollups on Kafka against a recomputation from the telemetry on Kafka, while the system runs or stands.

What is compared is what can no longer change. (1) The end of the telemetry is noted. (2) The transform's group must
have committed it: outputs are durable before that. (3) Late, dead-lettered and rolled-up records are read as far as
they then go. Where telemetry came in meanwhile, windows that the noted part does not settle are left out.

Memory: about `READING_BYTES` for each reading with the default ladder, most of it for the windows of one second.
Devices are taken in as many passes as keep that within the limit; each pass reads the topics again.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import NamedTuple

import orjson

from app.adapters.topic_reader import Offsets, TopicReader
from app.adapters.topics_admin import committed_offsets
from app.codec import decode_sample
from app.domain.reading import Limits, Sample
from app.domain.recompute import Difference, Key, Telemetry, compare, recompute
from app.domain.rollup import Rollup
from app.domain.window import RollupSpec
from app.errors import Unavailable, UserError
from app.ports import Clock, InRecord
from config.kafka import KafkaSettings
from config.topics import DEVICE_DEADLETTER, DEVICE_LATE, DEVICE_ROLLUPS, DEVICE_TELEMETRY

READING_BYTES = 2_400  # measured: a sample a second, default ladder, recomputed and emitted windows side by side
# Rollups, late records and dead letters carry the time of their making; of telemetry after `since` none is older.
BEFORE_SINCE_MS = 600_000
KEPT_DIFFERENCES = 10_000
_SAMPLED_RECORDS = 200
_POLL_S = 0.2

Progress = Callable[[str, int, int], None]
Place = tuple[int, int]


class Terms(NamedTuple):
    """What the transform went by, and the bounds of the check."""

    spec: RollupSpec
    limits: Limits
    group: str
    wait_s: float = 60.0
    memory_bytes: int = 1 << 30


class Topics(NamedTuple):
    """Where things are."""

    telemetry: str = DEVICE_TELEMETRY.name
    rollups: str = DEVICE_ROLLUPS.name
    late: str = DEVICE_LATE.name
    deadletter: str = DEVICE_DEADLETTER.name


@dataclass(slots=True)
class Checked:
    """What was found; `differences` holds the first of them, `counts` all by kind.

    `windows` were looked at; of these and others `open_windows` are not settled by their device's newest sample: they
    were compared only where final and without further telemetry. `from_ms` is where comparable windows
    begin, None for the beginning.
    """

    records: int = 0
    late: int = 0
    dead: int = 0
    windows: int = 0
    open_windows: int = 0
    passes: int = 1
    from_ms: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return not self.counts


class _Plan(NamedTuple):
    """What all passes share: bounds of the topics, the records that do not count, the partitions that grew."""

    telemetry: tuple[Offsets, Offsets]
    rollups: tuple[Offsets, Offsets]
    late: frozenset[Place]
    dead: frozenset[Place]
    growing: frozenset[int]
    from_ms: int | None


class _Pass(NamedTuple):
    """One share of the devices."""

    number: int
    of: int

    def holds(self, key: bytes | None) -> bool:
        return self.of == 1 or zlib.crc32(key or b"") % self.of == self.number


async def check_rollups(
    reader: TopicReader,
    kafka: KafkaSettings,
    terms: Terms,
    *,
    clock: Clock,
    since_ms: int | None = None,
    progress: Progress = lambda _what, _done, _total: None,
    topics: Topics = Topics(),  # noqa: B008 - an immutable record
) -> Checked:
    """Compare the last revision of every window with what it must be.

    Raises `Unavailable` when the transform does not reach the end of the telemetry in time, `UserError` when
    it never ran.
    """
    plan = await _prepare(reader, kafka, terms, clock, since_ms, progress, topics)
    passes = await _passes(reader, plan, terms, topics)
    checked = Checked(late=len(plan.late), dead=len(plan.dead), passes=passes, from_ms=plan.from_ms)
    for number in range(passes):
        one = _PassRun(reader, plan, terms, topics, _Pass(number, passes), clock.now_ms(), progress)
        await one.run(checked)
    return checked


async def _prepare(
    reader: TopicReader,
    kafka: KafkaSettings,
    terms: Terms,
    clock: Clock,
    since_ms: int | None,
    progress: Progress,
    topics: Topics,
) -> _Plan:
    """Numbered as the module."""
    end = await reader.ends(topics.telemetry)  # 1
    start = await _start(reader, topics.telemetry, since_ms)
    await _consumed(kafka, terms, clock, topics.telemetry, (start, end), progress)  # 2
    made_since = None if since_ms is None else since_ms - BEFORE_SINCE_MS
    bounds = {
        name: (await _start(reader, name, made_since), await reader.ends(name))
        for name in (topics.rollups, topics.late, topics.deadletter)
    }
    grown = await reader.ends(topics.telemetry)
    growing = frozenset(partition for partition in grown if grown[partition] != end.get(partition))
    late = await _places(reader, topics.late, bounds[topics.late], topics.telemetry, progress)  # 3
    dead = await _places(reader, topics.deadletter, bounds[topics.deadletter], topics.telemetry, progress)
    whole = {topics.telemetry: (start, end), **bounds} if since_ms is None else {}
    retained = [await _first_kept_ms(reader, name, first, last, terms) for name, (first, last) in whole.items()]
    from_ms = max((at_ms for at_ms in (since_ms, *retained) if at_ms is not None), default=None)
    return _Plan((start, end), bounds[topics.rollups], late, dead, growing, from_ms)


async def _start(reader: TopicReader, topic: str, since_ms: int | None) -> Offsets:
    return await (reader.begins(topic) if since_ms is None else reader.since(topic, since_ms))


async def _first_kept_ms(reader: TopicReader, topic: str, start: Offsets, end: Offsets, terms: Terms) -> int | None:
    """Since when nothing of a topic has been deleted; None when nothing has been."""
    found = None
    for partition, first in start.items():
        if first > 0:
            record = await reader.one(topic, partition, first) if first < end[partition] else None
            at_ms = (1 << 62) if record is None else record.timestamp + terms.spec.grace_ms
            found = max(found or 0, at_ms)
    return found


async def _consumed(
    kafka: KafkaSettings, terms: Terms, clock: Clock, topic: str, bounds: tuple[Offsets, Offsets], progress: Progress
) -> None:
    """Return when the transform has committed everything up to `end`."""
    start, end = bounds
    total = sum(end.values()) - sum(start.values())
    deadline_s = clock.monotonic_s() + terms.wait_s
    while True:
        committed = (await committed_offsets(kafka.bootstrap_servers, terms.group, kafka)).get(topic, {})
        behind = {at: last for at, last in end.items() if start[at] < last and committed.get(at, 0) < last}
        if not behind:
            return
        left = sum(last - max(committed.get(at, 0), start[at]) for at, last in behind.items())
        progress("waiting for the transform", total - left, total)
        if clock.monotonic_s() > deadline_s:
            if not committed:
                raise UserError(
                    f"The group {terms.group} has committed nothing of {topic}: a worker must have run "
                    "(`headrace worker --roles worker`, or `headrace up`)."
                )
            raise Unavailable(
                f"The transform has {left:,} records of {topic} to go after {terms.wait_s:g} s; start a worker, "
                "or wait longer with --wait-s."
            )
        await asyncio.sleep(_POLL_S)


async def _places(
    reader: TopicReader, topic: str, bounds: tuple[Offsets, Offsets], of_topic: str, progress: Progress
) -> frozenset[Place]:
    """The telemetry records that the records of `topic` are about."""
    found: set[Place] = set()
    done, total = 0, sum(bounds[1].values()) - sum(bounds[0].values())
    async with aclosing(reader.read(topic, *bounds)) as batches:
        async for batch in batches:
            done += len(batch)
            progress(topic, done, total)
            for record in batch:
                if record.value is not None:
                    about = orjson.loads(record.value)
                    if about.get("topic") == of_topic:
                        found.add((about["partition"], about["offset"]))
    return frozenset(found)


async def _passes(reader: TopicReader, plan: _Plan, terms: Terms, topics: Topics) -> int:
    """In how many shares the devices are taken, from the number of records and the metrics of the first ones."""
    start, end = plan.telemetry
    records = sum(max(0, last - start[at]) for at, last in end.items())
    sampled = metrics = 0
    async with aclosing(reader.read(topics.telemetry, start, end)) as batches:
        async for batch in batches:
            for record in islice(batch, _SAMPLED_RECORDS):
                sampled += 1
                metrics += (record.value or b"").count(b'"quality"')
            break
    needed = records * (metrics / sampled if sampled else 1.0) * READING_BYTES
    return max(1, ceil(needed / terms.memory_bytes))


class _PassRun:
    """One pass: the devices of one share, from both topics."""

    def __init__(
        self,
        reader: TopicReader,
        plan: _Plan,
        terms: Terms,
        topics: Topics,
        share: _Pass,
        now_ms: int,
        progress: Progress,
    ) -> None:
        self._reader = reader
        self._plan = plan
        self._terms = terms
        self._topics = topics
        self._share = share
        self._now_ms = now_ms
        self._progress = progress
        self._watermarks: dict[str, int] = {}
        self._partition_of: dict[str, int] = {}
        self._lost: list[Difference] = []
        self._records = 0

    async def run(self, checked: Checked) -> None:
        """Recompute, read what was emitted, compare."""
        plan, spec = self._plan, self._terms.spec
        loop = asyncio.get_running_loop()
        async with aclosing(self._reader.read(self._topics.telemetry, *plan.telemetry)) as batches:
            pulled = _pulled(loop, batches, self._reporter(self._topics.telemetry, plan.telemetry))
            expected = await asyncio.to_thread(recompute, self._telemetry(pulled), plan.late, plan.dead, spec)
        settled = {device: at_ms - spec.grace_ms for device, at_ms in self._watermarks.items()}
        wanted = {key: want for key, want in expected.items() if self._comparable(key, settled)}
        async with aclosing(self._reader.read(self._topics.rollups, *plan.rollups)) as batches:
            pulled = _pulled(loop, batches, self._reporter(self._topics.rollups, plan.rollups))
            found = (rollup for rollup in self._rollups(pulled) if self._comparable(_key(rollup), settled))
            differences = self._lost + await asyncio.to_thread(compare, wanted, found, settled)
        checked.records += self._records
        checked.windows += len(wanted)
        checked.open_windows += sum(1 for key in expected if key[2] + key[3] > settled.get(key[0], 0))
        checked.counts.update(kind_of(each) for each in differences)
        checked.differences += differences[: KEPT_DIFFERENCES - len(checked.differences)]

    def _reporter(self, topic: str, bounds: tuple[Offsets, Offsets]) -> Callable[[int], None]:
        total = sum(max(0, last - bounds[0][at]) for at, last in bounds[1].items())
        what = topic if self._share.of == 1 else f"{topic} ({self._share.number + 1} of {self._share.of})"
        done = 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            self._progress(what, done, total)

        return report

    def _telemetry(self, batches: Iterator[Sequence[InRecord]]) -> Iterator[Telemetry]:
        """The samples of this share; watermarks and partitions are noted on the way."""
        dead, limits, now_ms = self._plan.dead, self._terms.limits, self._now_ms
        for batch in batches:
            for record in batch:
                if not self._share.holds(record.key):
                    continue
                self._records += 1
                if (record.partition, record.offset) in dead:
                    continue
                sample = decode_sample(record.value, record.key, limits, now_ms)
                if not isinstance(sample, Sample):
                    self._lost.append(_unaccounted(record, sample.detail))
                    continue
                device = sample.device_id
                self._watermarks[device] = max(self._watermarks.get(device, 0), sample.source_timestamp)
                self._partition_of[device] = record.partition
                yield Telemetry(record.partition, record.offset, sample)

    def _rollups(self, batches: Iterator[Sequence[InRecord]]) -> Iterator[Rollup]:
        for batch in batches:
            for record in batch:
                if record.value is not None and self._share.holds(record.key):
                    fields = orjson.loads(record.value)
                    yield Rollup._make(fields[name] for name in Rollup._fields)

    def _comparable(self, key: Key, settled: Mapping[str, int]) -> bool:
        """Whether all that belongs to the window was read, and nothing can be added to it any more."""
        device, _, start, window_ms = key
        if self._plan.from_ms is not None and start < self._plan.from_ms:
            return False
        if not self._plan.growing:
            return True
        partition = self._partition_of.get(device)
        if partition is not None and partition not in self._plan.growing:
            return True
        return start + window_ms <= settled.get(device, 0)


def _pulled(
    loop: asyncio.AbstractEventLoop,
    batches: AsyncGenerator[Sequence[InRecord], None],
    report: Callable[[int], None],
) -> Iterator[Sequence[InRecord]]:
    """The batches for a thread, one at a time: nothing is read ahead of the recomputation."""

    async def following() -> Sequence[InRecord] | None:
        return await anext(batches, None)

    while (batch := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
        yield batch
        report(len(batch))


def _key(rollup: Rollup) -> Key:
    return rollup.device_id, rollup.metric, rollup.window_start, rollup.window_ms


def _unaccounted(record: InRecord, detail: str) -> Difference:
    device = (record.key or b"").decode(errors="replace")
    where = f"{record.topic} {record.partition}:{record.offset}"
    return Difference("missing_window", (device, "", 0, 0), f"{where} is in no window and no dead letter: {detail}")


def kind_of(difference: Difference) -> str:
    """The kind as people ask for it: a wrong count is a gap or a double count, a record in no window is lost."""
    if difference.key[3] == 0:
        return "lost record"
    name, _, values = difference.detail.partition(" is ")
    if difference.kind == "wrong_value" and name == "count":
        got, _, wanted = values.partition(", not ")
        return "double count" if int(got) > int(wanted) else "gap"
    return difference.kind.replace("_", " ")
