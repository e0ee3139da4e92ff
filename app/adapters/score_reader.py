"""Reads signals and truth back from Kafka, up to where the topics end now, and scores them."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, NamedTuple

import orjson
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from app.adapters.consumers import stop_consumer
from app.domain.faults import TRANSPORT_FAULTS
from app.domain.scoring import RaisedSignal, Score, TruthInterval, score
from app.errors import BrokerUnavailable
from config.topics import DEVICE_SIGNALS, DEVICE_TRUTH

# These leave the readings as they are: no rule is meant to notice them, and one that did would be wrong.
UNSCORED_FAULTS: Collection[str] = (*TRANSPORT_FAULTS, "clock_skew")
_POLL_MS = 500


class Range(NamedTuple):
    """The event times, ms UTC, both ends in, of the truth and the signals that count; None is open."""

    from_ms: int | None = None
    to_ms: int | None = None

    def holds(self, at: int) -> bool:
        return (self.from_ms is None or at >= self.from_ms) and (self.to_ms is None or at <= self.to_ms)


class Scored(NamedTuple):
    """A score with what it was made from; `unreadable` records were left out."""

    score: Score
    signals: int
    intervals: int
    unreadable: int


async def score_topics(
    client: Mapping[str, Any],
    *,
    tolerance_ms: int,
    within: Range = Range(),  # noqa: B008 - an immutable record
    ignored_faults: Collection[str] = UNSCORED_FAULTS,
    signals_topic: str = DEVICE_SIGNALS.name,
    truth_topic: str = DEVICE_TRUTH.name,
    timeout_s: float = 60.0,
) -> Scored:
    """Score `device.signals` against `device.truth` as far as both have been written.

    `client` holds the arguments of the Kafka client (`bootstrap_servers` and security). Truth of the
    kinds in `ignored_faults` does not count. A fault that has not ended lasts until the end of the range
    or, where that is open, until the last signal. Raises `BrokerUnavailable`.
    """
    unreadable = 0
    signals: dict[str, RaisedSignal] = {}
    truth: dict[str, Mapping[str, Any]] = {}
    try:
        async with asyncio.timeout(timeout_s):
            async for topic, value in _records(client, (signals_topic, truth_topic)):
                record = _object(value)
                try:
                    if record is None:
                        unreadable += 1
                    elif topic == signals_topic:
                        _add_signal(signals, record, within)
                    else:
                        _add_truth(truth, record, within, ignored_faults)
                except (KeyError, TypeError):
                    unreadable += 1
    except TimeoutError as error:
        raise BrokerUnavailable(f"the topics could not be read to their ends within {timeout_s:g} s") from error
    except KafkaError as error:
        raise BrokerUnavailable(f"the topics cannot be read: {error}") from error
    last = max((each.at for each in signals.values()), default=0)
    intervals = [_interval(each, within.to_ms or last) for each in truth.values()]
    return Scored(score(signals.values(), intervals, tolerance_ms), len(signals), len(intervals), unreadable)


async def _records(client: Mapping[str, Any], topics: tuple[str, ...]) -> AsyncIterator[tuple[str, bytes | None]]:
    """Every record of the topics from their beginnings to where they end at the time of the call."""
    consumer = AIOKafkaConsumer(
        *topics, **client, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=100
    )
    try:
        await consumer.start()
        ends = await consumer.end_offsets(consumer.assignment())
        first = await consumer.beginning_offsets(list(ends))
        left = {partition: end for partition, end in ends.items() if first[partition] < end}
        while left:
            for partition, batch in (await consumer.getmany(*left, timeout_ms=_POLL_MS)).items():
                for record in batch:
                    if record.offset < ends[partition]:
                        yield record.topic, record.value
            for partition in [each for each in left if await consumer.position(each) >= left[each]]:
                del left[partition]
    finally:
        await stop_consumer(consumer)


def _object(value: bytes | None) -> Mapping[str, Any] | None:
    if value is None:
        return None
    try:
        record = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _add_signal(signals: dict[str, RaisedSignal], record: Mapping[str, Any], within: Range) -> None:
    at = _instant(record["at"])
    if record["state"] == "raised" and within.holds(at):
        signals[record["signal_id"]] = RaisedSignal(
            record["signal_id"], record["rule"], record["kind"], record["device_id"], record["metric"], at
        )


def _add_truth(
    truth: dict[str, Mapping[str, Any]], record: Mapping[str, Any], within: Range, ignored: Collection[str]
) -> None:
    """Keep the newest record of each fault: the one that tells its end."""
    interval = _interval(record, record["from_ts"])
    if within.holds(interval.from_ms) and interval.label not in ignored:
        truth[record["fault_id"]] = record


def _interval(record: Mapping[str, Any], open_end_ms: int) -> TruthInterval:
    begin = _instant(record["from_ts"])
    end = max(open_end_ms, begin) if record["to_ts"] is None else _instant(record["to_ts"])
    return TruthInterval(record["device_id"], begin, end, record["metric"], record["kind"])


def _instant(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"an instant is a whole number of milliseconds, not {value!r}")
    return value
