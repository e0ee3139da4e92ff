"""Settings of the rollups: the ladder of windows, late data and silent devices."""

from typing import Literal

from pydantic import field_validator

from config.section import Section, setting

HOUR_MS = 3_600_000
WEEK_MS = 168 * HOUR_MS


class RungSettings(Section):
    """One window size of the ladder."""

    size_ms: int = setting(ge=10, le=WEEK_MS, unit="ms", description="Length of a window.")
    advance_ms: int = setting(
        0, ge=0, le=WEEK_MS, unit="ms", description="Distance between starts of hopping windows; 0 means tumbling."
    )
    emit: bool = setting(
        default=True, description="Publish this rung's windows; off keeps them as a step to coarser ones."
    )


def _default_ladder() -> tuple[RungSettings, ...]:
    return tuple(RungSettings(size_ms=size_ms) for size_ms in (1_000, 10_000, 60_000, 300_000, HOUR_MS))


class RollupSettings(Section):
    """How readings become rollups in event time."""

    ladder: tuple[RungSettings, ...] = setting(
        default_factory=_default_ladder,
        min_length=1,
        max_length=16,
        description="Window sizes from fine to coarse; each is built from a finer tumbling one that divides its size"
        " and advance. After a change, open windows of a rung that is gone are dropped.",
    )
    grace_ms: int = setting(
        5_000,
        ge=0,
        le=HOUR_MS,
        unit="ms",
        reload="hot",
        description="Event time a window still takes late readings after its end.",
    )
    idle_timeout_ms: int = setting(
        30_000,
        ge=100,
        le=24 * HOUR_MS,
        unit="ms",
        reload="hot",
        description="Silence after which a device's windows close by the wall clock.",
    )
    idle_tick_ms: int = setting(
        500, ge=10, le=60_000, unit="ms", reload="hot", description="How often silent devices are looked for."
    )
    emit: Literal["on_close", "on_final"] = setting(
        "on_close",
        reload="hot",
        description="on_close publishes a finest window when it ends, its revisions, and the final one;"
        " on_final publishes each window once, grace_ms later.",
    )

    @field_validator("ladder")
    @classmethod
    def _each_rung_has_a_source(cls, ladder: tuple[RungSettings, ...]) -> tuple[RungSettings, ...]:
        sizes = [rung.size_ms for rung in ladder]
        problems = [
            f"advance_ms {rung.advance_ms} is more than size_ms {rung.size_ms}" for rung in ladder if _skips(rung)
        ]
        if sizes != sorted(set(sizes)):
            problems.append(f"sizes must grow and differ, not {sizes}")
        if _hops(ladder[0]):
            problems.append("the finest rung must be tumbling (advance_ms 0)")
        for index, rung in enumerate(ladder[1:], start=1):
            step_ms = rung.advance_ms or rung.size_ms
            finer = [below.size_ms for below in ladder[:index] if not _hops(below)]
            if not any(rung.size_ms % size_ms == 0 and step_ms % size_ms == 0 for size_ms in finer):
                problems.append(f"no finer tumbling rung divides {rung.size_ms} ms by {step_ms} ms")
        if problems:
            raise ValueError("; ".join(problems))
        return ladder


def _hops(rung: RungSettings) -> bool:
    return rung.advance_ms not in {0, rung.size_ms}


def _skips(rung: RungSettings) -> bool:
    return rung.advance_ms > rung.size_ms
