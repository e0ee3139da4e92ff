"""Laws of faults and of the plan that draws them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import faults
from app.domain.device import BAD_SENSOR_FAILURE, UNCERTAIN_ENGINEERING_UNITS_EXCEEDED, lay_out
from app.domain.faults import FAULT_KINDS, ActiveFault, Fault, FaultPlan, planned, readings
from app.domain.reading import Reading
from tests.helpers.fleet import T0, a_layout

DEVICE = lay_out(a_layout())[0]
TRUE = [spec.setpoint for spec in DEVICE.metrics]
METRIC = DEVICE.metrics[0]


def a_plan(**fields: object) -> FaultPlan:
    plan = FaultPlan(7, 3_600_000, FAULT_KINDS, 30_000, 300_000, 1000)
    return plan._replace(**fields)  # type: ignore[arg-type]


def active(
    kind: str, magnitude: float = 0.0, metric: str | None = METRIC.metric, to_ts: int | None = None
) -> ActiveFault:
    fault = Fault("f", DEVICE.device_id, kind, metric, T0, to_ts, magnitude, 7)
    return ActiveFault(fault, tuple(TRUE) if kind == "stuck" else ())


def shown(*of: ActiveFault, values: Sequence[float] = TRUE, at_ms: int = T0) -> Reading:
    return readings(DEVICE, values, of, at_ms)[0]


@given(st.integers(0, 1_000_000), st.integers(1, 500_000), st.integers(1, 400_000), st.integers(1_000, 4_000_000))
def test_a_planned_fault_lies_within_its_interval(slot: int, shortest: int, longest: int, interval_ms: int) -> None:
    plan = a_plan(interval_ms=interval_ms, min_duration_ms=min(shortest, longest), max_duration_ms=longest)
    fault = planned(plan, DEVICE, slot)
    assert fault.to_ts is not None
    assert slot * interval_ms <= fault.from_ts < fault.to_ts <= (slot + 1) * interval_ms
    assert faults.problem_of(fault.kind, fault.metric, fault.magnitude) is None


def test_a_plan_is_the_same_each_time_and_another_for_each_seed_device_and_interval() -> None:
    fault = planned(a_plan(), DEVICE, 5)
    assert planned(a_plan(), DEVICE, 5) == fault
    others = {
        planned(a_plan(seed=8), DEVICE, 5),
        planned(a_plan(), DEVICE._replace(device_id="press-0002"), 5),
        planned(a_plan(), DEVICE, 6),
    }
    assert len({(each.kind, each.from_ts, each.to_ts) for each in (fault, *others)}) == 4


def test_a_plan_comes_to_every_kind() -> None:
    assert {planned(a_plan(), DEVICE, slot).kind for slot in range(200)} == set(FAULT_KINDS)


def test_a_healthy_device_shows_the_truth() -> None:
    assert [each.value for each in readings(DEVICE, TRUE, (), T0)] == TRUE


@pytest.mark.parametrize("kind", faults.METRIC_FAULTS)
def test_a_fault_of_one_metric_leaves_the_others_alone(kind: str) -> None:
    others = readings(DEVICE, TRUE, (active(kind, 0.5),), T0)[1:]
    assert others == readings(DEVICE, TRUE, (), T0)[1:]


def test_a_spike_adds_its_share_of_the_normal_range_and_a_sensor_shows_no_more_than_its_range() -> None:
    assert shown(active("spike", 0.5)).value == pytest.approx(METRIC.setpoint + 0.5 * METRIC.span, abs=0.001)
    assert shown(active("spike", 100.0)).value == METRIC.instrument_high
    assert shown(active("spike", -100.0)).value == METRIC.instrument_low


def test_a_drift_grows_evenly_to_its_magnitude_at_its_end() -> None:
    drift = active("drift", 0.4, to_ts=T0 + 10_000)
    offsets = [(shown(drift, at_ms=T0 + ms).value or 0.0) - METRIC.setpoint for ms in (0, 5_000, 10_000, 20_000)]
    assert offsets == pytest.approx([0.0, 0.2 * METRIC.span, 0.4 * METRIC.span, 0.4 * METRIC.span], abs=0.002)


def test_a_stuck_metric_shows_what_it_showed_when_it_stuck() -> None:
    assert shown(active("stuck"), values=[value + 5 for value in TRUE]).value == METRIC.setpoint


@pytest.mark.parametrize("magnitude", [0.2, -0.2])
def test_out_of_range_is_beyond_the_instrument_and_uncertain(magnitude: float) -> None:
    reading = shown(active("out_of_range", magnitude))
    assert reading.value is not None
    assert not METRIC.instrument_low <= reading.value <= METRIC.instrument_high
    assert (reading.quality, reading.status_code) == ("UNCERTAIN", UNCERTAIN_ENGINEERING_UNITS_EXCEEDED)


def test_a_dropout_of_a_metric_is_a_bad_reading_without_a_value() -> None:
    reading = shown(active("dropout"), active("spike", 0.5), active("stuck"))
    assert (reading.value, reading.quality, reading.status_code) == (None, "BAD", BAD_SENSOR_FAILURE)
    assert not faults.silences((active("dropout"),))


def test_a_dropout_of_the_device_silences_it() -> None:
    assert faults.silences((active("dropout", metric=None),))


def test_skews_add_up() -> None:
    assert faults.skew_ms((active("clock_skew", 3000.0, None), active("clock_skew", -1000.0, None))) == 2000


@pytest.mark.parametrize("kind", [kind for kind in FAULT_KINDS if kind not in ("out_of_range", "dropout")])
def test_no_reading_tells_of_a_fault_its_device_cannot_know(kind: str) -> None:
    reading = shown(active(kind, 0.5))
    assert (reading.quality, reading.status_code) == ("GOOD", 0)
    assert faults.health((active(kind, 0.5),)) == "NORMAL"


def test_health_is_what_the_device_knows_of_itself() -> None:
    assert faults.health(()) == "NORMAL"
    assert faults.health((active("out_of_range", 0.1),)) == "OFF_SPEC"
    assert faults.health((active("out_of_range", 0.1), active("dropout"))) == "FAILURE"
    assert faults.health((active("dropout", metric=None),)) == "NORMAL"  # a silent device cannot tell


@pytest.mark.parametrize(
    ("kind", "metric", "magnitude", "part"),
    [
        ("melt", None, None, "there is no fault"),
        ("late", "temperature", None, "whole device"),
        ("late", None, -1.0, "not negative"),
        ("spike", None, 1e9, "at most"),
        ("spike", None, float("nan"), "at most"),
        ("stuck", None, 1.0, "at most 0"),
    ],
)
def test_a_senseless_fault_is_refused_with_its_reason(
    kind: str, metric: str | None, magnitude: float | None, part: str
) -> None:
    problem = faults.problem_of(kind, metric, magnitude)
    assert problem is not None
    assert part in problem


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_every_kind_has_a_magnitude_when_none_is_named(kind: str) -> None:
    assert faults.problem_of(kind, None, faults.default_magnitude(kind)) is None
