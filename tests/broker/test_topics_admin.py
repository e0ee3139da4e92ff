"""Laws of declaring topics on a real broker."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from app.adapters import topics_admin
from app.errors import BrokerUnavailable, EnvironmentError_
from config.kafka import KafkaSettings
from config.topics import TopicSpec
from tests.helpers.broker import TopicFactory

pytestmark = pytest.mark.broker


def a_spec(**over: object) -> TopicSpec:
    spec = TopicSpec(f"test-{uuid.uuid4().hex[:12]}", "k", "s", "delete", 60_000, 3, {"segment.bytes": "1048576"})
    return replace(spec, **over)  # type: ignore[arg-type]


async def test_missing_topic_is_created_as_declared(broker: str) -> None:
    spec = a_spec()
    assert await topics_admin.ensure_topics(broker, [spec]) == []
    (state,) = await topics_admin.describe_topics(broker, [spec.name])
    assert (state.partitions, state.leaderless) == (3, 0)
    assert state.configs["retention.ms"] == "60000"
    assert state.configs["segment.bytes"] == "1048576"
    await topics_admin.delete_topics(broker, [spec.name])


async def test_existing_topic_that_differs_is_reported_and_left_alone(broker: str) -> None:
    spec = a_spec()
    await topics_admin.ensure_topics(broker, [spec])
    other = replace(spec, partitions=5, cleanup="compact", retention_ms=1, extra={"segment.bytes": "2097152"})
    differences = await topics_admin.ensure_topics(broker, [other])
    assert {one.setting for one in differences} == {"partitions", "cleanup.policy", "segment.bytes"}
    assert str(differences[0]) == f"topic {spec.name}: partitions is 3, declared is 5"
    assert await topics_admin.ensure_topics(broker, [spec]) == []
    await topics_admin.delete_topics(broker, [spec.name])


async def test_retention_counts_only_where_records_are_deleted(broker: str) -> None:
    spec = a_spec(cleanup="compact,delete")
    await topics_admin.ensure_topics(broker, [spec])
    swapped = await topics_admin.ensure_topics(broker, [replace(spec, cleanup="compact,delete", retention_ms=5)])
    assert [one.setting for one in swapped] == ["retention.ms"]
    await topics_admin.delete_topics(broker, [spec.name])


async def test_partitions_of_the_setting_are_used_where_the_topic_names_none(broker: str) -> None:
    spec = a_spec(partitions=None)
    assert await topics_admin.ensure_topics(broker, [spec], KafkaSettings(partitions=2)) == []
    assert (await topics_admin.describe_topics(broker, [spec.name]))[0].partitions == 2
    await topics_admin.delete_topics(broker, [spec.name])


class _AskedAhead(AIOKafkaAdminClient):  # type: ignore[misc]
    """Its list of topics is that of a broker which knows one more than the broker that is asked for settings."""

    ahead = a_spec().name

    async def describe_topics(self, topics: list[str] | None = None) -> list[Any]:
        described: list[Any] = await super().describe_topics(topics)
        return [*described, {"topic": self.ahead, "error_code": 0, "is_internal": False, "partitions": []}]


async def test_topic_that_only_some_brokers_know_has_no_settings_yet(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on three nodes: a topic of a moment ago was called one without any of its settings."""
    monkeypatch.setattr(topics_admin, "AIOKafkaAdminClient", _AskedAhead)
    assert await topics_admin.describe_topics(broker, [_AskedAhead.ahead]) == []


async def test_topic_that_not_all_brokers_come_to_know_is_one_sentence(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics_admin, "AIOKafkaAdminClient", _AskedAhead)
    spec = replace(a_spec(), name=_AskedAhead.ahead)
    with pytest.raises(BrokerUnavailable, match=rf"{spec.name} .*see whether each of them runs"):
        await topics_admin.ensure_topics(broker, [spec], KafkaSettings(request_timeout_ms=1_000))


async def test_topic_the_broker_refuses_is_one_sentence(broker: str) -> None:
    with pytest.raises(EnvironmentError_, match=r"The broker does not create topic .*replication"):
        await topics_admin.ensure_topics(broker, [a_spec()], KafkaSettings(replication_factor=9))


async def test_absent_topic_is_left_out(broker: str) -> None:
    assert await topics_admin.describe_topics(broker, ["test-never-made"]) == []
    await topics_admin.delete_topics(broker, ["test-never-made"])


def test_factory_makes_topics_of_random_names(broker: str, new_topic: TopicFactory) -> None:
    assert new_topic() != new_topic(partitions=1, cleanup_policy="compact")


async def test_absent_broker_is_one_sentence_after_the_deadline() -> None:
    with pytest.raises(BrokerUnavailable, match=r"No Kafka broker answers at 127\.0\.0\.1:1 after 0\.1 s"):
        await topics_admin.wait_for_broker("127.0.0.1:1", 0.1)


async def test_wait_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="app.adapters.topics_admin")
    with pytest.raises(BrokerUnavailable):
        await topics_admin.wait_for_broker("127.0.0.1:1", 2.2)
    assert [getattr(one, "action", "") for one in caplog.records] == ["broker_awaited"]
