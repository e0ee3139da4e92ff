"""A bounded slice of a topic: from where to where it goes, and its records, no more than asked for."""

import datetime as dt
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, NamedTuple

from app.adapters.tasks.protocol import TaskCall
from app.adapters.topic_reader import Offsets, TopicReader
from app.domain.murmur2 import partition_for
from app.errors import BrokerUnavailable, TaskFailed, UserError
from app.ports import InRecord


class Slice(NamedTuple):
    """Where each partition's part begins (included) and ends (not included)."""

    topic: str
    start: Offsets
    end: Offsets

    def only(self, key: str) -> "Slice":
        """The part on the partition that murmur2 gives the key, as the service and Java's clients choose it."""
        partition = partition_for(key.encode(), len(self.end))
        return Slice(self.topic, {partition: self.start.get(partition, 0)}, {partition: self.end.get(partition, 0)})

    @property
    def records(self) -> int:
        """How many offsets lie in it."""
        return sum(max(0, self.end[at] - self.start.get(at, 0)) for at in self.end)


async def slice_of(reader: TopicReader, topic: str, since_ms: int | None, until_ms: int | None) -> Slice:
    """The records whose timestamp is `since_ms` or later and, by the first later one, before `until_ms`."""
    start = await (reader.begins(topic) if since_ms is None else reader.since(topic, since_ms))
    end = await (reader.ends(topic) if until_ms is None else reader.since(topic, until_ms))
    return Slice(topic, start, end)


async def records_of(
    reader: TopicReader,
    wanted: Slice,
    call: TaskCall[Any],
    max_scan: int,
) -> AsyncGenerator[InRecord, None]:
    """The slice's records, each partition's in its order. Raises `TaskFailed` of type `TooMuchToRead`."""
    if wanted.records > max_scan:
        raise TaskFailed(
            "TooMuchToRead",
            f"the slice of {wanted.topic} has {wanted.records} records, and max_scan is {max_scan}",
            retryable=False,
            detail={"records": wanted.records, "max_scan": max_scan},
        )
    async with aclosing(reader.read(wanted.topic, wanted.start, wanted.end)) as batches:
        async for batch in batches:
            call.heartbeat()
            for record in batch:
                yield record


@contextmanager
def translated(topic: str) -> Iterator[None]:
    """Turn what reading a topic raises into `TaskFailed`."""
    try:
        yield
    except UserError as error:
        raise TaskFailed("UnknownTopic", f"there is no topic {topic}", retryable=False) from error
    except BrokerUnavailable as error:
        raise TaskFailed("KafkaUnavailable", str(error)) from error


def instant_ms(value: int | str | None, now_ms: int, field: str) -> int | None:
    """Milliseconds UTC of an instant: milliseconds themselves, ISO 8601, or back from now in seconds as `-90s`."""
    if value is None or isinstance(value, int):
        return value
    try:
        if value.startswith("-") and value.endswith("s"):
            return now_ms - round(float(value[1:-1]) * 1000)
        found = dt.datetime.fromisoformat(value)
    except (ValueError, OverflowError) as error:
        raise TaskFailed(
            "InvalidParams", f"{field}: {value!r:.60} is no instant (milliseconds, ISO 8601, or -90s)", retryable=False
        ) from error
    return round((found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def clipped(offsets: Mapping[int, int], least: Mapping[int, int], most: Mapping[int, int]) -> Offsets:
    """Offsets no lower than `least` and no higher than `most`."""
    return {at: min(max(offset, least.get(at, 0)), most.get(at, offset)) for at, offset in offsets.items()}
