"""Runs rules over samples at hand: the same rollups and signals as the stream makes, without a stream."""

from collections.abc import Iterable
from typing import NamedTuple

from app.domain.reading import Sample
from app.domain.rollup import DeviceState, Outcome, close_all, observe, settle
from app.domain.scoring import RaisedSignal
from app.domain.signal_record import Signal
from app.domain.signal_state import SignalState
from app.domain.signals import CompiledRules
from app.domain.window import RollupSpec


class _Unit(NamedTuple):
    rollup: DeviceState
    signals: SignalState


def run_rules(rules: CompiledRules, spec: RollupSpec, samples: Iterable[Sample]) -> list[Signal]:
    """Every signal of the samples, in their order; a device is silent by the times of the other samples.

    Rollups become final as in the stream, `spec.grace_ms` after their end, and all at the end.
    """
    units: dict[str, _Unit] = {}
    out: list[Signal] = []
    next_due = None
    for offset, sample in enumerate(samples):
        now_ms = sample.recorded_timestamp
        if next_due is not None and now_ms >= next_due:
            rules.on_tick([unit.signals for unit in units.values()], now_ms, out)
            next_due = None
        unit = units.get(sample.device_id)
        if unit is None:
            unit = units[sample.device_id] = _Unit(DeviceState(sample.device_id, spec), SignalState(sample.device_id))
        rules.on_sample(unit.signals, sample, out)
        outcome = Outcome()
        observe(unit.rollup, sample, offset, spec, outcome)
        settle(unit.rollup, spec, now_ms, outcome)
        _judge(rules, unit, outcome, out)
        due = rules.next_deadline(unit.signals)
        if due is not None:
            next_due = due if next_due is None else min(next_due, due)
    for unit in units.values():
        outcome = Outcome()
        close_all(unit.rollup, spec, outcome)
        _judge(rules, unit, outcome, out)
    return out


def _judge(rules: CompiledRules, unit: _Unit, outcome: Outcome, out: list[Signal]) -> None:
    for rollup in outcome.rollups:
        rules.on_rollup(unit.signals, rollup, out)


def raised(signals: Iterable[Signal]) -> list[RaisedSignal]:
    """The part of the raised signals that scoring reads."""
    return [
        RaisedSignal(each.signal_id, each.rule, each.kind, each.device_id, each.metric, each.at)
        for each in signals
        if each.state == "raised"
    ]
