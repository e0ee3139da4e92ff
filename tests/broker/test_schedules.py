"""Laws of schedules, backfills and dead letters with the engine on a real broker: through restarts and clock jumps."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import pytest_asyncio

from app.adapters.clock import SystemClock
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.topic_reader import TopicReader
from app.adapters.topics_admin import ensure_topics
from app.adapters.workflow_letters import LetterIndex, SentBack, WantedLetters, redrive
from app.domain.workflow.backfill import BackfillSpec, BackfillStart
from app.domain.workflow.cadence import Cadence
from app.domain.workflow.commands import Debounce
from app.domain.workflow.definition import Concurrency
from app.domain.workflow.events import ExecutionStarted
from app.domain.workflow.placement import partition_of
from app.domain.workflow.schedule import SchedulePause, SchedulePut, ScheduleRunNow, ScheduleSpec, execution_id
from app.http.health import HealthRegistry
from app.ports import OutRecord
from app.roles.context import Context
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEFINITIONS, WORKFLOW_STATE, WORKFLOW_TOPICS
from tests.helpers.engine import (
    Book,
    Coordinator,
    KnownWorkflows,
    ObedientExecutor,
    book,
    settings,
    started,
    task,
    workflow,
)
from tests.helpers.kafka import read_topic, until

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

PARTITIONS = 2
HOUR = 3_600_000
T0 = 1_763_686_800_000
FLOWS = (
    workflow("quick", task("a", value="${trigger.due_ms}")),
    workflow("limited", task("a"), concurrency=Concurrency(key="input.site", limit=2)),
    workflow("hangs", task("a", do="hang")),
    workflow("once-broken", task("a", do="fail_first:1")),
)


@pytest.fixture(scope="module")
def topics(module_broker: str) -> str:
    asyncio.run(ensure_topics(module_broker, (*WORKFLOW_TOPICS, WORKFLOW_STATE), KafkaSettings(partitions=PARTITIONS)))
    return module_broker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(topics: str) -> AsyncIterator[Book]:
    async with book(topics) as opened:
        yield opened


class JumpingClock(SystemClock):
    """The wall clock, put forwards or back by the test."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@asynccontextmanager
async def engine(broker: str, folder: Path, clock: SystemClock | None = None) -> AsyncIterator[Coordinator]:
    chosen = settings(broker, folder)
    context = Context(chosen, lambda: chosen, HealthRegistry(frozenset(), "1"), asyncio.Event(), clock or SystemClock())
    running = Coordinator(context, KnownWorkflows(*FLOWS), ObedientExecutor())
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


async def tell(broker: str, *commands: Any) -> None:
    async with BatchProducer(ProducerLimits(broker, flush_interval_ms=1)) as producer:
        await producer.publish(
            [
                OutRecord(
                    WORKFLOW_COMMANDS.name,
                    command.entity_id.encode(),
                    msgspec.json.encode(command),
                    int(time.time() * 1000),
                    (),
                    partition_of(command.entity_id, PARTITIONS),
                )
                for command in commands
            ]
        )


async def summary(broker: str, entity_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The newest summary of an entity, once it is as it should be."""
    newest: Any = None
    async with asyncio.timeout(60):
        while newest is None or not holds(newest):
            records = (await read_topic(broker, WORKFLOW_DEFINITIONS.name))[0]
            values = [record.value for record in records if record.key == entity_id.encode()]
            newest = orjson.loads(values[-1]) if values and values[-1] else None
    return newest


def starts(log: Book, prefix: str) -> dict[str, ExecutionStarted]:
    """The first event of every execution whose id begins so."""
    firsts = ((name, events[0]) for name, events in log.histories.items() if name.startswith(prefix) and events)
    return {name: event for name, event in firsts if isinstance(event, ExecutionStarted)}


def a_name(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def put(name: str, flow: str = "quick", every_ms: int = 1_000, **spec: Any) -> SchedulePut:
    return SchedulePut(
        entity_id=f"schedule:{name}",
        command_id=a_name("put"),
        spec=ScheduleSpec(workflow=flow, cadence=Cadence(every_ms=every_ms), **spec),
    )


def a_backfill(name: str, flow: str, count: int, concurrency: int, **spec: Any) -> BackfillStart:
    given = BackfillSpec(
        workflow=flow,
        cadence=Cadence(every_ms=HOUR),
        from_ms=T0,
        to_ms=T0 + (count - 1) * HOUR,
        concurrency=concurrency,
        **spec,
    )
    return BackfillStart(entity_id=f"backfill:{name}", command_id="start", spec=given, total=given.runs())


async def test_a_schedule_starts_executions_at_their_times_and_hears_of_their_ends(
    topics: str, log: Book, tmp_path: Path
) -> None:
    name = a_name("each-second")
    async with engine(topics, tmp_path):
        await tell(topics, put(name))
        await until(lambda: len(starts(log, name)) >= 3, "three executions")
        await tell(topics, SchedulePause(entity_id=f"schedule:{name}", command_id="stop"))
        found = await summary(topics, f"schedule:{name}", lambda it: it["paused"] and not it["running"])
    firsts = starts(log, name)
    assert set(firsts) == {execution_id(name, event.trigger["due_ms"]) for event in firsts.values()}
    dues = sorted(event.trigger["due_ms"] for event in firsts.values())
    assert dues == list(range(dues[0], dues[-1] + 1, 1_000)), "none is left out, none comes twice"
    assert (found["started"], found["last_status"], found["skipped"]) == (len(dues), "succeeded", 0)
    assert [log.state(each).result for each in firsts] == [event.trigger["due_ms"] for event in firsts.values()]  # type: ignore[union-attr]


async def test_a_run_that_goes_on_is_skipped_over_or_cancelled_as_the_policy_says(
    topics: str, log: Book, tmp_path: Path
) -> None:
    skip, cancel = a_name("skip"), a_name("cancel")
    async with engine(topics, tmp_path) as running:
        await tell(topics, put(skip, "hangs", overlap="skip"), put(cancel, "hangs", overlap="cancel_running"))
        skipped = await summary(topics, f"schedule:{skip}", lambda it: it["skipped"] >= 2)
        await until(lambda: len(starts(log, cancel)) >= 3, "each comes in the place of the one before")
        ids = sorted(starts(log, cancel))
        assert (await log.ended(ids[0])).status == "cancelled"
        assert (len(starts(log, skip)), skipped["running"]) == (1, list(starts(log, skip)))
        assert isinstance(running.executor, ObedientExecutor)
        for one in (skip, cancel):
            await tell(topics, SchedulePause(entity_id=f"schedule:{one}", command_id="stop"))
        running.executor.finish(skipped["running"][0])
        ended = await summary(topics, f"schedule:{skip}", lambda it: it["paused"] and not it["running"])
        assert ended["last_status"] == "succeeded"


async def test_a_backfill_goes_on_after_a_takeover_and_runs_each_time_once(
    topics: str, log: Book, tmp_path: Path
) -> None:
    name = a_name("b")
    prefix = f"backfill.{name}"
    async with engine(topics, tmp_path / "first"):
        await tell(topics, a_backfill(name, "limited", 300, 5, input={"site": "north"}))
        await until(lambda: len(starts(log, prefix)) >= 20, "it is under way")
    async with engine(topics, tmp_path / "second"):
        done = await summary(topics, f"backfill:{name}", lambda it: it["status"] == "done")
    assert (done["started"], done["succeeded"], done["failed"], done["total"]) == (300, 300, 0, 300)
    await until(lambda: len(starts(log, prefix)) == 300, "every history is read")
    dues = sorted(event.trigger["due_ms"] for event in starts(log, prefix).values())
    assert dues == [T0 + n * HOUR for n in range(300)]


async def test_a_clock_that_jumps_makes_neither_a_storm_nor_a_stall(topics: str, log: Book, tmp_path: Path) -> None:
    name, clock = a_name("jumps"), JumpingClock()
    async with engine(topics, tmp_path, clock):
        await tell(topics, put(name, overlap="allow"))
        await until(lambda: len(starts(log, name)) >= 2, "it runs")
        before = len(starts(log, name))
        clock.ahead_ms = 30 * 24 * HOUR
        jumped = await summary(topics, f"schedule:{name}", lambda it: it["missed"] > 0)
        await until(lambda: len(starts(log, name)) > before, "it runs on")
        assert len(starts(log, name)) < before + 20, "no storm"
        assert jumped["missed"] >= 998
        clock.ahead_ms = 0
        there = len(starts(log, name))
        await until(lambda: len(starts(log, name)) > there + 1, "no stall")
        await tell(topics, SchedulePause(entity_id=f"schedule:{name}", command_id="stop"))


async def test_within_a_debounce_a_key_starts_once(topics: str, log: Book, tmp_path: Path) -> None:
    async with engine(topics, tmp_path):
        bounced = [a_name("bounced") + "-p1" for _ in range(5)]
        debounce = Debounce(key=bounced[0], seconds=60)
        await log.tell(*(started("quick", each, debounce=debounce, trigger={"due_ms": 1}) for each in bounced))
        after = a_name("after") + "-p1"
        await log.tell(started("quick", after, trigger={"due_ms": 1}))
        await log.ended(after)
    assert [each for each in bounced if each in log.histories] == bounced[:1]


async def test_dead_letters_are_found_and_sent_back_once(topics: str, log: Book, tmp_path: Path) -> None:
    broken = a_name("broken")
    index = LetterIndex(TopicReader(KafkaSettings(bootstrap_servers=topics)))
    wanted = WantedLetters(workflow="once-broken")
    async with engine(topics, tmp_path):
        await log.tell(started("once-broken", broken))
        assert (await log.ended(broken)).status == "failed"
        await tell(topics, ScheduleRunNow(entity_id="schedule:nobody", command_id="x"))
        async with asyncio.timeout(30):
            while len(list(index.find(WantedLetters()))) < 2:
                await index.refresh()
        (refused,) = index.find(WantedLetters(kind="command"))
        assert refused.detail == "There is no schedule nobody."
        assert orjson.loads(await index.original(refused) or b"")["type"] == "schedule_run_now"
        async with BatchProducer(ProducerLimits(topics)) as producer:
            for expected in ([SentBack(executions=1)], []):
                chosen = index.to_redrive(wanted)
                steps = redrive(index, producer, chosen, PARTITIONS, now_ms=lambda: int(time.time() * 1000))
                assert [done async for done in steps] == expected
                await index.refresh()
        assert (await log.ended(broken, runs=2)).status == "succeeded"
    assert [index.redriven(each.place) for each in index.find(wanted)] == [True]
