"""What a mutant is tried with: a run, its one fault, and the laws one of which must convict it."""

from dataclasses import dataclass
from typing import Final, Literal

Run = Literal["workflows", "transform", "produce"]
Fault = Literal[
    "none",
    "kill, same disk",
    "kill, other disk",
    "kill while the broker pauses",
    "stop beside another",
    "reports of a zombie",
    "asked twice",
    "asked again after a kill",
    "broker refuses",
]


@dataclass(frozen=True, slots=True)
class Case:
    """One mutant; `laws` empty for one that must pass."""

    name: str
    run: Run
    fault: Fault
    laws: frozenset[str]


def _case(name: str, run: Run, fault: Fault, *laws: str) -> Case:
    return Case(name, run, fault, frozenset(laws))


# Each control has the fault that its mutants have: without the bug the same run passes.
CONTROLS: Final = (
    _case("nothing", "workflows", "kill while the broker pauses"),
    _case("nothing", "workflows", "kill, other disk"),
    _case("nothing", "workflows", "stop beside another"),
    _case("nothing", "workflows", "asked again after a kill"),
    _case("nothing", "workflows", "reports of a zombie"),
    _case("nothing", "workflows", "asked twice"),
    _case("nothing", "workflows", "kill, same disk"),
    _case("nothing", "workflows", "none"),
    _case("nothing", "transform", "none"),
    _case("nothing", "produce", "broker refuses"),
)
MUTANTS: Final = (
    _case("commit-before-output", "workflows", "kill, other disk", "acknowledged", "histories", "state"),
    _case("acknowledge-before-produce", "workflows", "kill, same disk", "acknowledged"),
    _case("stale-reports", "workflows", "reports of a zombie", "histories"),
    _case("no-fencing", "workflows", "stop beside another", "histories", "readers", "state"),
    _case("no-dedupe", "workflows", "asked twice", "unseen"),
    _case("forgets-the-ended", "workflows", "asked again after a kill", "histories"),
    _case("lost-changelog-record", "workflows", "none", "state"),
    _case("swapped-events", "workflows", "none", "histories"),
    _case("event-after-the-end", "workflows", "none", "histories"),
    _case("skipped-timer-row", "workflows", "kill, same disk", "acknowledged", "timers"),
    _case("early-timer", "workflows", "none", "timers"),
    _case("effect-twice", "workflows", "none", "effects"),
    _case("key-of-the-attempt", "workflows", "kill, same disk", "effects"),
    _case("dropped-report", "workflows", "none", "acknowledged"),
    _case("outbox-not-sent-again", "workflows", "kill while the broker pauses", "acknowledged", "histories", "state"),
    _case("restore-without-the-tail", "workflows", "kill, other disk", "acknowledged", "histories", "state"),
    _case("failed-counts-as-acknowledged", "produce", "broker refuses", "books"),
    _case("late-data-dropped", "transform", "none", "rollups"),
    _case("duplicates-counted", "transform", "none", "rollups"),
)
