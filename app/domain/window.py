"""The ladder of event-time windows: its rungs, which rung feeds which, and the windows an instant is in.

    1 s ─▶ 10 s ─▶ 1 min ─▶ 5 min ─▶ 1 h        readings enter the finest rung only;
                     └────▶ 10 min by 1 min     a finalised window is merged into the rungs it feeds

Windows include their start, exclude their end, and are aligned to the epoch. A hopping rung is fed by the
largest tumbling rung below it that divides both its size and its advance, and feeds none: its windows overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from app.domain.dedupe import DedupeSpec

Emit = Literal["on_close", "on_final"]


class Rung(NamedTuple):
    """One window size; tumbling when `advance_ms` is 0 or the size; `emit` False keeps it internal."""

    size_ms: int
    advance_ms: int = 0
    emit: bool = True

    @property
    def step_ms(self) -> int:
        """The distance from one window's start to the next one's."""
        return self.advance_ms or self.size_ms

    @property
    def is_tumbling(self) -> bool:
        """Whether windows do not overlap."""
        return self.step_ms == self.size_ms


DEFAULT_LADDER = (Rung(1_000), Rung(10_000), Rung(60_000), Rung(300_000), Rung(3_600_000))


@dataclass(frozen=True, slots=True)
class RollupSpec:
    """How readings become rollups. Raises ValueError, naming every problem, for an impossible ladder.

    `emit` "on_close" publishes a finest window when it closes, again at most once a batch while late readings
    revise it within `grace_ms`, and as final at the end; "on_final" publishes each window once.
    """

    rungs: tuple[Rung, ...] = DEFAULT_LADDER
    grace_ms: int = 5_000
    idle_timeout_ms: int = 30_000
    emit: Emit = "on_close"
    dedupe: DedupeSpec = field(default_factory=DedupeSpec)
    targets: tuple[tuple[int, ...], ...] = field(init=False)
    base_ms: int = field(init=False)
    open_delay_ms: int = field(init=False)

    def __post_init__(self) -> None:
        sources, problems = feed(self.rungs)
        if self.grace_ms < 0 or self.idle_timeout_ms <= 0:
            problems.append("grace_ms must not be negative, and idle_timeout_ms must be positive")
        if problems:
            raise ValueError("; ".join(problems))
        targets = tuple(
            tuple(index for index, source in enumerate(sources, start=1) if source == rung)
            for rung in range(len(self.rungs))
        )
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "base_ms", self.rungs[0].size_ms)
        object.__setattr__(self, "open_delay_ms", 0 if self.emit == "on_close" else self.grace_ms)


def feed(rungs: Sequence[Rung]) -> tuple[list[int], list[str]]:
    """Return, for each rung but the finest, the index of the rung that feeds it; and every problem found."""
    if not rungs:
        return [], ["a ladder needs at least one rung"]
    problems = [f"a window of {rung.size_ms} ms by {rung.step_ms} ms is impossible" for rung in rungs if _absurd(rung)]
    sizes = [rung.size_ms for rung in rungs]
    if sizes != sorted(set(sizes)):
        problems.append("rungs must grow in size, each size once")
    if not rungs[0].is_tumbling:
        problems.append("the finest rung must be tumbling: hopping windows are built from it")
    sources = []
    for index, rung in enumerate(rungs[1:], start=1):
        source = _source(rungs[:index], rung) if not problems else 0
        if source is None:
            problems.append(f"no finer tumbling rung divides {rung.size_ms} ms by {rung.step_ms} ms")
        sources.append(source or 0)
    return sources, problems


def starts(rung: Rung, instant_ms: int) -> list[int]:
    """Return the starts of the rung's windows that hold the instant, oldest first."""
    step = rung.step_ms
    last = instant_ms - instant_ms % step
    if rung.is_tumbling:
        return [last]
    first = (instant_ms - rung.size_ms) // step * step + step
    return list(range(first, last + 1, step))


def _absurd(rung: Rung) -> bool:
    return rung.size_ms <= 0 or rung.advance_ms < 0 or rung.advance_ms > rung.size_ms


def _source(finer: Sequence[Rung], rung: Rung) -> int | None:
    for index in range(len(finer) - 1, -1, -1):
        size = finer[index].size_ms
        if finer[index].is_tumbling and rung.size_ms % size == 0 and rung.step_ms % size == 0:
            return index
    return None
