"""The laws of the sink loop, on the double."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.sink import Gathering, SinkState, sink
from app import metrics
from app.adapters.sinks.rows import rows_of
from app.domain.backoff import BackoffPolicy
from app.errors import PublishFailed, SinkUnavailable, UserError
from tests.helpers.sinks import FixedClock, MemorySink, a_rollup, away, some_readings
from tests.helpers.streams import Batch, Outbox, a_record, stream_of

TOPICS = ["device.rollups", "device.signals", "device.telemetry"]
NO_WAIT = Gathering(rows=1000, wait_ms=0)


class Pauses:
    """Takes the place of waiting and keeps what was waited for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, wait_s: float) -> None:
        self.seconds.append(wait_s)


async def drive(
    batches: list[Batch] | AsyncIterator[Batch],
    target: MemorySink,
    outbox: Outbox | None = None,
    *,
    gathering: Gathering = NO_WAIT,
    pauses: Pauses | None = None,
    states: list[SinkState] | None = None,
    policy: BackoffPolicy | None = None,
) -> None:
    """Run the loop over `batches` to their end."""
    await sink(
        stream_of(batches) if isinstance(batches, list) else batches,
        sink=target,
        publisher=outbox or Outbox(),
        to_rows=rows_of(TOPICS),
        policy=policy or BackoffPolicy(first_ms=100, max_ms=1_000, jitter=0.0),
        clock=FixedClock(),
        on_state=([] if states is None else states).append,
        gathering=gathering,
        pause=pauses or Pauses(),
    )


def batch_of(*numbers: int, order: list[Any] | None = None) -> Batch:
    return Batch([a_record(a_rollup(n), offset=n) for n in numbers], order)


def counted(outcome: str) -> float:
    return metrics.SINK_RECORDS.labels("memory", outcome)._value.get()


async def test_every_record_is_written_and_every_range_acknowledged_in_order() -> None:
    order: list[Any] = []
    batches = [batch_of(n, n + 1, order=order) for n in (0, 2, 4)]
    target = MemorySink()
    before = counted("written")
    await drive(batches, target)
    assert len(target.stored) == 6
    assert order == batches
    assert counted("written") - before == 6


async def test_nothing_is_acknowledged_before_it_is_written() -> None:
    batch = batch_of(0)
    seen: list[int] = []

    class Watching(MemorySink):
        async def write(self, rows: Any) -> None:
            seen.append(batch.acks)
            await super().write(rows)
            seen.append(batch.acks)

    await drive([batch], Watching())
    assert seen == [0, 0]
    assert batch.acks == 1


async def test_a_sink_that_is_away_is_tried_again_with_growing_waits_until_it_is_back() -> None:
    target, pauses, states = MemorySink(), Pauses(), list[SinkState]()
    batch = batch_of(0, 1, 2)

    async def stream() -> AsyncIterator[Batch]:
        target.failures = [away() for _ in range(6)]
        yield batch

    before = counted("retried")
    await drive(stream(), target, pauses=pauses, states=states)
    assert pauses.seconds == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert len(target.stored) == 3
    assert batch.acks == 1
    assert counted("retried") - before == 18
    retrying = [state for state in states if state.phase == "retrying"]
    assert [state.attempt for state in retrying] == [1, 2, 3, 4, 5, 6]
    assert {(state.pending_records, state.oldest_timestamp_ms) for state in retrying} == {(3, 1_763_689_000_000)}
    assert retrying[0].cause == "the sink is away"
    assert states[-1] == SinkState("memory", "idle")


async def test_a_sink_that_is_away_at_the_start_is_tried_again() -> None:
    target, pauses = MemorySink(), Pauses()
    target.failures = [away(), away()]
    await drive([batch_of(0)], target, pauses=pauses)
    assert target.opened
    assert len(pauses.seconds) == 2
    assert len(target.stored) == 1


async def test_what_the_sink_asks_to_wait_is_waited() -> None:
    target, pauses = MemorySink(), Pauses()
    target.failures = [away(retry_after_ms=700), away(retry_after_ms=9_999_999)]
    await drive([batch_of(0)], target, pauses=pauses)
    assert pauses.seconds == [0.7, 1.0]


BAD = {
    "a tombstone": (None, "a tombstone has no row"),
    "not JSON": (b"{oops", "not JSON"),
    "invalid UTF-8": (b'{"device_id": "\xff"}', "not JSON"),
    "NaN": (b'{"device_id": NaN}', "not JSON"),
    "not an object": (b"[1]", "a rollup is not an object"),
    "no identity": (b"{}", "device_id is missing"),
}


@pytest.mark.parametrize(("value", "detail"), BAD.values(), ids=list(BAD))
async def test_a_record_that_is_no_row_becomes_a_dead_letter_and_the_rest_goes_on(
    value: bytes | None, detail: str
) -> None:
    batch = Batch([a_record(a_rollup(0), 0), a_record(value, 1), a_record(a_rollup(2), 2)])
    target, outbox = MemorySink(), Outbox()
    await drive([batch], target, outbox)
    assert len(target.stored) == 2
    assert batch.acks == 1
    (letter,) = outbox.records
    content = json.loads(letter.value or b"")
    assert letter.topic == "device.deadletter"
    assert letter.key == b"press-0001"
    assert (content["topic"], content["partition"], content["offset"]) == ("device.rollups", 0, 1)
    assert (content["stage"], content["reason"]) == ("sink:memory", "sink_unreadable")
    assert detail in content["detail"]
    assert content["original"] == (None if value is None else base64.b64encode(value).decode())


async def test_a_row_the_sink_refuses_becomes_a_dead_letter_before_its_range_is_acknowledged() -> None:
    order: list[Any] = []
    batch = Batch([a_record(a_rollup(n, unit="x" * 300 if n == 1 else "CEL"), n) for n in range(3)], order)
    target, outbox = MemorySink(), Outbox(order=order)
    before = counted("rejected"), counted("written")
    await drive([batch], target, outbox)
    assert order == ["published", batch]
    assert [json.loads(letter.value or b"")["reason"] for letter in outbox.records] == ["sink_rejected"]
    assert (counted("rejected") - before[0], counted("written") - before[1]) == (1, 2)


async def test_a_sample_with_several_refused_rows_is_one_dead_letter() -> None:
    value = some_readings()[0].row | {
        "metrics": [{"metric": "a", "unit": "x" * 300}, {"metric": "b"}, {"metric": "c", "quality": 7}]
    }
    row = some_readings()[0]._replace(row=value)
    batch = Batch([a_record(row, topic="device.telemetry")])
    target, outbox = MemorySink(), Outbox()
    await drive([batch], target, outbox)
    (letter,) = outbox.records
    assert json.loads(letter.value or b"")["detail"] == (
        "unit is 300 characters long, more than 255; quality is not text but int"
    )
    assert len(target.stored) == 1


async def test_dead_letters_that_cannot_be_published_leave_the_range_unacknowledged() -> None:
    batch = Batch([a_record(b"{oops")])
    with pytest.raises(PublishFailed):
        await drive([batch], MemorySink(), Outbox(PublishFailed("stopped", 1)))
    assert batch.acks == 0


async def test_a_bug_in_the_sink_passes_through_and_acknowledges_nothing() -> None:
    target = MemorySink()
    batch = batch_of(0)

    async def stream() -> AsyncIterator[Batch]:
        target.failures = [ZeroDivisionError()]
        yield batch

    with pytest.raises(ZeroDivisionError):
        await drive(stream(), target)
    assert batch.acks == 0


async def test_cancellation_passes_through_a_retry_and_acknowledges_nothing() -> None:
    waiting = asyncio.Event()
    batch = batch_of(0)
    target = MemorySink()

    class Forever(Pauses):
        async def __call__(self, wait_s: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

    async def stream() -> AsyncIterator[Batch]:
        target.failures = [away()]
        yield batch

    task = asyncio.create_task(drive(stream(), target, pauses=Forever()))
    await asyncio.wait_for(waiting.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert batch.acks == 0


async def test_cancellation_while_idle_ends_the_stream() -> None:
    idle, closed = asyncio.Event(), asyncio.Event()

    async def stream() -> AsyncIterator[Batch]:
        try:
            idle.set()
            await asyncio.Event().wait()
            yield batch_of(0)
        finally:
            closed.set()

    task = asyncio.create_task(drive(stream(), MemorySink()))
    await asyncio.wait_for(idle.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


async def test_a_failure_of_the_stream_passes_through() -> None:
    async def stream() -> AsyncIterator[Batch]:
        yield batch_of(0)
        raise ConnectionError("the transport broke")

    target = MemorySink()
    with pytest.raises(ConnectionError):
        await drive(stream(), target, gathering=Gathering(rows=1, wait_ms=0))
    assert len(target.stored) == 1


async def test_batches_that_are_there_together_are_written_together() -> None:
    target = MemorySink()
    batches = [batch_of(n) for n in range(10)]
    await drive(batches, target, gathering=Gathering(rows=4, wait_ms=60_000))
    assert [len(rows) for rows in target.writes] == [4, 4, 2]
    assert [batch.acks for batch in batches] == [1] * 10


async def test_a_batch_that_waits_is_written_when_its_time_is_up() -> None:
    written = asyncio.Event()
    end = asyncio.Event()

    class Telling(MemorySink):
        async def write(self, rows: Any) -> None:
            await super().write(rows)
            written.set()

    async def stream() -> AsyncIterator[Batch]:
        yield batch_of(0)
        await end.wait()

    task = asyncio.create_task(drive(stream(), Telling(), gathering=Gathering(rows=1000, wait_ms=5)))
    await asyncio.wait_for(written.wait(), 5)
    end.set()
    await task


async def test_a_large_batch_is_written_in_parts_that_keep_a_record_whole() -> None:
    target = MemorySink()
    rows = some_readings()
    value = rows[0].row | {"metrics": [{"metric": name} for name in ("a", "b", "c")]}
    batch = Batch([a_record(rows[0]._replace(row=value | {"seq": n}), n, "device.telemetry") for n in range(5)])
    await drive([batch], target, gathering=Gathering(rows=7, wait_ms=0))
    assert [len(part) for part in target.writes] == [6, 6, 3]
    assert batch.acks == 1


async def test_a_write_is_bounded_in_bytes() -> None:
    target = MemorySink()
    batch = Batch([a_record(a_rollup(n, note="x" * 1000), n) for n in range(6)])
    await drive([batch], target, gathering=Gathering(rows=1000, bytes=4_000, wait_ms=0))
    assert [len(part) for part in target.writes] == [3, 3]


@given(
    st.lists(st.lists(st.sampled_from(["good", "bad", "refused"]), max_size=5), max_size=8),
    st.lists(st.booleans(), max_size=12),
    st.integers(1, 7),
)
def test_every_record_is_stored_or_a_dead_letter_whatever_fails(
    kinds: list[list[str]], failures: list[bool], rows: int
) -> None:
    number = 0
    batches: list[Batch] = []
    good = dead = 0
    for batch_kinds in kinds:
        records = []
        for kind in batch_kinds:
            unit = "x" * 300 if kind == "refused" else "CEL"
            records.append(a_record(b"{" if kind == "bad" else a_rollup(number, unit=unit), number))
            number += 1
            good, dead = good + (kind == "good"), dead + (kind != "good")
        batches.append(Batch(records))
    target, outbox = MemorySink(), Outbox()
    target.failures = [SinkUnavailable("away") for fails in failures if fails]
    asyncio.run(drive(batches, target, outbox, gathering=Gathering(rows=rows, wait_ms=0)))
    assert len(target.stored) == good
    assert len({json.loads(letter.value or b"")["offset"] for letter in outbox.records}) == len(outbox.records) == dead
    assert [batch.acks for batch in batches] == [1] * len(batches)


def test_a_topic_without_rows_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"device\.commands"):
        rows_of(["device.rollups", "device.commands"])
