"""Settings of the signals: the rules, how each is written in YAML, and the set that is in force by default."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from config.section import Section, setting

MAX_RULES = 1000
_WEEK_MS = 7 * 86_400_000
Texts = tuple[str, ...]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class SelectSettings(Section):
    """Which devices and metrics a rule looks at; what is left out means all. One text or a list of them."""

    device_type: Texts = setting((), reload="hot", description="Device types: press, pump, …")
    device: Texts = setting((), reload="hot", description="Device ids; `*` and `?` stand for any characters.")
    metric: Texts = setting((), reload="hot", description="Metrics; `*` and `?` stand for any characters.")

    _lists = field_validator("*", mode="before")(_listed)


class CelSettings(Section):
    """An expression where a literal could stand."""

    cel: str = setting(min_length=1, max_length=1024, reload="hot", description="The expression, in CEL.")


# Whole numbers as wide as a JSON reader can be trusted with.
Whole = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
Given = CelSettings | str | bool | Whole | float | None


class WorkflowStartSettings(Section):
    """The workflow that a raised signal starts."""

    id: str = setting(min_length=1, max_length=255, reload="hot", description="The workflow's id.")
    input: dict[str, Given] = setting(
        default_factory=dict,
        reload="hot",
        description="The workflow's input: each field a literal, or `{cel: …}` over the signal.",
    )
    debounce_s: float = setting(
        0.0, ge=0, le=86_400, unit="s", reload="hot", description="Signals of one key within this time start it once."
    )
    concurrency_key: Given = setting(
        CelSettings(cel="device_id"), reload="hot", description="What executions at once are counted by."
    )
    concurrency: int = setting(
        1, ge=1, le=10_000, unit="executions", reload="hot", description="Executions of one key at once at most."
    )


class RuleSettings(Section):
    """What every rule has, whatever its kind."""

    id: str = setting(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        form="letters, digits, _, . and -, 100 at most",
        reload="hot",
        description="Name of the rule: label and identity.",
    )
    severity: Literal["info", "warning", "critical"] = setting(
        "warning", reload="hot", description="How much it matters: info, warning or critical."
    )
    select: SelectSettings = setting(SelectSettings(), reload="hot", description="The devices and metrics looked at.")
    when: str | None = setting(
        None, min_length=1, max_length=1024, reload="hot", description="CEL; what it is not true of is not looked at."
    )
    hold_ms: int = setting(
        0, ge=0, le=_WEEK_MS, unit="ms", reload="hot", description="It must hold this long before the signal is raised."
    )
    clear_hold_ms: int = setting(
        0, ge=0, le=_WEEK_MS, unit="ms", reload="hot", description="It must be over this long before it is cleared."
    )
    workflow: WorkflowStartSettings | None = setting(None, reload="hot", description="The workflow a signal starts.")


def _window_ms(default: Any = ...) -> Any:
    return setting(
        default,
        ge=1,
        le=_WEEK_MS,
        unit="ms",
        reload="hot",
        description="The rollup window it looks at, one of the ladder.",
    )


Of = Literal["mean", "high", "low", "open", "close", "variance", "count"]
Direction = Literal["up", "down", "both"]


class ThresholdRule(RuleSettings):
    """A value above or below a limit, until it is back at `clear_at`."""

    kind: Literal["threshold"] = setting(reload="hot", description="threshold")
    above: float | None = setting(None, reload="hot", description="Raised over this value; this or `below`.")
    below: float | None = setting(None, reload="hot", description="Raised under this value; this or `above`.")
    clear_at: float | None = setting(None, reload="hot", description="Cleared at this value; the limit if left out.")

    @model_validator(mode="after")
    def _one_limit(self) -> "ThresholdRule":
        if (self.above is None) == (self.below is None):
            raise ValueError("a threshold needs either above or below")
        if self.clear_at is not None:
            if self.above is not None and self.clear_at > self.above:
                raise ValueError("clear_at must not lie over above")
            if self.below is not None and self.clear_at < self.below:
                raise ValueError("clear_at must not lie under below")
        return self


class RateOfChangeRule(RuleSettings):
    """A value that moves too fast over a window."""

    kind: Literal["rate_of_change"] = setting(reload="hot", description="rate_of_change")
    limit: float = setting(gt=0, reload="hot", description="Raised when the change per `per` is larger.")
    per: Literal["second", "minute"] = setting("minute", reload="hot", description="The time `limit` is meant for.")
    window_ms: int = setting(
        60_000, ge=100, le=_WEEK_MS, unit="ms", reload="hot", description="The change is measured over this long."
    )
    direction: Direction = setting("both", reload="hot", description="up, down or both.")
    clear_at: float | None = setting(
        None, ge=0, reload="hot", description="Cleared when the change per `per` is back at this; `limit` if left out."
    )

    @model_validator(mode="after")
    def _clear_under_limit(self) -> "RateOfChangeRule":
        if self.clear_at is not None and self.clear_at > self.limit:
            raise ValueError("clear_at must not lie over limit")
        return self


class ZScoreRule(RuleSettings):
    """A final rollup far from the mean of the last ones, in standard deviations."""

    kind: Literal["z_score"] = setting(reload="hot", description="z_score")
    window_ms: int = _window_ms()
    of: Of = setting("mean", reload="hot", description="The field of the rollup it looks at.")
    baseline: int = setting(60, ge=2, le=2000, unit="windows", reload="hot", description="Windows of the rolling mean.")
    warm_up: int = setting(20, ge=2, le=2000, unit="windows", reload="hot", description="No answer before this many.")
    raise_at: float = setting(4.0, gt=0, reload="hot", description="Raised beyond this many standard deviations.")
    clear_at: float = setting(2.0, ge=0, reload="hot", description="Cleared within this many standard deviations.")
    direction: Direction = setting("both", reload="hot", description="up, down or both.")
    min_std: float = setting(0.0, ge=0, reload="hot", description="The deviation counts as at least this.")
    min_std_ratio: float = setting(
        0.001, ge=0, le=1, reload="hot", description="The deviation counts as at least this share of the mean."
    )
    freeze_windows: int | None = setting(
        None,
        ge=1,
        le=100_000,
        unit="windows",
        reload="hot",
        description="While raised the baseline learns nothing, for this many windows; until it clears if left out.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "ZScoreRule":
        if self.warm_up > self.baseline:
            raise ValueError("warm_up must not be more than baseline")
        if self.clear_at > self.raise_at:
            raise ValueError("clear_at must not lie over raise_at")
        return self


class CrossoverRule(RuleSettings):
    """A fast moving average of rollups that leaves the slow one."""

    kind: Literal["moving_average_crossover"] = setting(reload="hot", description="moving_average_crossover")
    window_ms: int = _window_ms()
    of: Of = setting("mean", reload="hot", description="The field of the rollup it looks at.")
    fast: int = setting(5, ge=1, le=2000, unit="windows", reload="hot", description="Windows of the fast average.")
    slow: int = setting(30, ge=2, le=2000, unit="windows", reload="hot", description="Windows of the slow average.")
    band: float = setting(ge=0, reload="hot", description="Raised when they are further apart, in the metric's unit.")
    clear_band: float = setting(0.0, ge=0, reload="hot", description="Cleared when they are no further apart.")
    direction: Direction = setting("both", reload="hot", description="up, down or both.")

    @model_validator(mode="after")
    def _in_order(self) -> "CrossoverRule":
        if self.fast >= self.slow:
            raise ValueError("fast must be less than slow")
        if self.clear_band > self.band:
            raise ValueError("clear_band must not lie over band")
        return self


class StuckRule(RuleSettings):
    """A value that does not move."""

    kind: Literal["stuck"] = setting(reload="hot", description="stuck")
    duration_ms: int = setting(gt=0, le=_WEEK_MS, unit="ms", reload="hot", description="Raised after this long.")
    tolerance: float = setting(0.0, ge=0, reload="hot", description="A move of no more than this is none.")
    min_readings: int = setting(5, ge=2, le=100_000, unit="readings", reload="hot", description="At least this many.")
    max_gap_ms: int | None = setting(
        None,
        ge=1,
        le=_WEEK_MS,
        unit="ms",
        reload="hot",
        description="A longer pause starts afresh; `duration_ms` if left out.",
    )


class QualityRule(RuleSettings):
    """A reading that the device itself does not trust."""

    kind: Literal["quality"] = setting(reload="hot", description="quality")
    levels: tuple[Literal["BAD", "STALE", "UNCERTAIN"], ...] = setting(
        ("BAD", "STALE", "UNCERTAIN"), min_length=1, reload="hot", description="The qualities that raise it."
    )


class SilenceRule(RuleSettings):
    """A device that sends nothing; its selector has no metric."""

    kind: Literal["silence"] = setting(reload="hot", description="silence")
    duration_ms: int = setting(ge=1000, le=_WEEK_MS, unit="ms", reload="hot", description="Raised after this long.")

    @model_validator(mode="after")
    def _whole_device(self) -> "SilenceRule":
        if self.select.metric or self.when or self.hold_ms or self.clear_hold_ms:
            raise ValueError("silence is about the whole device: it takes no metric, when, hold_ms or clear_hold_ms")
        return self


class ConditionRule(RuleSettings):
    """An expression that is true of a reading, or of a final rollup when `window_ms` is set."""

    kind: Literal["condition"] = setting(reload="hot", description="condition")
    condition: str = setting(min_length=1, max_length=1024, reload="hot", description="CEL; raised while it is true.")
    clear_when: str | None = setting(
        None,
        min_length=1,
        max_length=1024,
        reload="hot",
        description="CEL; cleared when true, else when `condition` is false.",
    )
    window_ms: int | None = _window_ms(default=None)


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


KINDS = (
    "threshold", "rate_of_change", "z_score", "moving_average_crossover", "stuck", "quality", "silence", "condition",
)  # fmt: skip

AnyRule = Annotated[
    Annotated[ThresholdRule, Tag("threshold")]
    | Annotated[RateOfChangeRule, Tag("rate_of_change")]
    | Annotated[ZScoreRule, Tag("z_score")]
    | Annotated[CrossoverRule, Tag("moving_average_crossover")]
    | Annotated[StuckRule, Tag("stuck")]
    | Annotated[QualityRule, Tag("quality")]
    | Annotated[SilenceRule, Tag("silence")]
    | Annotated[ConditionRule, Tag("condition")],
    Discriminator(
        _kind,
        custom_error_type="rule_kind",
        custom_error_message=f"kind must be one of {', '.join(KINDS)}",
    ),
]


def _over(device_type: str, metric: str, limit: float, clear_at: float, severity: str = "warning") -> dict[str, Any]:
    name = f"{device_type.replace('_', '-')}-{metric}-high"
    select = {"device_type": device_type, "metric": metric}
    return {
        "id": name, "kind": "threshold", "severity": severity, "select": select, "above": limit, "clear_at": clear_at,
    }  # fmt: skip


def _under(device_type: str, metric: str, limit: float, clear_at: float, severity: str = "warning") -> dict[str, Any]:
    name = f"{device_type.replace('_', '-')}-{metric}-low"
    select = {"device_type": device_type, "metric": metric}
    return {
        "id": name, "kind": "threshold", "severity": severity, "select": select, "below": limit, "clear_at": clear_at,
    }  # fmt: skip


# The limits are the ends of each metric's normal range (`app/domain/device.py`), cleared a tenth of it inside.
DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    _over("press", "temperature", 90.0, 83.0, "critical"),
    _under("press", "temperature", 20.0, 27.0),
    _over("press", "pressure", 240.0, 228.0, "critical"),
    _under("press", "pressure", 120.0, 132.0),
    _over("press", "vibration", 7.0, 6.3),
    _over("press", "current", 100.0, 92.0),
    _under("press", "current", 20.0, 28.0),
    _over("pump", "pressure", 9.0, 8.4, "critical"),
    _under("pump", "pressure", 3.0, 3.6),
    _over("pump", "flow", 160.0, 152.0),
    _under("pump", "flow", 80.0, 88.0, "critical"),
    _over("pump", "vibration", 4.5, 4.05),
    _over("compressor", "pressure", 11.0, 10.5, "critical"),
    _under("compressor", "pressure", 6.0, 6.5),
    _over("compressor", "temperature", 105.0, 99.5, "critical"),
    _under("compressor", "temperature", 50.0, 55.5),
    _over("compressor", "power", 80.0, 75.0),
    _under("compressor", "power", 30.0, 35.0),
    _over("motor", "current", 50.0, 46.5),
    _under("motor", "current", 15.0, 18.5),
    _over("motor", "temperature", 105.0, 97.5, "critical"),
    _under("motor", "temperature", 30.0, 37.5),
    _over("motor", "vibration", 3.6, 3.24),
    _over("motor", "speed", 1560.0, 1544.0),
    _under("motor", "speed", 1400.0, 1416.0),
    _over("furnace", "temperature", 940.0, 926.0, "critical"),
    _under("furnace", "temperature", 800.0, 814.0),
    _over("furnace", "power", 440.0, 416.0),
    _under("furnace", "power", 200.0, 224.0),
    _over("cnc_mill", "vibration", 2.8, 2.52, "critical"),
    _over("cnc_mill", "power", 24.0, 22.0),
    _under("cnc_mill", "power", 4.0, 6.0),
    _over("cnc_mill", "speed", 12000.0, 11400.0),
    _under("cnc_mill", "speed", 6000.0, 6600.0),
    {"id": "sensor-stuck", "kind": "stuck", "severity": "warning", "duration_ms": 15_000, "min_readings": 5},
    {"id": "sensor-quality", "kind": "quality", "severity": "warning"},
    {"id": "device-silent", "kind": "silence", "severity": "critical", "duration_ms": 30_000},
    {
        "id": "unusual-minute", "kind": "z_score", "severity": "info", "window_ms": 60_000, "baseline": 60,
        "warm_up": 15, "raise_at": 6.0, "clear_at": 3.0, "min_std_ratio": 0.005, "freeze_windows": 60,
    },
)  # fmt: skip


class SignalsSettings(Section):
    """The rules over readings and rollups; the file's list takes the place of the default one."""

    enabled: bool = setting(default=True, reload="hot", description="False looks at nothing and keeps what is raised.")
    max_ahead_ms: int = setting(
        60_000,
        ge=0,
        le=_WEEK_MS,
        unit="ms",
        reload="hot",
        description="A sample dated further after it was recorded is not looked at: its device's clock is wrong.",
    )
    tick_interval_ms: int = setting(
        1000, ge=10, le=60_000, unit="ms", reload="hot", description="How often silence is looked for."
    )
    rules: tuple[AnyRule, ...] = setting(
        default_factory=lambda: DEFAULT_RULES,
        max_length=MAX_RULES,
        reload="hot",
        description="The rules, each with an id of its own; docs/signals.md tells how they are written.",
    )

    @model_validator(mode="after")
    def _ids_differ(self) -> "SignalsSettings":
        ids = [rule.id for rule in self.rules]
        twice = sorted({each for each in ids if ids.count(each) > 1})
        if twice:
            raise ValueError(f"rule ids used twice: {', '.join(twice)}")
        return self
