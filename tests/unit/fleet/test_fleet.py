"""Laws of the fleet: the calendar of due samples, faults in force and commands."""

import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.faults import FAULT_KINDS, FaultPlan
from app.domain.fleet import Due, Fleet
from tests.helpers.fleet import (
    T0,
    a_command,
    a_fleet,
    a_started_fleet,
    an_injection,
    unrecorded,
)

BUSY_PLAN = FaultPlan(7, 20_000, FAULT_KINDS, 2_000, 8_000, 1000)
STEPS = st.lists(st.tuples(st.integers(1, 7_000), st.integers(1, 40)), min_size=1, max_size=40)


def asked_in_steps(fleet: Fleet, steps: list[tuple[int, int]], until_ms: int) -> list[Due]:
    now_ms, out = T0, []
    for by_ms, limit in steps:
        now_ms = min(now_ms + by_ms, until_ms)
        out += fleet.due(now_ms, limit)
    while due := fleet.due(until_ms, 50):
        out += due
    return out


@settings(deadline=None, max_examples=40)
@given(STEPS, st.booleans())
def test_the_samples_are_the_same_however_many_are_asked_for_at_once(
    steps: list[tuple[int, int]], with_faults: bool
) -> None:
    plan = BUSY_PLAN if with_faults else None
    whole, parts = a_started_fleet(plan=plan), a_started_fleet(plan=plan)
    at_once = whole.due(T0 + 60_000)
    assert unrecorded(asked_in_steps(parts, steps, T0 + 60_000)) == unrecorded(at_once)
    assert parts.take_truth() == whole.take_truth()
    assert len(at_once) > 600 or with_faults


def test_a_restarted_fleet_goes_on_with_the_readings_of_the_one_before() -> None:
    first, second = a_fleet(plan=BUSY_PLAN), a_fleet(plan=BUSY_PLAN)
    first.start(T0)
    first.due(T0 + 29_999)
    second.start(T0 + 30_000)

    def tail(fleet: Fleet) -> set[tuple[str, int, object]]:
        due = fleet.due(T0 + 90_000)
        return {(each.sample.device_id, each.sample.source_timestamp, each.sample.metrics) for each in due}

    of_first, of_second = tail(first), tail(second)
    # Only what a transport fault held back across the restart is not made twice.
    assert of_second <= of_first
    assert len(of_first - of_second) < 0.1 * len(of_first)


def test_each_device_is_due_once_an_interval_in_order_and_numbered_from_one() -> None:
    fleet = a_started_fleet(interval_ms=500)
    dues = fleet.due(T0 + 9_999)
    assert [due.intended_ms for due in dues] == sorted(due.intended_ms for due in dues)
    by_device = defaultdict(list)
    for due in dues:
        assert due.intended_ms == due.sample.source_timestamp
        assert due.sample.session_id == T0
        by_device[due.sample.device_id].append(due.sample)
    assert len(by_device) == 12
    for samples in by_device.values():
        assert [sample.seq for sample in samples] == list(range(1, 21))
        times = [sample.source_timestamp for sample in samples]
        assert times == list(range(times[0], times[0] + 10_000, 500))


def test_a_fleet_is_spread_evenly_over_the_interval() -> None:
    fleet = a_started_fleet(100, interval_ms=1000)
    assert [len(fleet.due(T0 + ms)) for ms in range(9, 1000, 10)] == [1] * 100


def test_nothing_is_due_before_its_instant_and_nothing_twice() -> None:
    fleet = a_started_fleet()
    assert fleet.due(T0 - 1) == []
    assert len(fleet.due(T0 + 999)) == 12
    assert fleet.due(T0 + 999) == []
    assert fleet.due(T0 - 5_000) == []


def test_an_empty_fleet_has_nothing_to_say() -> None:
    fleet = a_started_fleet(0)
    assert fleet.due(T0 + 60_000) == []
    assert fleet.behind_ms(T0 + 60_000) == 0
    assert fleet.close(T0 + 60_000) == []


@given(st.integers(0, 100_000))
def test_skipped_samples_are_counted_and_use_up_their_numbers(cutoff_ms: int) -> None:
    skipping, patient = a_started_fleet(), a_started_fleet()
    skipped = skipping.skip_before(T0 + cutoff_ms)
    all_of_it = patient.due(T0 + 100_000)
    rest = skipping.due(T0 + 100_000)
    assert sum(skipped.values()) + len(rest) == len(all_of_it)
    assert unrecorded(rest) == unrecorded(due for due in all_of_it if due.intended_ms >= T0 + cutoff_ms)


def test_behind_is_the_age_of_the_oldest_sample_not_asked_for() -> None:
    fleet = a_started_fleet()
    first_ms = fleet.due(T0 + 999)[0].intended_ms
    assert fleet.behind_ms(first_ms + 1000 + 250) == 250
    assert fleet.behind_ms(T0) == 0


# ---- faults


def injected(kind: str, **fields: object) -> tuple[Fleet, str]:
    """A fleet of motors and others with a fault on one device from T0 + 5 s."""
    fleet = a_started_fleet()
    device_id = fleet.devices[0].device_id
    fleet.due(T0 + 4_999)
    assert fleet.apply(an_injection(kind, device_id, **fields), T0 + 5_000) == 1
    return fleet, device_id


def of(device_id: str, dues: list[Due]) -> list[Due]:
    return [due for due in dues if due.sample.device_id == device_id]


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_truth_tells_when_a_fault_begins_and_when_it_ends(kind: str) -> None:
    fleet, device_id = injected(kind, duration_ms=3_000)
    fleet.due(T0 + 7_999)
    (begun,) = fleet.take_truth()
    assert (begun.device_id, begun.kind, begun.from_ts, begun.to_ts) == (device_id, kind, T0 + 5_000, None)
    fleet.due(T0 + 8_000)
    (ended,) = fleet.take_truth()
    assert ended == begun._replace(to_ts=T0 + 8_000)
    assert fleet.take_truth() == []


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_a_fault_touches_its_device_alone_and_no_sample_is_lost_or_made_up(kind: str) -> None:
    fleet, device_id = injected(kind, duration_ms=3_000)
    healthy = a_started_fleet()
    healthy.due(T0 + 4_999)
    expected = healthy.due(T0 + 120_000)
    found = fleet.due(T0 + 120_000)
    others = [each for each in unrecorded(found) if each[1].device_id != device_id]
    assert others == [each for each in unrecorded(expected) if each[1].device_id != device_id]
    numbers = sorted({due.sample.seq for due in of(device_id, found)})
    assert numbers == list(range(6, 6 + len(numbers)))
    missing = 3 if kind == "dropout" else 0
    assert len(numbers) == len(of(device_id, expected)) - missing


def test_a_clock_that_is_off_moves_the_source_time_and_not_the_sending() -> None:
    fleet, device_id = injected("clock_skew", magnitude=-2_500.0, duration_ms=3_000)
    skewed = of(device_id, fleet.due(T0 + 7_999))
    assert [due.sample.source_timestamp - due.intended_ms for due in skewed] == [-2_500] * 3


def test_late_samples_come_after_their_delay_with_their_own_time() -> None:
    fleet, device_id = injected("late", magnitude=2_500.0, duration_ms=3_000)
    dues = of(device_id, fleet.due(T0 + 20_000))
    delays = {due.sample.seq: due.intended_ms - due.sample.source_timestamp for due in dues}
    assert [delays[seq] for seq in range(6, 12)] == [2_500] * 3 + [0] * 3
    assert [due.sample.seq for due in dues] != sorted(due.sample.seq for due in dues)
    assert all(due.sample.recorded_timestamp >= due.intended_ms for due in dues)


def test_out_of_order_swaps_neighbours() -> None:
    fleet, device_id = injected("out_of_order", duration_ms=10_000)
    numbers = [due.sample.seq for due in of(device_id, fleet.due(T0 + 20_000))]
    inversions = sum(a > b for a, b in itertools.pairwise(numbers))
    assert inversions == 5
    assert sorted(numbers) == list(range(6, 6 + len(numbers)))


def test_duplicates_are_the_very_same_sample() -> None:
    fleet, device_id = injected("duplicate", magnitude=2.0, duration_ms=2_000)
    dues = of(device_id, fleet.due(T0 + 6_999))
    assert len(dues) == 6
    assert len(set(dues)) == 2


def test_a_burst_holds_everything_back_and_sends_it_at_once_when_it_ends() -> None:
    fleet, device_id = injected("burst")
    assert of(device_id, fleet.due(T0 + 14_999)) == []
    assert fleet.held == 10
    fleet.apply(a_command("clear_fault", "device", device_id), T0 + 15_000)
    burst = of(device_id, fleet.due(T0 + 15_000))
    assert [due.sample.seq for due in burst] == list(range(6, 17))
    assert {due.intended_ms for due in burst[:10]} == {T0 + 15_000}
    assert fleet.held == 0


def test_what_is_held_back_is_bounded() -> None:
    fleet = a_started_fleet(max_held=4)
    fleet.apply(a_command("inject_fault", kind="burst"), T0)
    sent = fleet.due(T0 + 9_999)
    assert fleet.held == 4
    assert len(sent) == 120 - 4


def test_a_silent_device_uses_no_numbers_and_goes_on_where_it_was() -> None:
    fleet, device_id = injected("dropout", duration_ms=3_000)
    dues = of(device_id, fleet.due(T0 + 9_999))
    assert [(due.sample.seq, due.intended_ms) for due in dues] == [(6, T0 + 8_000), (7, T0 + 9_000)]


def test_a_stuck_device_shows_the_reading_of_the_fault_s_first_instant() -> None:
    fleet, device_id = injected("stuck", duration_ms=5_000)
    readings = [due.sample.metrics for due in of(device_id, fleet.due(T0 + 10_999))]
    assert len(set(readings[:5])) == 1
    assert readings[5] != readings[0]


def test_health_goes_with_the_fault_that_the_device_knows_of() -> None:
    fleet, device_id = injected("out_of_range", duration_ms=3_000)
    fleet.due(T0 + 6_000)
    assert [(each.device.device_id, each.health) for each in fleet.take_metadata()] == [(device_id, "OFF_SPEC")]
    fleet.due(T0 + 9_000)
    assert [each.health for each in fleet.take_metadata()] == ["NORMAL"]


def test_faults_of_one_plan_are_the_same_for_every_run_and_each_ends() -> None:
    def truth_of_a_run() -> list[object]:
        fleet = a_started_fleet(plan=BUSY_PLAN)
        fleet.due(T0 + 100_000)
        fleet.close(T0 + 100_000)
        return list(fleet.take_truth())

    truth = truth_of_a_run()
    assert truth == truth_of_a_run()
    begun = {fault.fault_id for fault in truth if fault.to_ts is None}  # type: ignore[attr-defined]
    ended = {fault.fault_id for fault in truth if fault.to_ts is not None}  # type: ignore[attr-defined]
    assert begun == ended
    assert len(begun) >= 12 * 4


# ---- commands


def test_a_stopped_device_is_silent_offline_and_comes_back_with_a_new_session() -> None:
    fleet = a_started_fleet()
    device_id = fleet.devices[0].device_id
    fleet.apply(a_command("stop", "device", device_id), T0 + 5_000)
    assert len(of(device_id, fleet.due(T0 + 9_999))) == 5
    assert [(each.state, each.since) for each in fleet.take_metadata()] == [("OFFLINE", T0 + 5_000)]
    fleet.apply(a_command("start", "device", device_id), T0 + 10_000)
    again = of(device_id, fleet.due(T0 + 12_999))
    assert [(due.sample.session_id, due.sample.seq) for due in again] == [(T0 + 10_000, n) for n in (1, 2, 3)]
    assert [each.state for each in fleet.take_metadata()] == ["ONLINE"]


def test_stopping_a_device_ends_its_faults_and_lets_go_of_what_it_held() -> None:
    fleet, device_id = injected("burst")
    fleet.due(T0 + 9_999)
    fleet.apply(a_command("stop", "device", device_id), T0 + 10_000)
    assert len(of(device_id, fleet.due(T0 + 20_000))) == 5
    assert [fault.to_ts for fault in fleet.take_truth()] == [None, T0 + 10_000]


def test_starting_a_device_that_runs_changes_nothing() -> None:
    fleet, other = a_started_fleet(), a_started_fleet()
    fleet.apply(a_command("start"), T0 + 3_000)
    assert fleet.due(T0 + 9_000) == other.due(T0 + 9_000)


@pytest.mark.parametrize("plan", [None, BUSY_PLAN])
def test_stop_and_start_within_one_millisecond_is_a_new_session(plan: FaultPlan | None) -> None:
    fleet = a_started_fleet(plan=plan)
    fleet.apply(a_command("stop"), T0)
    fleet.apply(a_command("start"), T0)
    assert {due.sample.session_id for due in fleet.due(T0 + 500)} == {T0 + 1}


def test_an_interval_is_set_for_a_group_and_keeps_the_numbers_going() -> None:
    fleet = a_started_fleet()
    before = fleet.due(T0 + 9_999)
    assert fleet.apply(a_command("set_interval", "type", "pump", interval_ms=250), T0 + 10_000) == 2
    after = fleet.due(T0 + 19_999)
    counts: defaultdict[str, int] = defaultdict(int)
    for due in after:
        counts[due.device.device_type] += 1
    assert counts.pop("pump") == 80
    assert set(counts.values()) == {20}
    numbers = [due.sample.seq for due in (*before, *after) if due.sample.device_id == "pump-0001"]
    assert numbers == list(range(1, 51))
    assert [each.sample_interval_ms for each in fleet.take_metadata()] == [250, 250]


def test_retuning_is_for_every_device_and_changes_the_signal() -> None:
    fleet = a_started_fleet()
    fleet.retune(2_000, 0.0, T0 + 10_000)
    fleet.due(T0 + 9_999)
    dues = fleet.due(T0 + 19_999)
    assert len(dues) == 60
    for due in dues:
        assert [each.value for each in due.sample.metrics] == [round(m.setpoint, 3) for m in due.device.metrics]


@pytest.mark.parametrize(
    ("scope", "target", "count"),
    [
        ("all", None, 12),
        ("type", "press", 2),
        ("site", "plant-a", 6),
        ("line", "plant-b-line-1", 3),
        ("device", "press-0001", 1),
        ("device", "press-9999", 0),
        ("type", "toaster", 0),
    ],
)
def test_a_command_concerns_its_group(scope: str, target: str | None, count: int) -> None:
    assert a_started_fleet().apply(a_command("stop", scope, target), T0) == count


def test_a_fault_of_a_metric_concerns_the_devices_that_have_it() -> None:
    fleet = a_started_fleet()
    with_flow = [device for device in fleet.devices if any(spec.metric == "flow" for spec in device.metrics)]
    command = a_command("inject_fault", kind="spike", metric="flow", duration_ms=1_000)
    assert fleet.apply(command, T0) == len(with_flow) == 2
    assert fleet.apply(command._replace(metric="charm"), T0) == 0


def test_a_command_delivered_twice_injects_once() -> None:
    fleet, device_id = injected("spike", duration_ms=2_000)
    fleet.apply(an_injection("spike", device_id, duration_ms=2_000), T0 + 5_500)
    fleet.due(T0 + 20_000)
    assert len(fleet.take_truth()) == 2


def test_one_fault_of_several_can_be_ended_by_its_id_or_its_kind() -> None:
    fleet = a_started_fleet()
    for number, kind in enumerate(("spike", "stuck", "drift")):
        fleet.apply(an_injection(kind, "press-0001", command_id=f"c{number}"), T0 + 1_000)
    fleet.apply(a_command("clear_fault", fault_id="c0-press-0001"), T0 + 2_000)
    fleet.apply(a_command("clear_fault", kind="drift"), T0 + 3_000)
    fleet.due(T0 + 5_000)
    ended = [(fault.kind, fault.to_ts) for fault in fleet.take_truth() if fault.to_ts is not None]
    assert ended == [("spike", T0 + 2_000), ("drift", T0 + 3_000)]


def test_closing_ends_everything_and_hands_out_what_was_held() -> None:
    fleet, device_id = injected("burst")
    fleet.due(T0 + 9_999)
    fleet.take_truth()
    rest = fleet.close(T0 + 10_000)
    assert [due.sample.seq for due in rest] == list(range(6, 11))
    assert [(fault.device_id, fault.to_ts) for fault in fleet.take_truth()] == [(device_id, T0 + 10_000)]
    assert {each.state for each in fleet.take_metadata()} == {"OFFLINE"}
    assert fleet.due(T0 + 60_000) == []
