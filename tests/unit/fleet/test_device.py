"""Laws of the device types, their physics and the layout."""

import itertools
import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.device import DAY_MS, TYPES, WEAR_PERIOD_MS, Layout, Physics, lay_out, mixed, phases_ms, share
from tests.helpers.fleet import EVERY_TYPE, T0, a_layout

REC_20 = {"CEL", "C16", "BAR", "RPM", "AMP", "KWT", "MQH"}


@pytest.mark.parametrize("name", TYPES)
def test_a_type_has_two_to_four_metrics_in_rec_20_units_inside_their_ranges(name: str) -> None:
    metrics = TYPES[name].metrics
    assert 2 <= len(metrics) <= 4
    assert len({spec.metric for spec in metrics}) == len(metrics)
    for spec in metrics:
        assert spec.unit in REC_20
        assert spec.instrument_low <= spec.eu_low < spec.setpoint < spec.eu_high <= spec.instrument_high


def test_the_six_types_are_there() -> None:
    assert set(TYPES) == {"press", "pump", "compressor", "motor", "furnace", "cnc_mill"}


@given(st.integers(0, 200), st.integers(0, 200))
def test_growing_a_fleet_keeps_its_devices(count: int, more: int) -> None:
    assert lay_out(a_layout(count + more))[:count] == lay_out(a_layout(count))


def test_the_mix_is_kept_at_every_size() -> None:
    devices = lay_out(Layout(300, 1, (("press", 1.0), ("pump", 2.0), ("motor", 0.0)), ("a",), 1))
    for end in range(3, 301, 3):
        kinds = [device.device_type for device in devices[:end]]
        assert (kinds.count("press"), kinds.count("pump"), kinds.count("motor")) == (end // 3, end * 2 // 3, 0)


def test_devices_have_names_and_serials_of_their_own_and_fill_every_site_and_line() -> None:
    devices = lay_out(a_layout(200))
    assert len({device.device_id for device in devices}) == 200
    assert len({device.serial for device in devices}) == 200
    assert {device.line for device in devices} == {f"plant-{s}-line-{n}" for s in "ab" for n in (1, 2)}
    assert devices[0].device_id == "press-0001"


@given(st.integers(1, 5000), st.integers(10, 100_000))
def test_phases_spread_a_fleet_evenly_over_the_interval(count: int, interval_ms: int) -> None:
    devices = lay_out(Layout(min(count, 50), 1, EVERY_TYPE, ("a",), 1))
    phases = sorted(phases_ms(devices, interval_ms).values())
    assert phases[0] == 0
    assert phases[-1] < interval_ms
    gaps = [b - a for a, b in itertools.pairwise(phases)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.integers(0, (1 << 64) - 1))
def test_a_share_is_from_zero_up_to_one(bits: int) -> None:
    assert 0.0 <= share(bits) < 1.0


def test_mixed_bits_are_those_of_splitmix64() -> None:
    # First two outputs of splitmix64 seeded with 1234567 (the generator's published reference).
    assert mixed(1234567) == 6457827717110365317
    assert mixed(1234567 + 0x9E3779B97F4A7C15) == 3203168211198807973


def _physics(seed: int = 7, variation: float = 0.1, interval_ms: int = 1000, number: int = 3) -> Physics:
    return Physics(lay_out(a_layout())[number], seed, variation, interval_ms, 0)


@given(
    st.integers(0, 5_000_000_000), st.lists(st.integers(-500, 500), min_size=1, max_size=12), st.integers(10, 60_000)
)
def test_values_depend_on_the_instant_alone(start: int, steps: list[int], interval_ms: int) -> None:
    wandering = _physics(interval_ms=interval_ms)
    index = start
    for step in steps:
        index = max(index + step, 0)
        assert wandering.values(index) == _physics(interval_ms=interval_ms).values(index)


def test_a_run_equals_the_same_instants_one_by_one() -> None:
    run = _physics()
    for index in range(T0 // 1000, T0 // 1000 + 300):
        values = run.values(index)
        if index % 17 == 0:
            assert values == _physics().values(index)


def test_looking_back_does_not_disturb_a_run() -> None:
    run, undisturbed = _physics(), _physics()
    for index in range(100, 400):
        assert run.values_at((index - 37) * 1000 + 5) == _physics().values(index - 37)
        assert run.values(index) == undisturbed.values(index)


@pytest.mark.parametrize("name", TYPES)
def test_a_healthy_device_stays_in_its_normal_range(name: str) -> None:
    device = lay_out(Layout(1, 3, ((name, 1.0),), ("a",), 1))[0]
    physics = Physics(device, 3, 0.1, 60_000, 0)
    start = T0 // 60_000
    for index in range(start, start + 3 * 1440):
        for spec, value in zip(device.metrics, physics.values(index), strict=True):
            assert spec.eu_low <= value <= spec.eu_high, spec
            assert value == round(value, 3)


def test_no_variation_is_a_flat_line_at_the_setpoint() -> None:
    physics = _physics(variation=0.0)
    for index in range(1000, 1100):
        assert physics.values(index) == [round(spec.setpoint, 3) for spec in physics.device.metrics]


def test_no_variation_however_wild_leaves_the_instrument_range() -> None:
    physics = _physics(variation=10.0)
    for index in range(1000, 2000):
        for spec, value in zip(physics.device.metrics, physics.values(index), strict=True):
            assert spec.instrument_low <= value <= spec.instrument_high


def test_noise_returns_to_its_mean_and_neighbours_are_alike() -> None:
    device = lay_out(a_layout())[0]
    quiet = device._replace(
        metrics=(device.metrics[0]._replace(season=0.0, load=0.0, wear=0.0, setpoint=0.0, instrument_low=-1e9),)
    )
    physics = Physics(quiet, 7, 1.0, 5_000, 0)
    values = [physics.values(index)[0] for index in range(20_000)]
    spec = quiet.metrics[0]
    sigma = math.sqrt(fmean(value * value for value in values))
    assert abs(fmean(values)) < 0.1 * sigma
    assert math.isclose(sigma, spec.span * spec.noise, rel_tol=0.1)
    kept = fmean(a * b for a, b in itertools.pairwise(values)) / sigma**2
    assert math.isclose(kept, math.exp(-5_000 / spec.noise_tau_ms), abs_tol=0.05)


def test_wear_grows_over_its_period_and_season_comes_back_every_day() -> None:
    device = lay_out(a_layout())[0]
    spec = device.metrics[0]
    worn = Physics(device._replace(metrics=(spec._replace(season=0.0, load=0.0, noise=0.0),)), 7, 1.0, DAY_MS, 0)
    values = [worn.values(index)[0] for index in range(WEAR_PERIOD_MS // DAY_MS)]
    drops = sum(b < a for a, b in itertools.pairwise(values))
    assert drops <= 1  # maintenance comes once
    assert max(values) - min(values) > 0.9 * spec.span * spec.wear
    seasonal = Physics(device._replace(metrics=(spec._replace(wear=0.0, load=0.0, noise=0.0),)), 7, 0.1, 3_600_000, 0)
    day = [seasonal.values(index)[0] for index in range(48)]
    assert day[:24] == day[24:]
    assert max(day) > min(day)


def test_two_seeds_and_two_devices_differ() -> None:
    assert _physics(seed=1).values(1000) != _physics(seed=2).values(1000)
    first, second = lay_out(Layout(2, 7, (("pump", 1.0),), ("a",), 1))
    assert Physics(first, 7, 0.1, 1000, 0).values(9) != Physics(second, 7, 0.1, 1000, 0).values(9)
