"""The policy of restarts: how long a child that died waits before it starts again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The first pause, the longest, and the life that forgives earlier deaths."""

    initial_s: float
    max_s: float
    healthy_after_s: float


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """Deaths in a row, this one included, and the pause that follows."""

    deaths: int
    pause_s: float


def after_death(policy: RestartPolicy, deaths_before: int, healthy_for_s: float) -> RestartDecision:
    """The pause doubles with each death in a row; `healthy_for_s` is how long the child was healthy."""
    deaths = 1 if healthy_for_s >= policy.healthy_after_s else deaths_before + 1
    # 2 ** 60 is past any pause in use; the bound keeps the float finite after weeks of deaths.
    return RestartDecision(deaths, min(policy.max_s, policy.initial_s * 2.0 ** min(deaths - 1, 60)))
