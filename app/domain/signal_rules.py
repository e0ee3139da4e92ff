"""What a signal rule says: which readings it looks at, what it looks for, and what a match starts."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, Protocol

Severity = Literal["info", "warning", "critical"]
Direction = Literal["up", "down", "both"]
RollupField = Literal["mean", "high", "low", "open", "close", "variance", "count"]
Scalar = str | float | int | bool | None


class ExpressionFailed(Exception):
    """An expression gave no answer for these values."""


class RuleProblems(ValueError):
    """The rules cannot be compiled: `problems` has one sentence for each fault."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Expression(Protocol):
    """A compiled expression: `variables` are the names it reads; a call may raise `ExpressionFailed`."""

    @property
    def variables(self) -> frozenset[str]: ...
    def __call__(self, values: Mapping[str, Any]) -> Any: ...


# Compiles a source against an example of every name it may read; raises ValueError with one sentence.
CompileExpression = Callable[[str, Mapping[str, Any]], Expression]
DeviceTypeOf = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Selector:
    """Which devices and metrics a rule looks at; empty means all. `devices` and `metrics` are globs."""

    device_types: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    def takes_device(self, device_id: str, device_type: str) -> bool:
        """True when the rule looks at this device."""
        if self.device_types and device_type not in self.device_types:
            return False
        return not self.devices or any(fnmatchcase(device_id, glob) for glob in self.devices)

    def takes_metric(self, metric: str) -> bool:
        """True when the rule looks at this metric."""
        return not self.metrics or any(fnmatchcase(metric, glob) for glob in self.metrics)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A value over `above`, or under `below` (exactly one is set), until it is back at `clear_at`."""

    above: float | None = None
    below: float | None = None
    clear_at: float | None = None
    kind: Literal["threshold"] = "threshold"


@dataclass(frozen=True, slots=True)
class RateOfChange:
    """A slope beyond `limit` per `per_ms` over the last `window_ms`, until its size is back at `clear_at`."""

    limit: float
    per_ms: int = 60_000
    window_ms: int = 60_000
    direction: Direction = "both"
    clear_at: float | None = None
    kind: Literal["rate_of_change"] = "rate_of_change"


@dataclass(frozen=True, slots=True)
class ZScore:
    """A final rollup far from the last `baseline` ones, in standard deviations.

    No answer before `warm_up` windows. The baseline stands still while the signal is raised, for
    `freeze_windows` windows at most (None: until it clears), so that a fault does not become the norm.
    The deviation is never taken smaller than `min_std` nor than `min_std_ratio` of the mean.
    """

    window_ms: int
    baseline: int = 60
    warm_up: int = 20
    raise_at: float = 4.0
    clear_at: float = 2.0
    direction: Direction = "both"
    of: RollupField = "mean"
    min_std: float = 0.0
    min_std_ratio: float = 0.001
    freeze_windows: int | None = None
    kind: Literal["z_score"] = "z_score"


@dataclass(frozen=True, slots=True)
class Crossover:
    """The mean of the last `fast` final rollups leaves that of the last `slow` by more than `band`.

    `band` and `clear_band` are in the metric's unit.
    """

    window_ms: int
    fast: int
    slow: int
    band: float
    clear_band: float = 0.0
    direction: Direction = "both"
    of: RollupField = "mean"
    kind: Literal["moving_average_crossover"] = "moving_average_crossover"


@dataclass(frozen=True, slots=True)
class Stuck:
    """A value that stays within `tolerance` of itself for `duration_ms` over `min_readings` readings.

    A pause longer than `max_gap_ms` starts the measurement afresh (None: `duration_ms`).
    """

    duration_ms: int
    tolerance: float = 0.0
    min_readings: int = 5
    max_gap_ms: int | None = None
    kind: Literal["stuck"] = "stuck"


@dataclass(frozen=True, slots=True)
class Quality:
    """A reading whose quality is one of `levels`: the device itself says that it cannot be trusted."""

    levels: tuple[str, ...] = ("BAD", "STALE", "UNCERTAIN")
    kind: Literal["quality"] = "quality"


@dataclass(frozen=True, slots=True)
class Silence:
    """No sample from a device for `duration_ms` of wall time."""

    duration_ms: int
    kind: Literal["silence"] = "silence"


@dataclass(frozen=True, slots=True)
class Condition:
    """An expression that is true, over readings, or over final rollups of `window_ms` when that is set."""

    expression: str
    clear_when: str | None = None
    window_ms: int | None = None
    kind: Literal["condition"] = "condition"


Test = Threshold | RateOfChange | ZScore | Crossover | Stuck | Quality | Silence | Condition


class Computed(NamedTuple):
    """An expression in place of a literal."""

    expression: str


DEVICE_KEY = Computed("device_id")


@dataclass(frozen=True, slots=True)
class WorkflowStart:
    """The workflow a raised signal starts; `key` bounds how many run at once per its value."""

    workflow: str
    input: tuple[tuple[str, Scalar | Computed], ...] = ()
    key: Scalar | Computed = DEVICE_KEY
    debounce_s: float = 0.0
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `test` must hold for `hold_ms` to raise, and be over for `clear_hold_ms` to clear."""

    id: str
    test: Test
    severity: Severity = "warning"
    select: Selector = Selector()
    when: str | None = None
    hold_ms: int = 0
    clear_hold_ms: int = 0
    workflow: WorkflowStart | None = None

    def digest(self) -> str:
        """A hash of all that decides when it raises and clears; state is kept over a reload while it is equal."""
        told = repr((self.id, self.test, self.select, self.when, self.hold_ms, self.clear_hold_ms))
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def device_type_from_id(device_id: str) -> str:
    """The part before the last hyphen, with underscores: `cnc_mill` for `cnc-mill-0001`."""
    return (device_id.rpartition("-")[0] or device_id).replace("-", "_")
