"""Laws of Kafka triggers: one id for a record and a workflow, and no record stops the others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.triggers import Decided, Subscribed, Triggers, record_id, triggers
from app import metrics
from app.domain.workflow.definition import Concurrency, Rate, TopicTrigger, Workflow
from app.domain.workflow.expressions import ExpressionError
from app.domain.workflow.placement import partition_of
from app.ports import InRecord, OutRecord
from app.workflow_wire import decode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER
from tests.helpers.kafka import until
from tests.helpers.workflow_time import Paths, a_workflow

NOW = 1_763_689_000_000
SIGNALS = "device.signals"


class Record(NamedTuple):
    value: bytes | None
    offset: int = 42
    partition: int = 3
    topic: str = SIGNALS
    timestamp: int = NOW
    key: bytes | None = b"press-1"
    headers: Sequence[tuple[str, bytes]] = ()


class StillClock:
    def now_ms(self) -> int:
        return NOW

    def monotonic_s(self) -> float:
        return 0.0


class Listening:
    """Subscriptions of workflows that are simply there."""

    def __init__(self, *workflows: Workflow, since_ms: int = 0) -> None:
        self._all = [Subscribed(each, each.topics, since_ms) for each in workflows]

    def of_topic(self, topic: str) -> Sequence[Subscribed]:
        return [each for each in self._all if any(one.topic == topic for one in each.triggers)]

    def named(self, workflow: str) -> Subscribed | None:
        return next((each for each in self._all if each.workflow.id == workflow), None)


def a_signal(device: str = "press-1", severity: str = "critical", **more: Any) -> bytes:
    return orjson.dumps({"device_id": device, "severity": severity, "state": "raised", "trigger": None, **more})


def listens(workflow: str = "w", concurrency: Concurrency | None = None, **trigger: Any) -> Workflow:
    return a_workflow(workflow, concurrency=concurrency, topics=(TopicTrigger(topic=SIGNALS, **trigger),))


def decided(*workflows: Workflow, records: Sequence[InRecord], since_ms: int = 0, **limits: int) -> Decided:
    return _triggers(*workflows, since_ms=since_ms, **limits).decide(records, NOW)


def _triggers(*workflows: Workflow, since_ms: int = 0, **limits: int) -> Triggers:
    return Triggers(Listening(*workflows, since_ms=since_ms), Paths(), StillClock(), 4, **limits)


def letters(found: Decided) -> list[tuple[str, str | None]]:
    documents = [orjson.loads(each.value or b"") for each in found.letters]
    return [(each["reason"], each["workflow"]) for each in documents]


def test_a_record_starts_each_workflow_that_listens_under_an_id_of_its_own() -> None:
    record = Record(a_signal())
    alone = decided(listens("a"), records=[record])
    both = decided(listens("a"), listens("b"), records=[record])
    assert [start.execution_id for start in alone.starts] == ["a:device.signals-3-42"]
    assert [start.execution_id for start in both.starts] == ["a:device.signals-3-42", "b:device.signals-3-42"]
    assert all(partition_of(start.execution_id, 4) == 3 for start in both.starts), "on the partition of its record"


@given(st.permutations([listens("a"), listens("b"), listens("a.b")]))
def test_ids_do_not_depend_on_who_else_listens(workflows: list[Workflow]) -> None:
    found = decided(*workflows, records=[Record(a_signal())])
    assert {start.workflow: start.execution_id for start in found.starts} == {
        name: f"{name}:device.signals-3-42" for name in ("a", "b", "a.b")
    }


def test_the_record_is_the_input_or_what_the_trigger_maps() -> None:
    (whole,) = decided(listens(), records=[Record(a_signal())]).starts
    assert whole.input["device_id"] == "press-1"
    assert whole.trigger == {
        "kind": "kafka",
        "topic": SIGNALS,
        "partition": 3,
        "offset": 42,
        "timestamp_ms": NOW,
        "key": "press-1",
    }
    (mapped,) = decided(
        listens(input={"device": "device_id", "all": "record.severity"}), records=[Record(a_signal())]
    ).starts
    assert mapped.input == {"device": "press-1", "all": "critical"}


def test_only_what_the_condition_wants_starts_and_a_condition_that_fails_starts_nothing() -> None:
    records = [Record(a_signal(severity=each)) for each in ("critical", "warning")]
    assert len(decided(listens(when="severity == critical"), records=records).starts) == 1
    failing = decided(listens(when="nothing == critical"), listens("b"), records=records)
    assert [start.workflow for start in failing.starts] == ["b", "b"]
    assert failing.letters == []
    assert decided(listens(when="severity"), records=records).starts == [], "only true is true"


def test_a_workflow_with_several_triggers_starts_once_a_record() -> None:
    workflow = a_workflow(
        topics=(TopicTrigger(topic=SIGNALS), TopicTrigger(topic=SIGNALS, input={"device": "device_id"}))
    )
    assert len(decided(workflow, records=[Record(a_signal())]).starts) == 1


def test_what_is_limited_or_debounced_by_a_key_lives_together() -> None:
    limited = listens("limited", Concurrency(key="input.device_id"))
    debounced = listens("debounced", key="device_id", debounce_s=30)
    for workflow in (limited, debounced):
        found = decided(workflow, records=[Record(a_signal(), offset=n, partition=n) for n in range(4)])
        assert len({partition_of(start.execution_id, 4) for start in found.starts}) == 1
        assert len({start.execution_id for start in found.starts}) == 4
    (start,) = decided(debounced, records=[Record(a_signal())]).starts
    assert start.debounce is not None
    assert (start.debounce.key, start.debounce.seconds) == ("debounced/press-1", 30)


def test_the_trigger_a_signal_carries_starts_its_workflow_once_and_with_its_input() -> None:
    own = {"workflow": "w", "input": {"device": "x"}, "key": "press-1", "debounce_s": 5, "concurrency": 1}
    workflow = listens("w", Concurrency())
    (start,) = decided(workflow, records=[Record(a_signal(trigger=own))]).starts
    assert (start.input, start.key) == ({"device": "x"}, "press-1")
    assert start.debounce is not None
    assert start.debounce.seconds == 5
    unknown = decided(workflow, records=[Record(a_signal(trigger=own | {"workflow": "none"}))])
    assert letters(unknown) == [("unknown_workflow", "none")]
    assert [each.workflow for each in unknown.starts] == ["w"], "by its own trigger of the topic"


def test_the_limit_a_signal_carries_goes_with_its_start_where_the_definition_has_none() -> None:
    own = {"workflow": "w", "input": {}, "key": "press-1", "debounce_s": 0, "concurrency": 2}
    records = [Record(a_signal(trigger=own), offset=n, partition=n) for n in range(4)]
    starts = decided(listens("w"), records=records).starts
    assert {(start.key, start.trigger["concurrency"]) for start in starts} == {("press-1", 2)}
    assert len({partition_of(start.execution_id, 4) for start in starts}) == 1, "they are counted together"
    (start,) = decided(listens("w", Concurrency()), records=records[:1]).starts
    assert (start.key, "concurrency" in start.trigger) == ("press-1", False)
    (start,) = decided(a_workflow("w", rate=Rate(limit=1, per_s=1)), records=records[:1]).starts
    assert (start.key, "concurrency" in start.trigger) == (None, False)
    (start,) = decided(listens("w"), records=[Record(a_signal(trigger=own | {"concurrency": None}))]).starts
    assert (start.key, "concurrency" in start.trigger) == (None, False)


@pytest.mark.parametrize("said", [0, -1, 10_001, "2", 1.5, True, [1]])
def test_a_limit_that_is_none_is_a_dead_letter_that_says_so(said: object) -> None:
    own = {"workflow": "w", "input": {}, "key": "press-1", "debounce_s": 0, "concurrency": said}
    found = decided(listens("w"), records=[Record(a_signal(trigger=own))])
    assert letters(found) == [("no_start", "w")]
    assert "whole number from 1 to 10,000" in orjson.loads(found.letters[0].value or b"")["detail"]


def test_a_debounce_counts_in_the_time_of_its_record_and_names_it() -> None:
    (start,) = decided(listens(debounce_s=30), records=[Record(a_signal(), timestamp=NOW - 5_000)]).starts
    debounce = start.debounce
    assert debounce is not None
    assert (debounce.at_ms, debounce.source, debounce.offset) == (NOW - 5_000, "device.signals-3", 42)
    (undated,) = decided(listens(debounce_s=30), records=[Record(a_signal(), timestamp=-1)], since_ms=-1).starts
    assert undated.debounce is not None
    assert undated.debounce.at_ms == 0


def test_records_older_than_executions_are_kept_start_what_they_want_and_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def count() -> float:
        return metrics.WORKFLOW_TRIGGER_LATE.labels(SIGNALS)._value.get()

    before = count()
    deciding = _triggers(listens(), retention_ms=1_000)
    records = [Record(a_signal(), offset=n, timestamp=NOW - age) for n, age in enumerate((1_002, 1_001, 1_000, 0))]
    with caplog.at_level("WARNING"):
        starts = [*deciding.decide(records, NOW).starts, *deciding.decide(records, NOW).starts]
    assert len(starts) == 8
    assert count() - before == 4
    assert [each.action for each in caplog.records] == ["trigger_records_late"], "once a minute"  # type: ignore[attr-defined]


def test_records_from_before_a_workflow_was_registered_start_nothing() -> None:
    old, new = Record(a_signal(), timestamp=NOW - 1), Record(a_signal(), offset=43)
    found = decided(listens(), records=[old, new], since_ms=NOW)
    assert [start.execution_id for start in found.starts] == ["w:device.signals-3-43"]


def test_what_cannot_be_used_is_a_dead_letter_and_the_rest_goes_on() -> None:
    records = [Record(b"{oops"), Record(b"\xff"), Record(None), Record(a_signal(), offset=43)]
    found = decided(listens(), records=records)
    assert letters(found) == [("malformed_json", None)] * 2
    assert [start.execution_id for start in found.starts] == ["w:device.signals-3-43"]
    missing = decided(listens(input={"x": "no.such"}), listens("b"), records=records[3:])
    assert letters(missing) == [("no_start", "w")]
    assert [start.workflow for start in missing.starts] == ["b"]
    assert letters(decided(listens(), records=records[3:], input_bytes=10)) == [("no_start", "w")]


def test_what_is_nested_too_deep_is_a_dead_letter_and_no_end_of_the_engine() -> None:
    deep = a_signal(more=None)[:-1] + b',"deep":' + b"[" * 300 + b"]" * 300 + b"}"
    wide = listens("wide", input={"n": "record.n * 1000000000 * 1000000000 * 10"})
    assert letters(decided(listens(), records=[Record(value=deep)])) == [("too_deep", None)]
    (found,) = letters(decided(wide, records=[Record(value=a_signal(n=10))]))
    assert found == ("no_start", "wide")


@pytest.mark.parametrize(
    "value", [b"1", b"null", b'"text"', b"[1, 2]", b'{"trigger": 7}', b'{"trigger": {"workflow": 1}}']
)
def test_any_json_may_start_a_workflow(value: bytes) -> None:
    (start,) = decided(listens(), records=[Record(value)]).starts
    assert start.input == orjson.loads(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_start_or_a_dead_letter(value: bytes) -> None:
    found = decided(listens(), records=[Record(value)])
    assert len(found.starts) + len(found.letters) == 1


def test_a_workflow_whose_ids_would_be_those_of_entities_is_refused() -> None:
    with pytest.raises(ExpressionError):
        record_id("schedule", Record(b""))


class Publisher:
    """Acknowledges when it is told to."""

    def __init__(self) -> None:
        self.sent: list[OutRecord] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def publish(self, records: Sequence[OutRecord]) -> None:
        self.sent += records
        await self.go.wait()
        if self.error is not None:
            raise self.error

    def last_offset(self, topic: str, partition: int) -> int | None:
        raise AssertionError("not asked")


class Batch:
    def __init__(self, *records: InRecord) -> None:
        self.topic, self.partition, self.records = SIGNALS, 3, records
        self.highwater: int | None = None
        self.acknowledged = False

    def ack(self) -> None:
        self.acknowledged = True


async def _given(batches: Sequence[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch


async def test_a_batch_is_acknowledged_only_after_its_starts_are() -> None:
    publisher = Publisher()
    batches = [Batch(Record(a_signal())), Batch(Record(a_signal(severity="none"), offset=43)), Batch(Record(b"oops"))]
    decide = _triggers(listens(when="severity == critical")).outputs
    settled: list[int] = []
    running = asyncio.create_task(
        triggers(_given(batches), decide=decide, publisher=publisher, on_settled=settled.append)
    )
    await until(lambda: len(publisher.sent) == 2, "both batches with outputs are on their way")
    assert [batch.acknowledged for batch in batches] == [False, True, False]
    assert settled == [1], "what the watchdog takes for progress is acknowledged"
    publisher.go.set()
    await running
    assert all(batch.acknowledged for batch in batches)
    assert settled == [1, 1, 1]
    start, letter = publisher.sent
    assert (start.topic, letter.topic) == (WORKFLOW_COMMANDS.name, WORKFLOW_DEADLETTER.name)
    assert decode_command(start.value).execution_id == "w:device.signals-3-42"


async def test_a_batch_whose_starts_fail_to_be_published_is_not_acknowledged() -> None:
    publisher = Publisher()
    publisher.error = ValueError("no")
    publisher.go.set()
    batch = Batch(Record(a_signal()))
    with pytest.raises(ExceptionGroup):
        await triggers(_given([batch]), decide=_triggers(listens()).outputs, publisher=publisher)
    assert not batch.acknowledged
