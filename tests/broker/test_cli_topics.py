"""Laws of `headrace topics`, `score topics` and the broker's part of `doctor` on a real broker."""

import asyncio

import pytest

from app.adapters.broker_probe import clock_offset
from app.adapters.clock import SystemClock
from app.adapters.topics_admin import describe_topics, ensure_topics
from app.codec import encode_truth
from app.doctor import clock_finding
from app.domain.faults import Fault
from app.ports import OutRecord
from config.kafka import KafkaSettings
from config.settings import Settings
from config.topics import ALL_TOPICS, DEVICE_LATE, DEVICE_TRUTH, TopicSpec
from tests.helpers.cli import Headrace
from tests.helpers.records import send

pytestmark = pytest.mark.broker


def test_topics_are_created_once_and_what_differs_is_told(headrace: Headrace) -> None:
    other = TopicSpec(DEVICE_LATE.name, "", "", cleanup="compact", partitions=2)
    asyncio.run(ensure_topics(headrace.bootstrap, [other]))
    missing = headrace("topics", "check", "--json")
    assert missing.code == 1
    assert set(missing.json["missing"]) == {spec.name for spec in ALL_TOPICS} - {DEVICE_LATE.name}
    made = headrace("topics", "declare", "--json")
    assert made.code == 1, "one is not as declared"
    assert set(made.json["created"]) == set(missing.json["missing"])
    again = headrace("topics", "declare")
    assert again.code == 1
    assert "Every topic was there already." in again.out
    assert f"topic {DEVICE_LATE.name}: partitions is 2, declared is 4" in again.out
    differing = headrace("topics", "check", "--json").json["differences"]
    assert {each["topic"] for each in differing} == {DEVICE_LATE.name}
    listed = {row["topic"]: row for row in headrace("topics", "list", "--json").json}
    assert (listed[DEVICE_LATE.name]["partitions"], listed[DEVICE_LATE.name]["cleanup"]) == (2, "compact")
    table = headrace("topics", "list").out
    assert all(spec.name in table for spec in ALL_TOPICS)


def test_truth_without_signals_has_no_recall(headrace: Headrace) -> None:
    now_ms = SystemClock().now_ms()
    fault = encode_truth(Fault("f1", "press-0001", "spike", None, now_ms, now_ms + 1, 1.0, 1))
    asyncio.run(send(headrace.bootstrap, [OutRecord(DEVICE_TRUTH.name, b"press-0001", fault, now_ms)]))
    total = headrace("score", "topics", "--since", "5m", "--json").json["total"]
    assert (total["intervals"], total["detected"], total["precision"]) == (1, 0, None)
    assert headrace("score", "topics", "--until", "5m", "--json").json["total"]["intervals"] == 0


def test_the_doctor_follows_what_the_broker_advertises(headrace: Headrace) -> None:
    findings = headrace("doctor", "--json").json["findings"]
    assert {
        each["subject"]: each["status"] for each in findings if each["subject"] in {"broker", "advertised", "clock"}
    } == {
        "broker": "ok",
        "advertised": "ok",
        "clock": "ok",
    }


async def test_clocks_are_compared_and_nothing_is_left_behind(module_broker: str) -> None:
    kafka = KafkaSettings(bootstrap_servers=module_broker)
    found = await clock_offset(kafka)
    assert abs(found.offset_ms) <= found.uncertainty_ms + 5, "it is the same clock"
    assert (await clock_finding(Settings(kafka=kafka.model_dump()))).status == "ok"
    left = [state.name for state in await describe_topics(module_broker) if state.name.startswith("headrace.doctor")]
    assert left == []
