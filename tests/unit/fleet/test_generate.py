"""Laws of the generating loop: open, honest about lateness, and with every sample accounted for."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.generate import START_AFTER_MS, GenerateLimits, commands, fleet_of, generate, limits_of
from agents.ledger import Books
from app.codec import encode_command, encode_sample
from app.domain.fleet import Fleet
from app.ports import OutRecord
from config.device import DeviceSettings
from tests.helpers.fleet import T0, ManualClock, RoomySender, a_command, a_fleet, an_injection, pausing

TELEMETRY, TRUTH, METADATA = "device.telemetry", "device.truth", "device.metadata"
START = T0 + START_AFTER_MS
LIMITS = GenerateLimits(
    tick_ms=5,
    max_tick_samples=1000,
    when_full="delay",
    max_catch_up_ms=30_000,
    sample_interval_ms=1000,
    data_variation=0.1,
    drain_ms=100,
)


class Scene:
    """A loop run to its end over a manual clock; `each` is done at every pause."""

    def __init__(self, fleet: Fleet | None = None, limits: GenerateLimits = LIMITS, room: int = 1 << 30) -> None:
        self.fleet = fleet or a_fleet()
        self.limits = limits
        self.clock = ManualClock()
        self.sender = RoomySender(room)
        self.books = Books(TELEMETRY)
        self.stop = asyncio.Event()
        self.each: Any = None

    async def run(self, until_ms: int) -> "Scene":
        pause = pausing(self.clock, self.stop, until_ms, self.each)
        await generate(self.fleet, self.sender, self.clock, self.books, lambda: self.limits, self.stop, pause)
        return self

    def telemetry(self) -> list[Any]:
        return [each.json for each in self.sender.of(TELEMETRY)]

    def assert_accounted(self) -> None:
        self.sender.acknowledge(self.books)
        assert self.books.balances(0)
        assert self.books.ledger.in_flight == 0


async def test_every_sample_is_sent_at_its_instant_with_its_own_time() -> None:
    scene = await Scene().run(START + 10_000)
    sent = scene.sender.of(TELEMETRY)
    assert len(sent) == 120
    for each in sent:
        assert each.intended_ms == each.timestamp_ms == each.json["source_timestamp"]
        assert each.key == each.json["device_id"].encode()
        assert 0 <= each.json["recorded_timestamp"] - each.json["source_timestamp"] <= LIMITS.tick_ms
    assert scene.books.ledger.generated == 120
    scene.assert_accounted()


async def test_every_device_is_made_known_and_says_goodbye() -> None:
    scene = await Scene().run(START + 1_000)
    states = [each.json["state"] for each in scene.sender.of(METADATA)]
    assert states == ["ONLINE"] * 12 + ["OFFLINE"] * 12


async def test_a_slow_tick_moves_no_instant() -> None:
    on_time, slow = Scene(a_fleet()), Scene(a_fleet(), LIMITS._replace(tick_ms=777))
    await on_time.run(START + 10_000)
    await slow.run(START + 10_000)
    instants = [each.intended_ms for each in on_time.sender.of(TELEMETRY)]
    assert len(instants) >= 120
    assert [each.intended_ms for each in slow.sender.of(TELEMETRY)][: len(instants)] == instants


async def test_a_tick_makes_no_more_than_its_limit_and_goes_on_at_once() -> None:
    scene = Scene(a_fleet(100), LIMITS._replace(tick_ms=1000, max_tick_samples=7))
    per_tick = []
    scene.each = lambda: per_tick.append(len(scene.sender.of(TELEMETRY)))
    await scene.run(START + 5_000)
    steps = {b - a for a, b in itertools.pairwise(per_tick)}
    assert max(steps) == 7
    assert len({each.intended_ms for each in scene.sender.of(TELEMETRY)}) >= 480


async def test_delay_keeps_what_a_stalled_producer_refused_and_sends_it_late_with_its_own_time() -> None:
    scene = Scene()

    def stall() -> None:
        scene.sender.room = 0 if START + 2_000 <= scene.clock.at_ms < START + 8_000 else 1 << 30
        assert scene.books.imbalance == 0, "at every instant, what waits included"

    scene.each = stall
    await scene.run(START + 10_000)
    smooth = await Scene().run(START + 10_000)

    def facts(of: Scene) -> list[Any]:
        return [each | {"recorded_timestamp": 0} for each in of.telemetry()]

    assert facts(scene) == facts(smooth)
    late = [each for each in scene.telemetry() if each["recorded_timestamp"] - each["source_timestamp"] > 1_000]
    assert len(late) > 40
    assert not scene.books.ledger.dropped
    scene.assert_accounted()


async def test_beyond_the_catch_up_samples_are_dropped_and_counted_and_leave_a_gap() -> None:
    scene = Scene(limits=LIMITS._replace(max_catch_up_ms=2_000))

    def stall() -> None:
        scene.sender.room = 0 if START + 2_000 <= scene.clock.at_ms < START + 12_000 else 1 << 30

    scene.each = stall
    await scene.run(START + 15_000)
    dropped = scene.books.ledger.dropped["catch_up"]
    assert 12 * 7 <= dropped <= 12 * 9
    assert len(scene.telemetry()) + dropped == scene.books.ledger.generated == 180
    assert max(each["seq"] for each in scene.telemetry()) == 15
    scene.assert_accounted()


async def test_drop_gives_up_at_once_what_there_is_no_room_for() -> None:
    scene = Scene(limits=LIMITS._replace(when_full="drop"))

    def stall() -> None:
        scene.sender.room = 0 if START + 2_000 <= scene.clock.at_ms < START + 4_000 else 1 << 30

    scene.each = stall
    await scene.run(START + 10_000)
    assert scene.books.ledger.dropped == {"buffer_full": 24}
    assert all(each["recorded_timestamp"] - each["source_timestamp"] <= 10 for each in scene.telemetry())
    scene.assert_accounted()


async def test_truth_and_metadata_are_never_dropped_for_want_of_room() -> None:
    scene = Scene(limits=LIMITS._replace(when_full="drop"), room=0)

    def refill() -> None:
        if scene.clock.at_ms == START:
            scene.fleet.apply(an_injection("spike", "press-0001", duration_ms=1_000), START)
        if scene.clock.at_ms >= START + 5_000:
            scene.sender.room = 1 << 30

    scene.each = refill
    await scene.run(START + 6_000)
    assert [each.json["to_ts"] for each in scene.sender.of(TRUTH)] == [None, START + 1_000]
    assert len(scene.sender.of(METADATA)) == 24


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60),
    st.sampled_from(["delay", "drop"]),
    st.integers(0, 3_000),
    st.integers(1, 40),
)
def test_the_ledger_balances_at_every_moment_whatever_room_there_is(
    rooms: list[int], when_full: Any, max_catch_up_ms: int, max_tick_samples: int
) -> None:
    async def play() -> None:
        limits = LIMITS._replace(
            when_full=when_full, max_catch_up_ms=max_catch_up_ms, tick_ms=97, max_tick_samples=max_tick_samples
        )
        scene = Scene(limits=limits)
        left = list(rooms)

        def squeeze() -> None:
            scene.sender.room = left.pop() if left else 1 << 30
            waiting = scene.books.ledger.generated - len(scene.sender.of(TELEMETRY))
            waiting -= sum(scene.books.ledger.dropped.values())
            assert scene.books.balances(waiting)
            assert 0 <= waiting <= max_tick_samples

        scene.each = squeeze
        await scene.run(START + 8_000)
        scene.assert_accounted()

    asyncio.run(play())


async def test_stopping_gives_up_after_its_time_and_counts_what_it_could_not_send() -> None:
    scene = Scene(room=0)
    await scene.run(START + 1_000)
    assert scene.sender.sent == []
    assert sum(scene.books.ledger.dropped.values()) == scene.books.ledger.generated > 0
    assert scene.clock.at_ms < START + 1_000 + 2 * LIMITS.drain_ms
    assert "stopped" in scene.books.ledger.dropped


async def test_stopping_sends_what_a_fault_held_back() -> None:
    scene = Scene()
    scene.each = lambda: (
        scene.fleet.apply(an_injection("burst", "press-0001"), START) if scene.clock.at_ms == START else None
    )
    await scene.run(START + 5_000)
    numbers = [each["seq"] for each in scene.telemetry() if each["device_id"] == "press-0001"]
    assert numbers == [1, 2, 3, 4, 5]
    assert [each.json["to_ts"] is None for each in scene.sender.of(TRUTH)] == [True, False]
    scene.assert_accounted()


async def test_limits_changed_while_running_retune_the_fleet() -> None:
    scene = Scene()

    def reload() -> None:
        if scene.clock.at_ms >= START + 5_000:
            scene.limits = LIMITS._replace(sample_interval_ms=100)

    scene.each = reload
    await scene.run(START + 10_000)
    assert abs(len(scene.telemetry()) - (60 + 600)) <= 12


async def test_headers_are_cloudevents_when_they_are_on() -> None:
    scene = await Scene(limits=LIMITS._replace(cloudevents_headers=True)).run(START + 1_000)
    sent = scene.sender.of(TELEMETRY)[0]
    headers = dict(sent.headers)
    assert headers["ce_id"] == f"{sent.json['device_id']}:{sent.json['session_id']}:{sent.json['seq']}".encode()
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_source"].startswith(b"urn:plant:plant-")
    assert headers["ce_time"] == b"2025-11-21T01:36:40.250Z"
    off = await Scene().run(START + 1_000)
    assert {tuple(each.headers) for each in off.sender.sent} == {()}


def test_a_value_that_is_no_number_leaves_as_null() -> None:
    fleet = a_fleet()
    fleet.start(T0)
    sample = fleet.due(T0 + 1_000)[0].sample
    broken = sample._replace(metrics=(sample.metrics[0]._replace(value=float("nan")),))
    assert orjson.loads(encode_sample(broken))["metrics"][0]["value"] is None


def test_settings_make_the_fleet_and_its_limits() -> None:
    settings = DeviceSettings(count=30, sample_interval_ms=200, seed=9, fault_interval_ms=0, mix={"pump": 1})
    fleet = fleet_of(settings)
    assert len(fleet.devices) == 30
    assert {device.device_type for device in fleet.devices} == {"pump"}
    assert fleet.rules.plan is None
    assert fleet_of(DeviceSettings()).rules.plan is not None
    assert limits_of(settings, with_headers=True).cloudevents_headers
    assert limits_of(settings).sample_interval_ms == 200


@pytest.mark.parametrize("wrong", [{"mix": {"press": 0}}, {"mix": {"press": -1, "pump": 1}}, {"mix": {"toaster": 1}}])
def test_settings_refuse_a_senseless_mix(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mix"):
        DeviceSettings(**wrong)


def test_settings_refuse_faults_whose_shortest_is_longer_than_the_longest() -> None:
    with pytest.raises(ValueError, match="fault_min_duration_ms"):
        DeviceSettings(fault_min_duration_ms=2, fault_max_duration_ms=1)


# ---- commands


class Letters:
    def __init__(self) -> None:
        self.published: list[OutRecord] = []

    async def publish(self, records: Any) -> None:
        self.published += records

    def last_offset(self, topic: str, partition: int) -> int | None:
        return None


def a_record(value: bytes | None, offset: int = 0) -> Any:
    return SimpleNamespace(
        topic="device.commands", partition=0, offset=offset, timestamp=T0, key=b"k", value=value, headers=()
    )


async def stream(*events: Any) -> AsyncIterator[Any]:
    for event in events:
        yield event


async def test_commands_are_obeyed_one_by_one_and_in_batches() -> None:
    fleet, letters = a_fleet(), Letters()
    fleet.start(T0)
    stop = a_record(encode_command(a_command("stop", "type", "pump")))
    slow = a_record(encode_command(a_command("set_interval", "type", "press", interval_ms=5_000)))
    hit = a_record(encode_command(an_injection("dropout", "motor-0001")))
    await commands(stream(stop, [slow, hit]), fleet=fleet, clock=ManualClock(), publisher=letters)
    kinds = [due.sample.device_id for due in fleet.due(T0 + 9_999)]
    assert letters.published == []
    assert not any(each.startswith("pump") for each in kinds)
    assert kinds.count("press-0001") == 2
    assert "motor-0001" not in kinds
    assert kinds.count("motor-0002") == 10


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "malformed_command"),
        (None, "malformed_command"),
        (encode_command(a_command("stop", "device", "press-9999")), "unknown_device"),
        (encode_command(an_injection("spike", "press-0001", metric="charm")), "unknown_device"),
    ],
)
async def test_a_bad_command_is_a_dead_letter_and_the_next_is_obeyed(value: bytes | None, reason: str) -> None:
    fleet, letters = a_fleet(), Letters()
    fleet.start(T0)
    good = a_record(encode_command(a_command("stop")), 8)
    await commands(stream([a_record(value, 7), good]), fleet=fleet, clock=ManualClock(), publisher=letters)
    (record,) = letters.published
    letter = orjson.loads(record.value or b"")
    assert (record.topic, record.key) == ("device.deadletter", b"k")
    assert (letter["reason"], letter["topic"], letter["partition"], letter["offset"]) == (
        reason,
        "device.commands",
        0,
        7,
    )
    assert fleet.due(T0 + 5_000) == []


async def test_a_device_is_known_before_its_first_sample_is_sent() -> None:
    scene = await Scene().run(START + 1_000)
    topics = [each.topic for each in scene.sender.sent]
    assert topics[:12] == [METADATA] * 12


async def test_a_clock_that_is_far_ahead_gives_no_kafka_timestamp_that_the_broker_refuses() -> None:
    fleet = a_fleet(1)
    scene = Scene(fleet)
    fleet.apply(an_injection("clock_skew", fleet.devices[0].device_id, magnitude=7_200_000.0), T0)
    await scene.run(START + 3_000)
    skewed = [each for each in scene.sender.of(TELEMETRY) if each.json["source_timestamp"] > START + 3_600_000]
    assert skewed
    for each in skewed:
        assert each.timestamp_ms == each.json["recorded_timestamp"]


async def test_settings_that_changed_before_the_start_are_in_force_from_the_start() -> None:
    scene = await Scene(limits=LIMITS._replace(sample_interval_ms=500)).run(START + 10_000)
    assert len(scene.telemetry()) > 200
