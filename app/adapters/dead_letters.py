"""Reads `device.deadletter` and sends the originals back to where they were refused.

What was sent back is marked on the dead-letter topic itself: a record without a value, in the partition of the
dead letter, whose header `headrace-redriven` names its offset. A mark is younger than what it marks, so that it
lasts at least as long: a selection that is repeated sends nothing twice. What is sent back carries the header
`headrace-dead-letter`; refused once more it is a dead letter with that header, so that it can be told from new ones.
"""

import base64
import binascii
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import orjson

from app.adapters.topic_reader import Offsets, TopicReader
from app.ports import InRecord, OutRecord, Publisher
from config.topics import DEVICE_DEADLETTER

MARK = "headrace-redriven"
ORIGIN = "headrace-dead-letter"
CHUNK = 200
_WINDOW = 1_000


class Place(NamedTuple):
    """A record of the dead-letter topic, written `partition:offset`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class Letter(NamedTuple):
    """One dead letter as it was found; `topic` None is a row of a file, which has no way back."""

    place: Place
    at_ms: int
    reason: str
    detail: str
    stage: str | None
    topic: str | None
    partition: int | None
    offset: int | None
    timestamp: int | None
    key: bytes | None
    original: bytes | None
    value_bytes: int
    truncated: bool
    headers: tuple[tuple[str, bytes], ...]
    file: str | None
    line: int | None

    @property
    def device_id(self) -> str | None:
        """The key of the original, where it is text."""
        return None if self.key is None else self.key.decode(errors="replace")

    @property
    def came_back(self) -> bool:
        """Whether it was redriven before and refused again."""
        return any(name == ORIGIN for name, _ in self.headers)


class Wanted(NamedTuple):
    """Which dead letters; what is None or empty does not restrict."""

    places: frozenset[Place] = frozenset()
    reason: str | None = None
    device: str | None = None
    topic: str | None = None
    stage: str | None = None

    def matches(self, letter: Letter) -> bool:
        return (
            (not self.places or letter.place in self.places)
            and self.reason in {None, letter.reason}
            and self.device in {None, letter.device_id}
            and self.topic in {None, letter.topic}
            and self.stage in {None, letter.stage}
        )


class Listed(NamedTuple):
    """The newest dead letters that match, newest first, and which of those seen were redriven."""

    letters: list[Letter]
    redriven: frozenset[Place]
    unreadable: int


class Selection(NamedTuple):
    """What a redrive would send: the places and their number by topic; what it leaves out, counted."""

    places: frozenset[Place]
    by_topic: Mapping[str, int]
    redriven_before: int
    came_back: int
    of_files: int
    bounds: tuple[Offsets, Offsets]


class _Original(NamedTuple):
    """A record as it was before it was refused."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Redriven(NamedTuple):
    """What a redrive did; `gone` originals were truncated and are no longer on their topic."""

    sent: int
    gone: int
    too_large: int


def read_letter(record: InRecord) -> Letter | None:
    """The dead letter in a record; None when there is none."""
    if record.value is None:
        return None
    try:
        found: dict[str, Any] = orjson.loads(record.value)
        original = _bytes(found["original"])
        return Letter(
            place=Place(record.partition, record.offset),
            at_ms=record.timestamp,
            reason=str(found["reason"]),
            detail=str(found["detail"]),
            stage=found.get("stage"),
            topic=found["topic"],
            partition=found["partition"],
            offset=found["offset"],
            timestamp=found.get("timestamp"),
            key=_bytes(found.get("key")),
            original=original,
            value_bytes=found.get("value_bytes", len(original or b"")),
            truncated=bool(found.get("truncated", False)),
            headers=tuple((name, _bytes(content) or b"") for name, content in found.get("headers", ())),
            file=found.get("file"),
            line=found.get("line"),
        )
    except (orjson.JSONDecodeError, binascii.Error, KeyError, TypeError, ValueError, AttributeError):
        return None


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def marked(record: InRecord) -> Place | None:
    """The dead letter that this record marks as redriven."""
    for name, content in record.headers:
        if name == MARK and record.value is None and content.isdigit():
            return Place(record.partition, int(content))
    return None


async def newest(
    reader: TopicReader, wanted: Wanted, limit: int, since_ms: int | None, topic: str = DEVICE_DEADLETTER.name
) -> Listed:
    """The newest `limit` that match; reads backwards, so that a long topic costs no more than it must."""
    end = await reader.ends(topic)
    stop = await (reader.begins(topic) if since_ms is None else reader.since(topic, since_ms))
    found: dict[int, list[Letter]] = {partition: [] for partition in end}
    redriven: set[Place] = set()
    unreadable = 0
    window = max(_WINDOW, limit)
    while end:
        start = {partition: max(stop[partition], last - window) for partition, last in end.items()}
        kept: dict[int, deque[Letter]] = {partition: deque(maxlen=limit) for partition in end}
        async with aclosing(reader.read(topic, start, end)) as batches:
            async for batch in batches:
                for record in batch:
                    letter = read_letter(record)
                    if letter is not None and wanted.matches(letter):
                        kept[record.partition].append(letter)
                    elif letter is None and (mark := marked(record)) is not None:
                        redriven.add(mark)
                    elif letter is None:
                        unreadable += 1
        for partition, letters in kept.items():
            found[partition] += reversed(letters)
        end = {at: first for at, first in start.items() if first > stop[at] and len(found[at]) < limit}
        window *= 4
    every = sorted((each for some in found.values() for each in some), key=lambda one: (one.at_ms, one.place))
    return Listed(every[::-1][:limit], frozenset(redriven), unreadable)


async def show(reader: TopicReader, place: Place, topic: str = DEVICE_DEADLETTER.name) -> tuple[Letter, bool] | None:
    """One dead letter, and whether it was redriven; None when there is none at that place."""
    record = await reader.one(topic, place.partition, place.offset)
    letter = None if record is None else read_letter(record)
    if letter is None:
        return None
    end = await reader.ends(topic)
    async with aclosing(
        reader.read(topic, {place.partition: place.offset + 1}, {place.partition: end[place.partition]})
    ) as batches:
        async for batch in batches:
            if any(marked(each) == place for each in batch):
                return letter, True
    return letter, False


async def select(
    reader: TopicReader, wanted: Wanted, since_ms: int | None, *, again: bool, topic: str = DEVICE_DEADLETTER.name
) -> Selection:
    """Which would be redriven now: none that was, and what came back only when named by its place or with `again`."""
    end = await reader.ends(topic)
    start = await (reader.begins(topic) if since_ms is None else reader.since(topic, since_ms))
    topics: dict[Place, str] = {}
    redriven: set[Place] = set()
    returned: set[Place] = set()
    of_files = 0
    async with aclosing(reader.read(topic, start, end)) as batches:
        async for record in _each(batches):
            mark = marked(record)
            if mark is not None:
                redriven.add(mark)
                continue
            letter = read_letter(record)
            if letter is None or not wanted.matches(letter):
                continue
            if letter.topic is None:
                of_files += 1
                continue
            topics[letter.place] = letter.topic
            if letter.came_back and not again and letter.place not in wanted.places:
                returned.add(letter.place)
    returned -= redriven
    chosen = {place: name for place, name in topics.items() if place not in redriven and place not in returned}
    by_topic = Counter(chosen.values())
    before = len(topics.keys() & redriven)
    return Selection(frozenset(chosen), by_topic, before, len(returned), of_files, (start, end))


async def _each(batches: AsyncIterator[Sequence[InRecord]]) -> AsyncIterator[InRecord]:
    async for batch in batches:
        for record in batch:
            yield record


async def redrive(
    reader: TopicReader,
    publisher: Publisher,
    selection: Selection,
    *,
    now_ms: Callable[[], int],
    stopped: Callable[[], bool],
    record_bytes: int,
    timestamp_of: Callable[[int | None, int], int],
    topic: str = DEVICE_DEADLETTER.name,
) -> AsyncGenerator[Redriven, None]:
    """Send the selected originals back, chunk by chunk, and tell after each what was done so far.

    (1) the originals of a chunk are acknowledged; (2) their marks are. Only an end between the two can
    make a repeat send a chunk twice. Raises `UserError` before anything is sent when a topic is not there, and
    `PublishFailed` when the broker refuses a record. `timestamp_of(original_ms, now_ms)` is the timestamp of a record.
    """
    for name in selection.by_topic:
        await reader.partitions(name)
    done = Redriven(0, 0, 0)
    async with aclosing(_chunks(reader, selection, topic)) as chunks:
        async for chunk in chunks:
            originals: list[OutRecord] = []
            marks: list[OutRecord] = []
            at_ms = now_ms()
            for letter in chunk:
                original = await _original(reader, letter)
                if original is None:
                    done = done._replace(gone=done.gone + 1)
                elif len(original.value or b"") > record_bytes:
                    done = done._replace(too_large=done.too_large + 1)
                else:
                    originals.append(_sent_back(letter, original, timestamp_of(letter.timestamp, at_ms)))
                    marks.append(_mark(letter, at_ms, topic))
            await publisher.publish(originals)  # 1
            await publisher.publish(marks)  # 2
            done = done._replace(sent=done.sent + len(originals))
            yield done
            if stopped():
                return


async def _chunks(reader: TopicReader, selection: Selection, topic: str) -> AsyncGenerator[list[Letter], None]:
    chunk: list[Letter] = []
    async with aclosing(reader.read(topic, *selection.bounds)) as batches:
        async for batch in batches:
            for record in batch:
                letter = read_letter(record) if Place(record.partition, record.offset) in selection.places else None
                if letter is not None:
                    chunk.append(letter)
                if len(chunk) >= CHUNK:
                    yield chunk
                    chunk = []
    if chunk:
        yield chunk


async def _original(reader: TopicReader, letter: Letter) -> _Original | None:
    """What was refused, read again from its topic when the dead letter holds only its beginning; None: it is gone."""
    if not letter.truncated:
        return _Original(letter.key, letter.original, letter.headers)
    assert letter.topic is not None, "rows of files are never truncated"
    record = await reader.one(letter.topic, letter.partition or 0, letter.offset or 0)
    return None if record is None else _Original(record.key, record.value, record.headers)


def _sent_back(letter: Letter, original: _Original, timestamp_ms: int) -> OutRecord:
    assert letter.topic is not None, "rows of files are not selected"
    headers = [each for each in original.headers if each[0] != ORIGIN]
    # By its key, as every client would; without one to where it was.
    partition = letter.partition if original.key is None else None
    named = (ORIGIN, str(letter.place).encode())
    return OutRecord(letter.topic, original.key, original.value, timestamp_ms, [*headers, named], partition)


def _mark(letter: Letter, at_ms: int, topic: str) -> OutRecord:
    headers = [(MARK, str(letter.place.offset).encode())]
    return OutRecord(topic, letter.key, None, at_ms, headers, letter.place.partition)
