"""Laws of compiled rules as a whole: silence, identity, reload, workflows."""

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import encode_signal
from app.domain.signal_record import Signal
from app.domain.signal_rules import (
    Computed,
    Condition,
    Rule,
    RuleProblems,
    Selector,
    Silence,
    Threshold,
    WorkflowStart,
    device_type_from_id,
)
from app.domain.signal_state import SignalState
from app.domain.signals import MAX_CELLS, CompiledRules
from tables.signals import from_bytes, key, to_bytes
from tests.helpers.signals import DEVICE, START_MS, compiled, rule, run, sample, states

OVER_90 = Threshold(above=90.0)
QUIET = Rule("quiet", Silence(10_000))


def tick(rules: CompiledRules, state: SignalState, at_ms: int) -> list[Signal]:
    out: list[Signal] = []
    rules.on_tick([state], START_MS + at_ms, out)
    return out


def test_a_silent_device_is_raised_once_and_cleared_by_its_next_sample() -> None:
    rules, state = compiled(QUIET), SignalState(DEVICE)
    run(rules, [sample(0, seq=7)], state)
    assert rules.next_deadline(state) == START_MS + 10_000
    assert tick(rules, state, 9_999) == []
    raised = tick(rules, state, 12_345)
    assert states(raised) == [("raised", 10_000)]
    assert raised[0].metric is None
    assert raised[0].evidence == {"last_seen": START_MS, "seq": 7}
    assert tick(rules, state, 99_999) == []
    assert rules.next_deadline(state) is None
    cleared = run(rules, [sample(50_000)], state)
    assert states(cleared) == [("cleared", 50_000)]
    assert cleared[0].value == 50.0
    assert rules.next_deadline(state) == START_MS + 60_000


def test_a_silence_has_the_same_id_whenever_it_is_noticed() -> None:
    ids = set()
    for noticed_ms in (10_000, 17_000, 900_000):
        rules, state = compiled(QUIET), SignalState(DEVICE)
        run(rules, [sample(0, seq=7)], state)
        ids.add(tick(rules, state, noticed_ms)[0].signal_id)
    assert len(ids) == 1


def test_a_device_never_heard_is_not_silent() -> None:
    rules, state = compiled(QUIET), SignalState(DEVICE)
    assert tick(rules, state, 10**9) == []
    assert rules.next_deadline(state) is None


def test_silence_goes_by_when_a_sample_was_recorded() -> None:
    rules, state = compiled(QUIET), SignalState(DEVICE)
    run(rules, [sample(-86_400_000, recorded_ms=0, seq=1)], state)
    assert tick(rules, state, 9_000) == []


@given(values=st.lists(st.sampled_from([10.0, 95.0]), max_size=30), again_from=st.integers(0, 30))
def test_a_replay_says_the_same_with_the_same_ids(values: list[float], again_from: int) -> None:
    """At-least-once: what is read again after a restart repeats records, it never makes new ones."""
    rules = compiled(rule(OVER_90))
    samples = [sample(i * 1000, value) for i, value in enumerate(values)]
    state = SignalState(DEVICE)
    first = run(rules, samples[:again_from], state)
    saved = to_bytes(state)
    first += run(rules, samples[again_from:], state)
    second = run(rules, samples[again_from:], from_bytes(DEVICE, saved))
    known = {(each.signal_id, each.state): each for each in first}
    assert all(known[each.signal_id, each.state] == each for each in second)


@given(
    rules=st.lists(st.text(max_size=5), min_size=2, max_size=2, unique=True),
    device=st.text(min_size=1, max_size=5),
)
def test_signals_of_different_rules_have_different_ids(rules: list[str], device: str) -> None:
    state = SignalState(device)
    signals = run(compiled(*(rule(OVER_90, id=each) for each in rules)), [sample(0, 99.0, device_id=device)], state)
    assert len({uuid.UUID(each.signal_id) for each in signals}) == 2


def test_an_unchanged_rule_keeps_its_state_over_a_reload() -> None:
    state = SignalState(DEVICE)
    assert len(run(compiled(rule(OVER_90)), [sample(0, 99.0)], state)) == 1
    relabelled = compiled(rule(OVER_90, severity="critical"), Rule("new", Threshold(below=0.0)))
    assert run(relabelled, [sample(1000, 99.0)], state) == []
    assert states(run(relabelled, [sample(2000, 50.0)], state)) == [("cleared", 2000)]


@pytest.mark.parametrize(
    ("new", "reason"),
    [((rule(Threshold(above=98.0)),), "rule changed"), ((), "rule removed")],
)
def test_a_changed_or_removed_rule_clears_what_it_held_up(new: tuple[Rule, ...], reason: str) -> None:
    state = SignalState(DEVICE)
    raised = run(compiled(rule(OVER_90)), [sample(0, 95.0)], state)
    state = from_bytes(DEVICE, to_bytes(state))
    cleared = run(compiled(*new), [sample(1000, 95.0)], state)
    assert [(each.state, each.signal_id) for each in cleared] == [("cleared", raised[0].signal_id)]
    assert cleared[0].evidence == {"reason": reason}
    assert (cleared[0].severity, cleared[0].kind) == ("warning", "threshold")
    assert cleared[0].at > raised[0].at
    assert state.raised() == []


def test_nothing_to_save_means_not_dirty() -> None:
    rules, state = compiled(rule(OVER_90)), SignalState(DEVICE)
    dirty = []
    for at, value in ((0, 50.0), (1000, 99.0)):
        run(rules, [sample(at, value)], state)
        dirty.append(state.dirty)
    to_bytes(state)
    assert [*dirty, state.dirty] == [False, True, False]


def test_state_bytes_carry_their_version() -> None:
    assert key(DEVICE) == b"press-0001"
    assert from_bytes(DEVICE, None).cells == {}
    with pytest.raises(ValueError, match="version 63"):
        from_bytes(DEVICE, b"c[]")


def test_a_device_with_endless_metrics_has_bounded_state() -> None:
    rules, state = compiled(rule(OVER_90), rule(OVER_90, id="t", select=Selector(metrics=("t",)))), SignalState(DEVICE)
    run(rules, [sample(i, 1.0, metric=f"m{i}") for i in range(MAX_CELLS + 100)], state)
    assert len(state.cells) <= MAX_CELLS
    assert rules.crowded == 100


def test_a_raised_signal_carries_its_workflow_and_a_cleared_one_does_not() -> None:
    start = WorkflowStart(
        "cool-down",
        input=(("device", Computed("device_id")), ("over", Computed("value - threshold")), ("mode", "gentle")),
        key=Computed("device_type + '/' + metric"),
        debounce_s=60.0,
        concurrency=2,
    )
    raised, cleared = run(compiled(rule(OVER_90, workflow=start)), [sample(0, 95.5), sample(1000, 1.0)])
    assert raised.trigger is not None
    assert raised.trigger._asdict() == {
        "workflow": "cool-down",
        "input": {"device": DEVICE, "over": 5.5, "mode": "gentle"},
        "key": "press/temperature",
        "debounce_s": 60.0,
        "concurrency": 2,
    }
    assert cleared.trigger is None
    assert json.loads(encode_signal(raised))["trigger"]["input"]["over"] == 5.5


def test_a_mapping_without_an_answer_gives_null_and_is_counted() -> None:
    start = WorkflowStart("w", input=(("x", Computed("1.0 / (value - value) ")), ("y", Computed("duration('1s')"))))
    rules = compiled(rule(OVER_90, workflow=start))
    (raised,) = run(rules, [sample(0, 95.0)])
    assert raised.trigger is not None
    assert raised.trigger.input == {"x": None, "y": None}
    assert rules.failures == {"rule": 2}


def test_every_fault_of_every_rule_is_told_at_once() -> None:
    faulty = (
        Rule("a", Condition("value >")),
        Rule("b", Condition("temprature > 1.0")),
        Rule("c", OVER_90, when="value + 1 > 2.0"),
        Rule("d", OVER_90, workflow=WorkflowStart("w", input=(("x", Computed("nothing")),))),
        Rule("a", OVER_90),
    )
    with pytest.raises(RuleProblems) as caught:
        compiled(*faulty)
    problems = caught.value.problems
    assert len(problems) == 5
    assert "temprature is not known here" in problems[1]
    assert problems[3].startswith("rule d: workflow.input.x:")


def test_the_type_is_read_from_the_id() -> None:
    assert device_type_from_id("press-0001") == "press"
    assert device_type_from_id("cnc-mill-0012") == "cnc_mill"
    assert device_type_from_id("boiler") == "boiler"
    assert device_type_from_id("") == ""


def test_an_encoded_signal_has_the_documented_fields() -> None:
    raised, cleared = (
        json.loads(encode_signal(each)) for each in run(compiled(rule(OVER_90)), [sample(0, 95.0), sample(1000, 1.0)])
    )
    assert raised == {
        "signal_id": raised["signal_id"], "rule": "rule", "kind": "threshold", "severity": "warning",
        "device_id": DEVICE, "metric": "temperature", "state": "raised", "at": START_MS, "raised_at": START_MS,
        "cleared_at": None, "value": 95.0, "threshold": 90.0, "unit": "CEL", "trigger": None,
        "evidence": {
            "since": START_MS, "seq": 1, "session_id": 1, "quality": "GOOD", "clear_at": 90.0, "hold_ms": 0,
        },
    }  # fmt: skip
    assert cleared["cleared_at"] == cleared["at"] == START_MS + 1000
