"""Laws of workers that come and go under load, each a process: every record is processed, few twice."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from app.adapters.faust_app import running
from app.adapters.producer import BatchProducer, ProducerLimits
from app.roles.rounds import follow_assignment
from tests.helpers.broker import TopicFactory
from tests.helpers.faust import Seen, a_group, committed, joined, our_app
from tests.helpers.kafka import read_topic, records, until

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PARTITIONS = 4


class Worker:
    """A running `tests.helpers.batch_worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    async def joined(self, times: int = 1) -> None:
        await until(lambda: sum(line.startswith("joined") for line in self.lines) >= times, f"it joins: {self.lines}")

    async def leave(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(self.process.wait(), 15)
        await self._reading
        assert self.lines[-1] == "left", self.lines

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await self._reading


@asynccontextmanager
async def worker(*arguments: str) -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.helpers.batch_worker", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    started = Worker(process)
    try:
        yield started
    finally:
        await started.kill()


class Load:
    """Records written at a steady pace until told to end."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._ending = asyncio.Event()
        self.written = 0
        self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        async with BatchProducer(ProducerLimits(self._bootstrap)) as producer:
            while not self._ending.is_set():
                for partition in range(PARTITIONS):
                    await producer.publish(records(self._topic, [b"x"] * 25, partition))
                self.written += 25
                try:
                    await asyncio.wait_for(self._ending.wait(), 0.01)
                except TimeoutError:
                    continue

    async def more(self, count: int) -> None:
        """Until so many more are written to each partition."""
        target = self.written + count
        await until(lambda: self.written >= target, "more records")

    async def end(self) -> int:
        """Records in each partition."""
        self._ending.set()
        await self._task
        return self.written


async def processed(bootstrap: str, output: str, written: int) -> dict[int, list[tuple[str, int]]]:
    """Per partition, who processed which offset, once every offset is there."""
    async with asyncio.timeout(40):
        while True:
            found = {
                partition: [(name, int(offset)) for name, _, offset in (r.value.decode().split() for r in run)]
                for partition, run in (await read_topic(bootstrap, output)).items()
            }
            if all({offset for _, offset in run} == set(range(written)) for run in found.values()):
                return found


async def has_processed(bootstrap: str, output: str, name: str) -> None:
    """Until a worker has processed something."""
    async with asyncio.timeout(40):
        while True:
            runs = (await read_topic(bootstrap, output)).values()
            if any(record.value.decode().startswith(f"{name} ") for run in runs for record in run):
                return


def repeats(run: Sequence[tuple[str, int]]) -> list[int]:
    return sorted(offset for offset, times in Counter(offset for _, offset in run).items() if times > 1)


async def test_member_that_stops_while_it_is_given_partitions_leaves_the_group_at_once(
    broker: str, new_topic: TopicFactory
) -> None:
    """Stock Faust does not leave it: the others wait for the session time-out, here 30 s."""
    topic, group = new_topic(PARTITIONS), a_group()
    stays, goes = (our_app(broker, group, session_timeout_ms=30_000) for _ in range(2))
    given = asyncio.Event()
    seen = Seen()
    for app in (stays, goes):
        app.add_agent("counting", topic, seen.batches)

    async def on_assigned(*_: object, **__: object) -> None:
        given.set()

    goes.on_partitions_assigned.connect(on_assigned, weak=False)
    async with running(stays):
        await joined(stays, PARTITIONS)
        async with running(goes):
            await given.wait()
        began = time.perf_counter()
        await joined(stays, PARTITIONS)
        assert time.perf_counter() - began < 5
        async with BatchProducer(ProducerLimits(broker)) as producer:
            for partition in range(PARTITIONS):
                await producer.publish(records(topic, [b"x"], partition))
        await seen.count(PARTITIONS)


async def test_workers_that_join_and_leave_under_load_process_every_record_once(
    broker: str, new_topic: TopicFactory
) -> None:
    source, output, group = new_topic(PARTITIONS), new_topic(PARTITIONS), a_group()
    load = Load(broker, source)
    async with worker(broker, group, source, output, "first") as first:
        await first.joined()
        await load.more(250)
        async with worker(broker, group, source, output, "second") as second:
            await second.joined()
            await first.joined(2)
            await load.more(250)
            await has_processed(broker, output, "second")
            await second.leave()
        await first.joined(3)
        await load.more(250)
        found = await processed(broker, output, await load.end())
        await first.leave()
    for run in found.values():
        assert repeats(run) == []
        offsets = [offset for _, offset in run]
        assert offsets == sorted(offsets)
    assert {name for run in found.values() for name, _ in run} == {"first", "second"}
    assert await committed(broker, group, source, range(PARTITIONS)) == [load.written] * PARTITIONS


async def test_worker_that_is_killed_repeats_only_what_it_had_not_committed(
    broker: str, new_topic: TopicFactory
) -> None:
    source, output, group = new_topic(PARTITIONS), new_topic(PARTITIONS), a_group()
    load = Load(broker, source)
    async with (
        worker(broker, group, source, output, "dies") as dying,
        worker(broker, group, source, output, "lives") as living,
    ):
        await dying.joined()
        await living.joined()
        await load.more(500)
        await dying.kill()
        before = await committed(broker, group, source, range(PARTITIONS))
        await load.more(250)
        found = await processed(broker, output, await load.end())
        await living.leave()
    for partition, run in found.items():
        mine = [offset for name, offset in run if name == "dies"]
        assert all(offset >= (before[partition] or 0) for offset in repeats(run) if offset in mine)
    assert "dies" in {name for run in found.values() for name, _ in run}


async def test_worker_that_was_frozen_and_expelled_joins_again_and_nothing_is_missed(
    broker: str, new_topic: TopicFactory
) -> None:
    source, output, group = new_topic(PARTITIONS), new_topic(PARTITIONS), a_group()
    load = Load(broker, source)
    async with (
        worker(broker, group, source, output, "freezes") as freezing,
        worker(broker, group, source, output, "lives") as living,
    ):
        await freezing.joined()
        await living.joined()
        await load.more(250)
        seen = len(living.lines)
        freezing.process.send_signal(signal.SIGSTOP)
        await until(lambda: len(living.lines) > seen, "the other one takes over")
        await load.more(100)
        freezing.process.send_signal(signal.SIGCONT)
        await until(lambda: len(living.lines) > seen + 1, "the frozen one is back")
        await load.more(250)
        await processed(broker, output, await load.end())
        assert freezing.process.returncode is None
        await freezing.leave()
        await living.leave()


class SlowStage:
    """Takes its partitions only when it is told to."""

    name = "slow"
    count = 0

    def __init__(self) -> None:
        self.going, self.assigning = asyncio.Event(), False

    async def revoked(self, _: Any) -> None:
        pass

    async def assigned(self, _: Any, *, kept: bool) -> None:
        self.assigning = True
        await self.going.wait()

    async def let_go(self) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        raise error

    def held(self) -> bool:
        return True

    def renew(self) -> None:
        pass


async def test_no_record_comes_before_the_stage_has_its_partitions(broker: str, new_topic: TopicFactory) -> None:
    topic, seen, stage = new_topic(partitions=1), Seen(), cast(Any, SlowStage())
    async with BatchProducer(ProducerLimits(broker)) as producer:
        await producer.publish(records(topic, [b"first", b"second"], 0))
    app = our_app(broker)
    app.add_agent("any", topic, seen.batches)
    follow_assignment(app, topic, stage, stage)
    stage.going.set()
    async with running(app):
        await seen.count(2)
        stage.going.clear()
        stage.assigning, before = False, app.consumer._seek_number
        app.ask_for_round()
        try:
            await until(lambda: stage.assigning and app.consumer._seek_number > before, "it seeks beside the stage")
            for _ in range(100):
                await asyncio.sleep(0)
            assert not app.consumer.flow_active
        finally:
            stage.going.set()
        await until(lambda: app.consumer.flow_active, "and then they flow")
