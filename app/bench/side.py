"""What a benchmark needs to know of each side, ours and the peers'."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.bench.environments import Command, Say
from app.errors import UserError

OURS = "headrace"
Progress = Callable[[str, int, int], None]
"""Called with (what is under way, done, of how many)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One contestant.

    `command` finds or installs it. `options` goes into its specification. `share` is the part of the
    records a slow side gets, so that all take about equally long. `durability` states, for the
    reader, what it promises when a record counts as done.
    """

    name: str
    command: Callable[[Say], Command]
    durability: str
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure; `every_s` are the seconds between two faults, of benchmarks that make some."""

    records: int
    runs: int
    peers: tuple[str, ...] | None = None
    every_s: float = 0.0


def our_module(module: str, versions: str = "this checkout") -> Callable[[Say], Command]:
    """A side of our own, run as a module by this interpreter."""
    return lambda _say: Command((sys.executable, "-m", module), versions)


def chosen(sides: Sequence[Side], peers: tuple[str, ...] | None) -> tuple[Side, ...]:
    """Ours and the named peers, or all of them when `peers` is None. Raises `UserError` for an unknown name."""
    if peers is None:
        return tuple(sides)
    known = [side.name for side in sides if side.name != OURS]
    unknown = [name for name in peers if name not in known]
    if unknown:
        raise UserError(f"Unknown peers: {', '.join(unknown)}. Known here: {', '.join(known)}.")
    return tuple(side for side in sides if side.name == OURS or side.name in peers)
