"""Makes the rules of the settings ready to run."""

from app.adapters.cel import compile_cel
from app.domain import signal_rules as rules
from app.domain.signal_rules import DeviceTypeOf, Rule, RuleProblems, device_type_from_id
from app.domain.signals import CompiledRules, compile_rules
from app.errors import ConfigError
from config import signals as settings

_PER_MS = {"second": 1_000, "minute": 60_000}


def compile_section(
    section: settings.SignalsSettings, device_type_of: DeviceTypeOf = device_type_from_id
) -> CompiledRules:
    """Compile the section `signals`; raises `ConfigError` with every fault of every expression."""
    try:
        return compile_rules(
            [rule_of(rule) for rule in section.rules], compile_cel, device_type_of, max_ahead_ms=section.max_ahead_ms
        )
    except RuleProblems as error:
        raise ConfigError([f"signals.rules: {problem}" for problem in error.problems]) from error


def rule_of(given: settings.AnyRule) -> Rule:
    """The domain's rule for one of the settings."""
    return Rule(
        id=given.id,
        test=_test(given),
        severity=given.severity,
        select=rules.Selector(given.select.device_type, given.select.device, given.select.metric),
        when=given.when,
        hold_ms=given.hold_ms,
        clear_hold_ms=given.clear_hold_ms,
        workflow=None if given.workflow is None else _workflow(given.workflow),
    )


def _test(given: settings.AnyRule) -> rules.Test:
    match given:
        case settings.ThresholdRule():
            return rules.Threshold(given.above, given.below, given.clear_at)
        case settings.RateOfChangeRule():
            return rules.RateOfChange(given.limit, _PER_MS[given.per], given.window_ms, given.direction, given.clear_at)
        case settings.ZScoreRule():
            return rules.ZScore(
                given.window_ms, given.baseline, given.warm_up, given.raise_at, given.clear_at, given.direction,
                given.of, given.min_std, given.min_std_ratio, given.freeze_windows,
            )  # fmt: skip
        case settings.CrossoverRule():
            return rules.Crossover(
                given.window_ms, given.fast, given.slow, given.band, given.clear_band, given.direction, given.of
            )
        case settings.StuckRule():
            return rules.Stuck(given.duration_ms, given.tolerance, given.min_readings, given.max_gap_ms)
        case settings.QualityRule():
            return rules.Quality(given.levels)
        case settings.SilenceRule():
            return rules.Silence(given.duration_ms)
        case settings.ConditionRule():
            return rules.Condition(given.condition, given.clear_when, given.window_ms)


def _workflow(given: settings.WorkflowStartSettings) -> rules.WorkflowStart:
    fields = tuple((name, _given(value)) for name, value in given.input.items())
    return rules.WorkflowStart(given.id, fields, _given(given.concurrency_key), given.debounce_s, given.concurrency)


def _given(value: settings.Given) -> rules.Scalar | rules.Computed:
    return rules.Computed(value.cel) if isinstance(value, settings.CelSettings) else value
