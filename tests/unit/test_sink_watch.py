"""Laws of what the watchdog takes for a sink that stands still: its loop, and not its target."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agents.sink import Gathering, sink
from app.adapters.sinks.rows import rows_of
from app.domain import watchdog
from app.domain.backoff import BackoffPolicy
from app.domain.watchdog import StallPolicy
from app.ports import OutRecord, Publisher, SinkRow
from app.roles.sink_watch import SinkWatch
from tests.helpers.kafka import until
from tests.helpers.sinks import FixedClock, MemorySink, a_rollup, away
from tests.helpers.streams import Batch, Outbox, a_record

POLICY = StallPolicy(stall_after_s=30, exit_after_s=120)
RETRY_S, FLUSH_S = 600.0, 300.0
LAG = 7


class Hours:
    """A sink's loop and a watchdog that looks at it every few seconds, by a clock that the test moves."""

    def __init__(self, target: MemorySink) -> None:
        self.clock = FixedClock()
        self.watch = SinkWatch(target, self.clock, retry_s=RETRY_S, flush_s=FLUSH_S)
        self.seen = watchdog.begin(self.clock.monotonic_s(), self.watch.progress(LAG))

    def verdict_after(self, seconds: float) -> str:
        for _ in range(round(seconds / 5)):
            self.clock.ms += 5_000
            self.seen = watchdog.observe(self.seen, self.clock.monotonic_s(), self.watch.progress(LAG))
        return watchdog.verdict(self.seen, POLICY)

    async def run(self, batches: Sequence[Batch], pause: Any = None, publisher: Publisher | None = None) -> None:
        """The loop over the batches, and then for more."""

        async def reading() -> AsyncIterator[Batch]:
            for batch in batches:
                self.watch.took()
                yield batch
            await asyncio.Event().wait()

        await sink(
            reading(),
            sink=self.watch,
            publisher=publisher or Outbox(),
            to_rows=rows_of(["device.rollups"]),
            policy=BackoffPolicy(100, round(RETRY_S * 1000)),
            clock=self.clock,
            on_state=self.watch.on_state,
            gathering=Gathering(wait_ms=0),
            pause=pause or asyncio.sleep,
        )


def a_batch() -> Batch:
    return Batch([a_record(a_rollup(0))])


@pytest.mark.parametrize("more_comes", [False, True])
async def test_a_target_that_is_away_is_no_stall_however_long_the_waits_are(more_comes: bool) -> None:
    target = MemorySink()
    target.failures = [away() for _ in range(50)]
    hours = Hours(target)
    verdicts: set[str] = set()

    async def pause(wait_s: float) -> None:
        if more_comes:
            hours.watch.took()
        verdicts.add(hours.verdict_after(wait_s))

    batch = a_batch()
    running = asyncio.create_task(hours.run([batch], pause))
    await until(lambda: batch.acks, "the target is back")
    running.cancel()
    assert verdicts == {"ok"}


async def test_an_attempt_that_takes_hours_is_no_stall() -> None:
    begun = asyncio.Event()

    class Slow(MemorySink):
        async def write(self, rows: Sequence[SinkRow]) -> None:
            begun.set()
            await asyncio.Event().wait()

    hours = Hours(Slow())
    running = asyncio.create_task(hours.run([a_batch()]))
    await begun.wait()
    assert hours.verdict_after(7_200) == "ok"
    running.cancel()


async def test_a_loop_that_does_not_come_back_to_a_target_that_was_away_stands_still() -> None:
    target, paused = MemorySink(), asyncio.Event()
    target.failures = [away()]
    hours = Hours(target)

    async def pause(_: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(hours.run([a_batch()], pause))
    await paused.wait()
    assert hours.verdict_after(RETRY_S) == "ok"
    assert hours.verdict_after(POLICY.stall_after_s + 5) == "stalled"
    assert hours.verdict_after(POLICY.exit_after_s) == "dead"
    running.cancel()


async def test_a_loop_that_stops_outside_of_its_target_stands_still() -> None:
    class Stuck(Outbox):
        async def publish(self, records: Sequence[OutRecord]) -> None:
            stuck.set()
            await asyncio.Event().wait()

    stuck = asyncio.Event()
    hours = Hours(MemorySink())
    running = asyncio.create_task(hours.run([Batch([a_record(b"{oops")])], publisher=Stuck()))
    await stuck.wait()
    assert hours.verdict_after(FLUSH_S) == "ok", "a batch may wait so long for more"
    assert hours.verdict_after(POLICY.exit_after_s + 5) == "dead"
    running.cancel()


async def test_records_without_rows_are_progress_too() -> None:
    hours = Hours(MemorySink())
    batch = Batch([])
    before = hours.watch.progress(LAG).processed
    hours.watch.took()
    taken = hours.watch.progress(LAG).processed
    assert taken > before
    running = asyncio.create_task(hours.run([batch]))
    await until(lambda: batch.acks, "the batch is done")
    running.cancel()
    assert hours.watch.progress(LAG).processed > taken + 1
