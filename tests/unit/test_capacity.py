"""Laws of the capacity planner."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.capacity import LOADS
from app.cli.capacity import read_coefficients
from app.domain.capacity import REFERENCE, Coefficients, Load, Observation, fitted, need
from app.errors import UserError

coefficient = st.floats(0, 1000)
coefficients = st.builds(Coefficients, coefficient, coefficient, st.floats(0, 1), coefficient, coefficient)


def observed(load: Load, by: Coefficients) -> Observation:
    it = need(load, by)
    return Observation(load, it.memory_mb, it.cpu_millicores)


def test_the_manuals_example_comes_out_as_in_the_manual() -> None:
    it = need(Load(1_000, 10_000, 10_000), REFERENCE)
    assert it.memory_mb == 2_266
    assert it.cpu_millicores == 200


@given(coefficients)
def test_the_measured_loads_tell_all_coefficients_apart(truth: Coefficients) -> None:
    found = fitted([observed(load, truth) for load in LOADS])
    for load in (*LOADS, Load(20_000, 50_000, 200_000)):
        assert need(load, found) == pytest.approx(need(load, truth), rel=1e-6, abs=1e-3)


@given(st.lists(st.builds(Observation, st.sampled_from(LOADS), st.floats(1, 4000), st.floats(1, 4000)), max_size=9))
def test_no_coefficient_is_negative_however_noisy_the_observations(rows: list[Observation]) -> None:
    try:
        found = fitted(rows)
    except ValueError:
        return  # too few different loads, which the next law is about
    assert all(value >= 0 for value in found)


@pytest.mark.parametrize("loads", [(), (LOADS[0],), (LOADS[0], LOADS[1])])
def test_observations_that_do_not_tell_influences_apart_are_refused(loads: tuple[Load, ...]) -> None:
    with pytest.raises(ValueError, match="observation"):
        fitted([observed(load, REFERENCE) for load in loads])


@given(st.integers(0, 10**6), st.floats(0, 10**6), st.integers(0, 10**7))
def test_the_limits_keep_the_service_levels(devices: int, rate: float, buffered: int) -> None:
    it = need(Load(devices, rate, buffered), REFERENCE)
    assert it.memory_limit_mb * 0.8 == pytest.approx(it.memory_mb)
    assert it.cpu_limit_millicores * 0.7 == pytest.approx(it.cpu_millicores)


def test_coefficients_are_read_from_a_benchmarks_result(tmp_path: Path) -> None:
    path = tmp_path / "capacity.json"
    path.write_text(json.dumps({"name": "capacity", "ours": REFERENCE._asdict()}))
    assert read_coefficients(path) == REFERENCE


@pytest.mark.parametrize("text", ["", "[]", '{"ours": 3}', '{"ours": {"base_memory_mb": 1}}'])
def test_a_file_that_is_no_result_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a result of"):
        read_coefficients(path)


def test_a_missing_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_coefficients(tmp_path / "none.json")
