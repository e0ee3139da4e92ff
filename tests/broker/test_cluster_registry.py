"""Laws of the registry of nodes, on the real broker: who joins, who is refused, who is gone."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from app.adapters.clock import SystemClock
from app.cluster_registry import ClusterRegistry, NameTaken, OtherVersion
from app.cluster_wire import decode_node
from app.domain import membership
from app.domain.cluster import GroupSeat, NodeView, ProcessView
from config.cluster import ClusterSettings
from config.http import HttpSettings, ReadModelSettings
from config.kafka import KafkaSettings
from config.schemas import SCHEMAS
from config.settings import Settings
from config.topics import CLUSTER_MEMBERS
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import read_topic, until

pytestmark = pytest.mark.broker

EPOCH = 1_763_689_000_000


class AheadClock(SystemClock):
    """A wall clock that goes wrong by so much."""

    def __init__(self, ahead_ms: int = 0) -> None:
        self.ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def a_node(node_id: str, **fields: Any) -> NodeView:
    return NodeView(**{"node_id": node_id, "epoch": EPOCH, "version": "0.1.0", "state": "ready", **fields})


class Running:
    """A registry under test, and the task that runs it."""

    def __init__(self, registry: ClusterRegistry, task: "asyncio.Task[None]", stop: asyncio.Event) -> None:
        self.registry = registry
        self.task = task
        self.stop = stop

    async def joined(self) -> None:
        await until(lambda: self.registry.joined.is_set() or self.task.done(), "it joins or fails")
        if self.task.done():
            await self.task

    def standing(self, node_id: str) -> str:
        return membership.standing(self.registry.roster, node_id, self.registry._terms.silent_after_s)


class Members:
    """Nodes on one topic."""

    def __init__(self, bootstrap: str, new_topic: TopicFactory) -> None:
        spec = CLUSTER_MEMBERS
        self.topic = new_topic(partitions=1, **{"cleanup.policy": spec.cleanup, **spec.extra})
        self.bootstrap = bootstrap
        self.started: list[Running] = []

    def start(
        self,
        own: Callable[[], NodeView] | NodeView,
        clock: SystemClock | None = None,
        unreachable: Callable[[], tuple[str, ...]] = tuple,
        **terms: Any,
    ) -> Running:
        settings = Settings(
            kafka=KafkaSettings(bootstrap_servers=self.bootstrap, metadata_max_age_ms=1000),
            cluster=ClusterSettings(**{"join_wait_ms": 5_000, **terms}),
            http=HttpSettings(read_model=ReadModelSettings(retry_backoff_ms=50)),
        )
        say = (lambda: own) if isinstance(own, NodeView) else own
        registry = ClusterRegistry(settings, say, clock or SystemClock(), unreachable=unreachable, topic=self.topic)
        stop = asyncio.Event()
        running = Running(registry, asyncio.create_task(registry.run(stop)), stop)
        self.started.append(running)
        return running

    async def kill(self, running: Running) -> None:
        """Its end without a word."""
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)

    async def close(self) -> None:
        for running in self.started:
            running.stop.set()
        await asyncio.wait_for(asyncio.gather(*(running.task for running in self.started), return_exceptions=True), 20)


@pytest.fixture
async def members(broker: str, new_topic: TopicFactory) -> AsyncIterator[Members]:
    found = Members(broker, new_topic)
    yield found
    await found.close()


async def knows(running: Running, *node_ids: str) -> None:
    await until(lambda: set(running.registry.roster.members) == set(node_ids), f"it knows {node_ids}")


async def test_nodes_know_one_another_agree_who_leads_and_are_missed_when_they_leave(members: Members) -> None:
    one = members.start(a_node("one", epoch=EPOCH + 1))
    await one.joined()
    two = members.start(a_node("two", epoch=EPOCH + 2))
    await two.joined()
    three = members.start(a_node("three", epoch=EPOCH + 3))
    await three.joined()
    for each in (one, two, three):
        await knows(each, "one", "two", "three")
        assert each.registry.leader == "one"
        assert each.registry.check().ok
    one.stop.set()
    await asyncio.wait_for(one.task, 20)
    for each in (two, three):
        await knows(each, "two", "three")
        assert each.registry.leader == "two"


async def test_every_record_holds_to_the_schema(members: Members, broker: str) -> None:
    seat = GroupSeat("headrace-workflow", "member-1", 3, ("workflow.commands-0",), ("workflow.commands-1",))
    view = a_node("one", processes=(ProcessView("coordinator", 7, ready=True, seats=(seat,)),))
    one = members.start(view)
    await one.joined()
    one.stop.set()
    await asyncio.wait_for(one.task, 20)
    records = (await read_topic(broker, members.topic))[0]
    assert [record.key for record in records] == [b"one"] * len(records)
    validator = Draft202012Validator(SCHEMAS["cluster-member"])
    for record in records[:-1]:
        validator.validate(json.loads(record.value))
        assert decode_node(record.value).processes == view.processes
    assert records[-1].value is None, "who leaves in order has no value"


async def test_a_change_is_told_to_all(members: Members) -> None:
    now = [a_node("one", state="joining")]
    one = members.start(lambda: now[0])
    two = members.start(a_node("two"))
    await one.joined()
    await two.joined()
    await knows(two, "one", "two")
    assert two.standing("one") == "joining"
    assert two.registry.leader == "two", "who is ready leads before who joins"
    now[0] = a_node("one")
    one.registry.changed()
    await until(lambda: two.standing("one") == "ready", "the change is told")


async def test_the_second_node_of_a_name_is_refused_and_the_first_stays(members: Members) -> None:
    first = members.start(a_node("press", api="http://127.0.0.1:8080"))
    other = members.start(a_node("other"))
    await first.joined()
    await other.joined()
    second = members.start(a_node("press", epoch=EPOCH + 1_000))
    with pytest.raises(NameTaken, match=r"name press is in the cluster already \(http://127.0.0.1:8080\)"):
        await second.joined()
    assert NameTaken.exit_code == 2
    assert other.registry.roster.members["press"].view.epoch == EPOCH, "everybody knows the first"
    assert not first.task.done()
    assert not other.task.done()


async def test_a_node_that_was_killed_comes_back_under_its_name_even_with_a_clock_put_back(members: Members) -> None:
    first = members.start(a_node("press", epoch=EPOCH))
    watching = members.start(a_node("watching", epoch=EPOCH + 1))
    await first.joined()
    await watching.joined()
    await members.kill(first)
    again = members.start(a_node("press", epoch=EPOCH - 3_600_000), join_wait_ms=500)
    await again.joined()
    assert again.registry.epoch > EPOCH
    epoch = again.registry.epoch
    await until(lambda: watching.registry.roster.members["press"].view.epoch == epoch, "its later start counts")


async def test_who_wakes_up_after_its_name_was_taken_over_ends(members: Members) -> None:
    """Stopped (SIGSTOP) for so long that another was started in its place."""
    first = members.start(a_node("press", epoch=EPOCH), refresh_interval_s=60, silent_after_s=200)
    await first.joined()
    topic, unheard = first.registry._topic, list[tuple[str, NodeView | None]]()
    hear = topic._heard
    topic._heard = lambda *record: unheard.append(record)
    second = members.start(a_node("press", epoch=EPOCH + 1_000), join_wait_ms=300, refresh_interval_s=0.1)
    await second.joined()
    await until(lambda: any(view and "settled" in view.facts for _, view in unheard), "it has said that it stays")
    topic._heard = hear
    for record in unheard:
        hear(*record)
    with pytest.raises(NameTaken, match="A later start has taken the name press over"):
        await asyncio.wait_for(first.task, 20)
    assert not second.task.done()


async def test_another_major_version_is_refused_and_another_minor_one_joins_with_a_warning(
    members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    old = members.start(a_node("old", version="1.4.2"))
    await old.joined()
    newer = members.start(a_node("newer", version="2.0.0"))
    with pytest.raises(OtherVersion, match=r"This node is version 2.0.0, but node old is 1.4.2"):
        await newer.joined()
    await knows(old, "old")
    minor = members.start(a_node("minor", version="1.5.0"))
    await minor.joined()
    assert "node old is 1.4.2: finish the upgrade" in caplog.text
    assert minor.registry.check().ok
    assert "finish the upgrade" in minor.registry.check().detail
    allowed = members.start(a_node("allowed", version="2.0.0"), allow_version_mix=True)
    await allowed.joined()


async def test_a_killed_node_of_another_major_version_stands_in_nobodys_way(members: Members) -> None:
    old = members.start(a_node("old", version="1.4.2"))
    await old.joined()
    await members.kill(old)
    newer = members.start(a_node("newer", version="2.0.0"), join_wait_ms=300)
    await newer.joined()


async def test_a_silent_node_is_unreachable_then_forgotten(members: Members, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    terms: dict[str, Any] = {"refresh_interval_s": 0.2, "silent_after_s": 1.0, "forget_after_s": 2.0}
    one, two = members.start(a_node("one"), **terms), members.start(a_node("two"), **terms)
    await one.joined()
    await two.joined()
    await knows(one, "one", "two")
    await members.kill(two)
    await until(lambda: one.standing("two") == "unreachable", "two is silent")
    assert "not reached: two" in one.registry.check().detail
    assert one.registry.check().ok, "a node is ready without the others"
    await knows(one, "one")
    wanted = ["leads", "unreachable", "left"]
    await until(lambda: [event for event in _events(caplog) if event in wanted] == wanted, "the leader has told of it")


def _events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "event", "") for record in caplog.records]


async def test_who_is_said_to_be_unreachable_speaks_up(members: Members) -> None:
    away: list[str] = []
    one = members.start(a_node("one"), unreachable=lambda: tuple(away), refresh_interval_s=5)
    two = members.start(a_node("two"), refresh_interval_s=5)
    await one.joined()
    await two.joined()
    await knows(one, "one", "two")
    await knows(two, "one", "two")
    await members.kill(two)
    away.append("two")
    one.registry.changed()
    await until(lambda: one.standing("two") == "unreachable", "one is believed: two says nothing", 4)
    two = members.start(a_node("two", epoch=EPOCH + 1))
    await until(lambda: one.standing("two") == "ready", "two speaks, and that counts for more")


async def test_a_wrong_clock_is_warned_about_once_a_minute_and_said_by_health(
    members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    right = members.start(a_node("right"), refresh_interval_s=0.1, max_clock_skew_s=2)
    clock = AheadClock(3_600_000)
    wrong = members.start(a_node("wrong"), clock, refresh_interval_s=0.1, max_clock_skew_s=2)
    await right.joined()
    await wrong.joined()
    await until(lambda: "clock" in wrong.registry.check().detail, "it knows that its clock is wrong")
    assert re.search(r"3\d\d\d\.\d s ahead of the broker's", wrong.registry.check().detail)
    assert wrong.registry.check().ok, "it goes on"
    written = wrong.registry._said_s
    await until(lambda: wrong.registry._said_s > written + 0.5, "it has looked at its clock several times")
    warnings = [record for record in caplog.records if getattr(record, "action", "") == "clock_wrong"]
    assert sum("s ahead of the broker's" in record.getMessage() for record in warnings) == 1
    clock.ahead_ms = 0
    await until(lambda: "clock" not in wrong.registry.check().detail, "the clock was set")
