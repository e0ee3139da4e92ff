"""Part of the role `coordinator`: the topics that workflows listen to, and the schedules of their definitions."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from agents.definition_schedules import differences, wanted_schedules
from agents.triggers import Subscribed, Triggers, triggers
from app.adapters.definitions_feed import DefinitionsFeed
from app.adapters.expressions import CelExpressions
from app.adapters.faust_app import App, Delivered, running
from app.adapters.producer import BatchProducer
from app.adapters.topics_admin import describe_topics
from app.domain.watchdog import Progress
from app.domain.workflow.placement import partition_of
from app.domain.workflow.schedule import ScheduleDelete, SchedulePut
from app.errors import Unavailable
from app.http.health import Check
from app.ports import OutRecord
from app.roles.context import Context, first_of, raise_crash, stopped
from app.task_ends import Parts
from config.topics import DEVICE_SIGNALS, WORKFLOW_COMMANDS

log = logging.getLogger(__name__)

GROUP: Final = "triggers"
# A put that was sent is on its way through the engine to the summaries; so long it is not sent again.
SENT_S: Final = 30.0


class Latest:
    """What the newest definitions listen to (`agents.triggers.Subscriptions`), as of the last `refresh`."""

    def __init__(self, definitions: DefinitionsFeed) -> None:
        self._definitions = definitions
        self._by_topic: dict[str, list[Subscribed]] = {}

    def refresh(self) -> frozenset[str]:
        """Look at the definitions; the topics that any of them listens to. Signals name workflows themselves."""
        by_topic: dict[str, list[Subscribed]] = {DEVICE_SIGNALS.name: []}
        for name in self._definitions.workflows():
            workflow = self._definitions.latest(name)
            for topic in {} if workflow is None else dict.fromkeys(one.topic for one in workflow.topics):
                assert workflow is not None, "or it would listen to nothing"
                of_topic = tuple(one for one in workflow.topics if one.topic == topic)
                by_topic.setdefault(topic, []).append(Subscribed(workflow, of_topic, self._since_ms(name, topic)))
        self._by_topic = by_topic
        return frozenset(by_topic)

    def of_topic(self, topic: str) -> Sequence[Subscribed]:
        return self._by_topic.get(topic, ())

    def named(self, workflow: str) -> Subscribed | None:
        found = self._definitions.latest(workflow)
        return None if found is None else Subscribed(found, (), self._since_ms(workflow, None))

    def _since_ms(self, workflow: str, topic: str | None) -> int:
        """When a version that listens to the topic (None: any version) was first registered."""
        registered = [
            definition.registered_at
            for definition in self._definitions.versions(workflow)
            if topic is None or self._listens(workflow, definition.version, topic)
        ]
        return min(registered, default=0)

    def _listens(self, workflow: str, version: str, topic: str) -> bool:
        found = self._definitions.get(workflow, version)
        return found is not None and any(one.topic == topic for one in found.topics)


async def run_triggers(context: Context, definitions: DefinitionsFeed) -> None:
    """Follow the topics of the newest definitions until stop, and keep their schedules as they ask.

    (1) everything registered so far is known; (2) the group joins for the topics there are; (3) when they change it
    leaves and joins anew, from the committed offsets.
    """
    await definitions.caught_up()  # 1
    latest = Latest(definitions)
    async with context.producer(GROUP) as producer, Parts() as parts:
        partitions = await producer.partitions(WORKFLOW_COMMANDS.name)
        # What a debounce has decided it knows by the offsets of records: none may be passed over and a later one sent.
        for partition in range(partitions):
            producer.unbroken(WORKFLOW_COMMANDS.name, partition)
        workflow = context.settings.workflow
        retention_ms = round(workflow.retention_s * 1000)
        decider = Triggers(latest, CelExpressions(), context.clock, partitions, workflow.input_bytes, retention_ms)
        keeping = parts.create_task(
            _keep_schedules(context, definitions, producer, partitions), name="schedules of definitions"
        )
        try:
            while not context.stop.is_set():
                topics = await _existing(context, latest.refresh())
                await _follow(context, latest, topics, decider, producer)  # 2, 3
        finally:
            keeping.cancel()


async def _follow(
    context: Context, latest: Latest, topics: frozenset[str], decider: Triggers, producer: BatchProducer
) -> None:
    """Read the topics until others are wanted, or stop."""
    if not topics:  # no broker, or not one of them exists
        await _stopped_within(context, context.settings.triggers.refresh_interval_ms / 1000)
        return
    log.info(
        "workflows listen to %s",
        ", ".join(sorted(topics)),
        extra={"action": "trigger_topics", "topics": sorted(topics)},
    )
    app = context.faust_app(GROUP)
    settled = 0

    def count(records: int) -> None:
        nonlocal settled
        settled += records

    async def body(stream: Any) -> None:
        await triggers(
            _batches(stream),
            decide=decider.outputs,
            publisher=producer,
            in_flight=context.settings.triggers.batches_in_flight,
            on_settled=count,
        )

    app.add_agent(GROUP, sorted(topics), body)
    context.health.add(GROUP, lambda: _check(app, topics))
    context.health.watch(GROUP, lambda: Progress(sum(app.lags().values()), settled))
    try:
        async with running(app):
            crashing = asyncio.create_task(raise_crash(app), name="triggers crash")
            changing = asyncio.create_task(_changed(context, latest, topics), name="triggers change")
            await first_of(crashing, stopped(context.stop), changing)
    finally:
        context.health.remove(GROUP)
        context.health.unwatch(GROUP)


async def _batches(stream: Any) -> AsyncIterator[Delivered]:
    async for event in stream.noack().events():
        yield Delivered(event)


def _check(app: App, topics: frozenset[str]) -> Check:
    return Check(app.has_joined, f"{', '.join(sorted(topics))}; lag {sum(app.lags().values())}")


async def _changed(context: Context, latest: Latest, topics: frozenset[str]) -> None:
    """Return when the definitions want other topics than these, or one that was missing is there, or at stop."""
    settings = context.settings.triggers
    wanted = latest.refresh()
    looked_s = context.clock.monotonic_s()
    while not await _stopped_within(context, settings.refresh_interval_ms / 1000):
        if latest.refresh() != wanted:
            return
        if wanted != topics and context.clock.monotonic_s() - looked_s >= settings.topic_check_interval_s:
            looked_s = context.clock.monotonic_s()
            if await _existing(context, wanted) != topics:
                return


async def _existing(context: Context, wanted: frozenset[str]) -> frozenset[str]:
    """The topics that exist, none while the broker is away; a group for one that does not would read none of them."""
    try:
        states = await describe_topics(context.bootstrap, sorted(wanted), context.settings.kafka)
    except Unavailable:
        return frozenset()
    return frozenset(state.name for state in states)


async def _stopped_within(context: Context, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(context.stop.wait(), seconds)
    return context.stop.is_set()


# ---- schedules of definitions ----


async def _keep_schedules(
    context: Context, definitions: DefinitionsFeed, producer: BatchProducer, partitions: int
) -> None:
    sent: dict[tuple[str, bytes], float] = {}
    while True:
        workflows = (definitions.latest(name) for name in definitions.workflows())
        wanted = wanted_schedules(each for each in workflows if each is not None)
        now_s, now_ms = context.clock.monotonic_s(), context.clock.now_ms()
        sent = {what: at_s for what, at_s in sent.items() if now_s - at_s < SENT_S}
        commands = []
        for command in differences(wanted, _summaries(definitions), now_ms):
            what = (command.entity_id, _meaning(command))
            if what not in sent:
                sent[what] = now_s
                commands.append(_record(command, partitions, now_ms))
        if commands:
            await producer.publish(commands)
        if await _stopped_within(context, context.settings.triggers.refresh_interval_ms / 1000):
            return


def _summaries(definitions: DefinitionsFeed) -> Mapping[str, Mapping[str, Any]]:
    return definitions.entities("schedule")


def _meaning(command: SchedulePut | ScheduleDelete) -> bytes:
    return msgspec.json.encode(command.spec) if isinstance(command, SchedulePut) else b""


def _record(command: SchedulePut | ScheduleDelete, partitions: int, now_ms: int) -> OutRecord:
    return OutRecord(
        WORKFLOW_COMMANDS.name,
        command.entity_id.encode(),
        msgspec.json.encode(command),
        now_ms,
        (),
        partition_of(command.entity_id, partitions),
    )
