"""Laws of running rules over recorded data."""

from pathlib import Path

import pytest

from app.adapters.csv_replay import open_recording
from app.backtest import Backtest, backtest
from app.domain.backtest import raised, run_rules
from app.domain.signal_rules import Rule, Silence, Threshold, ZScore
from app.domain.window import RollupSpec, Rung
from app.rules import compile_section
from config.mapping import load_mapping
from config.rule_file import load_rules
from tests.helpers.signals import START_MS, compiled, sample

DATA = Path(__file__).parents[4] / "shared" / "data"
SPEC = RollupSpec(rungs=(Rung(1000), Rung(10_000)), grace_ms=2_000)


def test_rollups_of_the_samples_reach_the_rules() -> None:
    rules = compiled(Rule("z", ZScore(10_000, baseline=20, warm_up=5)))
    samples = [sample(i * 1000, 50.0 + i % 2 + (40.0 if i >= 150 else 0.0)) for i in range(170)]
    (signal,) = raised(run_rules(rules, SPEC, samples))
    assert START_MS + 150_000 <= signal.at <= START_MS + 170_000


def test_a_device_is_silent_by_the_samples_of_others() -> None:
    rules = compiled(Rule("quiet", Silence(5_000)), Rule("t", Threshold(above=90.0)))
    talking = [sample(i * 1000, device_id="pump-0001") for i in range(20)]
    signals = run_rules(rules, SPEC, [sample(0), *talking, sample(20_000)])
    assert [(each.device_id, each.state) for each in signals] == [("press-0001", "raised"), ("press-0001", "cleared")]


def scored(file: str, mapping: str, rules: str) -> Backtest:
    if not DATA.is_dir():
        pytest.skip("the recorded data is not beside the project (../shared/data)")
    recording = open_recording([DATA / file], load_mapping(mapping))
    return backtest(recording, compile_section(load_rules(rules)), ignored_labels=("changepoint",))


def test_the_recorded_machine_is_scored_as_the_documentation_says() -> None:
    found = scored("nab/machine_temperature_system_failure.csv", "nab-machine-temperature", "nab")
    total = found.score.total
    assert (found.samples, found.bad_rows) == (22_695, 0)
    assert (total.detected, total.intervals, total.false_positives) == (3, 4, 2)


@pytest.mark.parametrize("file", ["skab/valve1_0.csv", "skab/valve1_1.csv"])
def test_the_recorded_valve_is_scored_as_the_documentation_says(file: str) -> None:
    total = scored(file, "skab-valve", "skab").score.total
    assert (total.detected, total.intervals, total.false_positives) == (1, 1, 0)
