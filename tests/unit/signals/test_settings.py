"""Laws of the section `signals`: the default rules, faulty rules, the rule files that are shipped."""

import re
from pathlib import Path

import jsonschema
import orjson
import pytest
import yaml
from pydantic import ValidationError

from app.codec import encode_signal
from app.domain.device import TYPES
from app.domain.signal_rules import Computed, Silence, Threshold
from app.domain.signal_state import SignalState
from app.errors import ConfigError
from app.rules import compile_section, rule_of
from config.rule_file import load_rules, shipped_rules
from config.schemas import SIGNAL
from config.signals import DEFAULT_RULES, KINDS, SignalsSettings
from tests.helpers.signals import DEVICE, run, sample


def test_the_default_rules_compile_and_name_metrics_that_exist() -> None:
    section = SignalsSettings()
    assert len(compile_section(section).rules) == len(DEFAULT_RULES)
    metrics = {(kind.name, spec.metric): spec for kind in TYPES.values() for spec in kind.metrics}
    for rule in map(rule_of, section.rules):
        for device_type in rule.select.device_types:
            spec = metrics[device_type, rule.select.metrics[0]]
            assert isinstance(rule.test, Threshold)
            assert (rule.test.above, rule.test.below) in {(spec.eu_high, None), (None, spec.eu_low)}
            assert rule.test.clear_at is not None
            assert spec.eu_low < rule.test.clear_at < spec.eu_high


def test_a_section_read_from_what_it_wrote_is_equal() -> None:
    section = SignalsSettings()
    assert SignalsSettings.model_validate(section.model_dump(mode="json")) == section


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"kind": "threshold"}, "either above or below"),
        ({"kind": "threshold", "above": 1, "below": 0}, "either above or below"),
        ({"kind": "threshold", "above": 1, "clear_at": 2}, "must not lie over above"),
        ({"kind": "threshold", "below": 1, "clear_at": 0}, "must not lie under below"),
        ({"kind": "threshold", "above": float("nan")}, "finite number"),
        ({"kind": "rate_of_change", "limit": 0}, "greater than 0"),
        ({"kind": "z_score", "window_ms": 1000, "warm_up": 90}, "warm_up must not be more than baseline"),
        ({"kind": "moving_average_crossover", "window_ms": 1000, "band": 1, "fast": 30}, "fast must be less"),
        ({"kind": "stuck", "duration_ms": -1}, "greater than 0"),
        ({"kind": "silence", "duration_ms": 5000, "select": {"metric": "x"}}, "whole device"),
        ({"kind": "condition"}, "Field required"),
        ({"kind": "threshhold"}, "kind must be one of threshold,"),
        ({"above": 1}, "kind must be one of threshold,"),
        ({"kind": "threshold", "above": 1, "colour": "red"}, "Extra inputs"),
        ({"kind": "threshold", "above": 1, "id": "no spaces"}, "should match pattern"),
        ("text", "kind must be one of threshold,"),
    ],
)
def test_a_faulty_rule_is_refused(rule: object, told: str) -> None:
    given = {"id": "rule", **rule} if isinstance(rule, dict) else rule
    with pytest.raises(ValidationError, match=told):
        SignalsSettings.model_validate({"rules": [given]})


def test_two_rules_of_one_id_are_refused() -> None:
    rule = {"id": "same", "kind": "quality"}
    with pytest.raises(ValidationError, match="used twice: same"):
        SignalsSettings.model_validate({"rules": [rule, rule]})


def test_expressions_are_checked_all_at_once() -> None:
    rules = [
        {"id": "a", "kind": "condition", "condition": "valeu > 1.0"},
        {"id": "b", "kind": "quality", "when": "value >"},
    ]
    with pytest.raises(ConfigError) as caught:
        compile_section(SignalsSettings.model_validate({"rules": rules}))
    assert [problem.split(":")[:3] for problem in caught.value.problems] == [
        ["signals.rules", " rule a", " condition"],
        ["signals.rules", " rule b", " when"],
    ]


def test_one_text_stands_for_a_list_of_one_and_cel_for_a_literal() -> None:
    workflow = {"id": "w", "input": {"a": {"cel": "value"}, "b": "value", "c": 3}, "concurrency_key": "all"}
    rule = {"id": "r", "kind": "threshold", "above": 1, "select": {"metric": "x"}, "workflow": workflow}
    section = SignalsSettings.model_validate({"rules": [rule, {"id": "s", "kind": "silence", "duration_ms": 1000}]})
    first, second = map(rule_of, section.rules)
    assert first.select.metrics == ("x",)
    assert first.workflow is not None
    assert first.workflow.input == (("a", Computed("value")), ("b", "value"), ("c", 3))
    assert first.workflow.key == "all"
    assert second.test == Silence(1000)


@pytest.mark.parametrize("name", shipped_rules())
def test_shipped_rule_files_compile(name: str) -> None:
    assert compile_section(load_rules(name)).rules


def test_a_rule_file_tells_where_its_faults_are(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("signals:\n  rules:\n    - id: a\n      kind: threshold\n      above: warm\n")
    with pytest.raises(ConfigError) as caught:
        load_rules(path)
    assert f"{path}:5" in caught.value.problems[0]
    assert "signals.rules" in caught.value.problems[0]
    with pytest.raises(ConfigError, match="no such file"):
        load_rules(tmp_path / "absent.yaml")


def test_every_kind_of_signal_fits_the_schema() -> None:
    assert set(KINDS) == set(SIGNAL["properties"]["kind"]["enum"])
    workflow = {"id": "w", "input": {"a": {"cel": "value"}}}
    rules = [
        {"id": "a", "kind": "threshold", "above": 90, "workflow": workflow},
        {"id": "b", "kind": "quality"},
        {"id": "c", "kind": "silence", "duration_ms": 1000},
    ]
    compiled = compile_section(SignalsSettings.model_validate({"rules": rules}))
    state = SignalState(DEVICE)
    signals = run(compiled, [sample(0, 95.0), sample(1, 5.0), sample(2, None), sample(3)], state)
    compiled.on_tick([state], 1 << 60, signals)
    assert len(signals) == 5
    for signal in signals:
        jsonschema.validate(orjson.loads(encode_signal(signal)), SIGNAL)


def test_every_example_of_the_documentation_compiles() -> None:
    page = (Path(__file__).parents[3] / "docs" / "signals.md").read_text("utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    rules = [block["signals"]["rules"] if isinstance(block, dict) else block for block in blocks]
    assert {rule["kind"] for block in rules for rule in block} == set(KINDS)
    for block in rules:
        assert compile_section(SignalsSettings.model_validate({"rules": block})).rules
