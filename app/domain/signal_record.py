"""The signal: what is said when a rule starts to hold and when it no longer does."""

import uuid
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Literal, NamedTuple

from app.domain.signal_rules import Computed, DeviceTypeOf, Expression, ExpressionFailed, Rule
from app.domain.signal_state import Cell

# A fixed namespace (version 5 of the DNS name signal.headrace), so that ids agree between processes.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "signal.headrace")
_SEPARATOR = "\x1f"


class Trigger(NamedTuple):
    """The workflow a signal starts; `key` is what `concurrency` and `debounce_s` are counted by."""

    workflow: str
    input: Mapping[str, Any]
    key: str
    debounce_s: float
    concurrency: int


class Signal(NamedTuple):
    """One record on `device.signals`; times in ms UTC of the event.

    `signal_id` is one id for the whole life of a signal: the record that raises it and the one that
    clears it carry the same, and (`signal_id`, `state`) is the record's identity. `at` of the clearing
    record is later than `raised_at`. `metric` is None when the rule is about the whole device.
    """

    signal_id: str
    rule: str
    kind: str
    severity: str
    device_id: str
    metric: str | None
    state: Literal["raised", "cleared"]
    at: int
    raised_at: int
    value: float | None
    threshold: float | None
    unit: str
    evidence: Mapping[str, Any]
    trigger: Trigger | None = None


def signal_id(rule: str, device_id: str, metric: str | None, origin: str) -> str:
    """The same id for the same cause: `origin` names the reading or window that raised it."""
    return str(uuid.uuid5(NAMESPACE, _SEPARATOR.join((rule, device_id, metric or "", origin))))


class Announcer:
    """Writes the signals of one rule.

    `inputs` and `key` are the rule's workflow mapping, compiled; `failed` is told the rule's id when
    an expression of the mapping gives no answer, and the field is then null.
    """

    __slots__ = ("_device_type_of", "_failed", "_inputs", "_key", "kind", "rule", "threshold")

    def __init__(
        self,
        rule: Rule,
        threshold: float | None,
        inputs: Mapping[str, Any],
        key: Any,
        device_type_of: DeviceTypeOf,
        failed: Callable[[str], None],
    ) -> None:
        self.rule = rule
        self.kind = rule.test.kind
        self.threshold = threshold
        self._inputs = inputs
        self._key = key
        self._device_type_of = device_type_of
        self._failed = failed

    def raised(
        self,
        cell: Cell,
        device_id: str,
        at: int,
        origin: str,
        value: float | None,
        unit: str,
        evidence: Mapping[str, Any],
        out: list[Signal],
    ) -> None:
        """Say that the rule holds now."""
        rule = self.rule
        cell.signal_id = signal_id(rule.id, device_id, cell.metric, origin)
        cell.raised_at, cell.severity, cell.unit = at, rule.severity, unit
        signal = Signal(
            cell.signal_id, rule.id, self.kind, rule.severity, device_id, cell.metric, "raised", at, at, value,
            self.threshold, unit, evidence,
        )  # fmt: skip
        out.append(signal if rule.workflow is None else signal._replace(trigger=self._trigger(signal)))

    def cleared(
        self, cell: Cell, device_id: str, at: int, value: float | None, evidence: Mapping[str, Any], out: list[Signal]
    ) -> None:
        """Say that the rule no longer holds."""
        out.append(clearing(cell, device_id, at, value, self.threshold, evidence))

    def _trigger(self, signal: Signal) -> Trigger | None:
        start = self.rule.workflow
        if start is None:
            return None
        names = signal_names(signal, self._device_type_of(signal.device_id))
        mapped = {field: self._computed(given, names) for field, given in self._inputs.items()}
        key = self._computed(self._key, names)
        return Trigger(
            start.workflow, mapped, signal.device_id if key is None else str(key), start.debounce_s, start.concurrency
        )

    def _computed(self, given: Any, names: Mapping[str, Any]) -> Any:
        if not callable(given):
            return given
        expression: Expression = given
        try:
            answer = expression({name: names[name] for name in expression.variables})
        except ExpressionFailed:
            self._failed(self.rule.id)
            return None
        if _is_plain(answer):
            return answer
        self._failed(self.rule.id)
        return None


def _is_plain(value: Any) -> bool:
    """True for what JSON can hold."""
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    return value is None or isinstance(value, str | int)


def clearing(
    cell: Cell,
    device_id: str,
    at: int,
    value: float | None,
    threshold: float | None,
    evidence: Mapping[str, Any],
) -> Signal:
    """The record that clears what `cell` holds up, from the cell alone: its rule may be gone."""
    return Signal(
        cell.signal_id, cell.rule, cell.kind, cell.severity, device_id, cell.metric, "cleared",
        max(at, cell.raised_at + 1), cell.raised_at, value, threshold, cell.unit, evidence,
    )  # fmt: skip


def signal_names(signal: Signal, device_type: str) -> dict[str, Any]:
    """What an expression of a workflow mapping may read."""
    return {
        "signal_id": signal.signal_id, "rule": signal.rule, "kind": signal.kind, "severity": signal.severity,
        "device_id": signal.device_id, "device_type": device_type, "metric": signal.metric or "",
        "at": signal.at, "value": signal.value, "threshold": signal.threshold, "unit": signal.unit,
    }  # fmt: skip


EXAMPLE_SIGNAL: Mapping[str, Any] = {
    "signal_id": "", "rule": "r", "kind": "threshold", "severity": "warning", "device_id": "press-0001",
    "device_type": "press", "metric": "temperature", "at": 1, "value": 1.0, "threshold": 1.0, "unit": "CEL",
}  # fmt: skip


def mapped(given: Any, compile_: Callable[[str], Expression]) -> Any:
    """A literal as it is, an expression compiled."""
    return compile_(given.expression) if isinstance(given, Computed) else given
