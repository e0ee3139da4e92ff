"""Laws of the transform stage: silence, switches and what could not be judged."""

import base64
from typing import Any

import orjson

from agents.transform import Terms, Transform
from app.codec import encode_sample
from app.domain.reading import Limits, Reading, Sample
from app.domain.window import RollupSpec
from app.metrics import REGISTRY
from app.ports import OutRecord
from app.rules import compile_section
from config.signals import SignalsSettings
from config.topics import DEVICE_DEADLETTER, DEVICE_SIGNALS, DEVICE_TELEMETRY
from tables.partition import Changes, TablePartition
from tests.helpers.streams import Record
from tests.helpers.tables import T0_MS, Disk, Log, LogPublisher, open_tables

SILENCE_MS = 30_000
RULES: list[dict[str, Any]] = [
    {"id": "silent", "kind": "silence", "duration_ms": SILENCE_MS},
    {"id": "hot", "kind": "threshold", "above": 80.0, "select": {"metric": "temperature"}},
]


def terms(rules: list[dict[str, Any]] | None = None, **changes: Any) -> Terms:
    ahead_ms = changes.pop("max_ahead_ms", 60_000)
    section = SignalsSettings.model_validate({"rules": RULES if rules is None else rules, "max_ahead_ms": ahead_ms})
    limits = changes.pop("limits", Limits())
    return Terms(limits, RollupSpec(), compile_section(section), 1_000, 100, **changes)


def a_record(offset: int, at_ms: int, value: float = 20.0, device_id: str = "press-0001", ahead_ms: int = 0) -> Record:
    readings = (Reading("temperature", value, "CEL", "GOOD", 0),)
    sample = Sample(device_id, 1, offset + 1, at_ms + ahead_ms, at_ms, False, readings)
    return Record(DEVICE_TELEMETRY.name, 0, offset, at_ms, device_id.encode(), encode_sample(sample))


class Scene:
    """One partition of the stage; `terms` are those in force."""

    def __init__(self, tables: TablePartition, in_force: Terms) -> None:
        self.tables = tables
        self.terms = in_force
        self.transform = Transform(tables, lambda: self.terms, T0_MS)

    @classmethod
    async def open(cls, in_force: Terms) -> "Scene":
        log = Log()
        tables, _ = await open_tables(log, Disk(), LogPublisher(log))
        return cls(tables, in_force)

    def reopen(self, now_ms: int) -> None:
        self.transform = Transform(self.tables, lambda: self.terms, now_ms)

    def take(self, *records: Record, behind: bool = False) -> list[dict[str, Any]]:
        return self._signals(self.transform.take(records, records[-1].timestamp, behind=behind))

    def tick(self, now_ms: int) -> list[dict[str, Any]]:
        return self._signals(self.transform.tick(now_ms))

    def _signals(self, changes: Changes | None) -> list[dict[str, Any]]:
        if changes is None:
            return []
        self.tables.write(changes, timestamp_ms=T0_MS)
        return [orjson.loads(out.value or b"") for out in outputs(changes, DEVICE_SIGNALS.name)]


def outputs(changes: Changes, topic: str) -> list[OutRecord]:
    return [out for out in changes.outputs if out.topic == topic]


async def test_a_silent_device_raises_a_signal_once_its_time_is_over() -> None:
    scene = await Scene.open(terms())
    scene.take(a_record(0, T0_MS))
    assert not scene.tick(T0_MS + SILENCE_MS - 1)
    (signal,) = scene.tick(T0_MS + SILENCE_MS + 1_000)
    assert (signal["rule"], signal["state"], signal["at"]) == ("silent", "raised", T0_MS + SILENCE_MS)


async def test_what_was_not_read_during_an_absence_is_no_silence() -> None:
    scene = await Scene.open(terms())
    scene.take(a_record(0, T0_MS))
    back_ms = T0_MS + 3_600_000
    scene.reopen(back_ms)
    assert not scene.tick(back_ms + 2_000), "what the device said meanwhile is still to be read"
    (signal,) = scene.tick(back_ms + SILENCE_MS + 2_000)
    assert signal["at"] == T0_MS + SILENCE_MS


async def test_a_partition_that_is_behind_calls_nobody_silent() -> None:
    scene = await Scene.open(terms())
    scene.take(a_record(0, T0_MS))
    later_ms = T0_MS + 2 * SILENCE_MS
    scene.take(a_record(1, later_ms, device_id="pump-0001"), behind=True)
    assert not scene.tick(later_ms + 5_000)


async def test_signals_that_are_off_look_at_nothing_and_keep_what_is_raised() -> None:
    scene = await Scene.open(terms())
    (raised,) = scene.take(a_record(0, T0_MS, 90.0))
    scene.terms = terms(signals_enabled=False)
    assert not scene.take(a_record(1, T0_MS + 1_000, 20.0))
    assert not scene.tick(T0_MS + 10 * SILENCE_MS)
    on_ms = T0_MS + 10 * SILENCE_MS
    scene.terms = terms()
    assert not scene.tick(on_ms + 2_000), "nobody listened, so that nobody was silent"
    (cleared,) = scene.take(a_record(2, on_ms + 3_000, 20.0))
    assert (cleared["signal_id"], cleared["state"]) == (raised["signal_id"], "cleared")


async def test_silence_is_looked_for_as_often_as_the_settings_say() -> None:
    scene = await Scene.open(terms(silence_tick_ms=60_000))
    scene.take(a_record(0, T0_MS))
    assert not scene.tick(T0_MS + 59_000)
    assert scene.tick(T0_MS + 60_000)


async def test_a_silent_device_hears_of_new_rules_and_of_rules_that_are_gone() -> None:
    scene = await Scene.open(terms([]))
    scene.take(a_record(0, T0_MS))
    assert not scene.tick(T0_MS + 2 * SILENCE_MS)
    scene.terms = terms()
    signals = [*scene.tick(T0_MS + 3 * SILENCE_MS), *scene.tick(T0_MS + 4 * SILENCE_MS)]
    assert [signal["state"] for signal in signals] == ["raised"]
    scene.terms = terms([])
    (cleared,) = scene.tick(T0_MS + 5 * SILENCE_MS)
    assert cleared["evidence"] == {"reason": "rule removed"}


async def test_what_no_rule_could_judge_is_counted() -> None:
    rules = [{"id": "odd", "kind": "condition", "condition": "10 / (seq - 2) > 100"}]
    scene = await Scene.open(terms(rules, max_ahead_ms=1_000))
    names = {"signal_rule_failures_total": {"rule": "odd"}, "signal_samples_ahead_total": {}}
    before = [_value(name, **labels) for name, labels in names.items()]
    scene.take(a_record(0, T0_MS), a_record(1, T0_MS + 1), a_record(2, T0_MS + 2, ahead_ms=5_000))
    assert [_value(name, **labels) for name, labels in names.items()] == [count + 1 for count in before]


async def test_a_stranger_is_a_dead_letter_where_the_registry_is_strict() -> None:
    limits = Limits(known_devices=frozenset({"pump-0001"}))
    scene = await Scene.open(terms(limits=limits))
    records = [a_record(0, T0_MS, device_id="pump-0001"), a_record(1, T0_MS)]
    changes = scene.transform.take(records, T0_MS, behind=False)
    (letter,) = outputs(changes, DEVICE_DEADLETTER.name)
    assert orjson.loads(letter.value or b"")["reason"] == "unknown_device"
    assert letter.key == b"press-0001"


async def test_a_record_with_a_huge_key_and_headers_becomes_a_letter_that_a_broker_takes() -> None:
    scene = await Scene.open(terms())
    headers = tuple((f"h{number}", b"x" * 50_000) for number in range(20))
    record = Record(DEVICE_TELEMETRY.name, 0, 0, T0_MS, b"k" * 900_000, b"not json", headers)
    (letter,) = outputs(scene.transform.take([record], T0_MS, behind=False), DEVICE_DEADLETTER.name)
    told = orjson.loads(letter.value or b"")
    assert len(letter.value or b"") + len(letter.key or b"") < 64_000
    assert told["truncated"]
    assert base64.b64decode(told["original"]) == b"not json"


def _value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0
