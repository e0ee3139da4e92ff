"""Which faults happen when: a pure function of the seed, so that a run can be replayed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

# Faults come about as often as asked; this much before and after is left to the load alone.
LEAD_S: Final = 3.0
SPREAD: Final = (0.5, 1.5)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: its name, the lengths it may have (seconds), and how often it is drawn beside the others."""

    name: str
    lengths_s: tuple[float, ...] = (0.0,)
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of a schedule. `pick` (0 ≤ pick < 1) chooses the victim among those there are."""

    number: int
    at_s: float
    kind: str
    length_s: float
    pick: float

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the report."""
        return {
            "number": self.number,
            "at_s": self.at_s,
            "kind": self.kind,
            "length_s": self.length_s,
            "pick": self.pick,
        }


def planned_of(row: Mapping[str, Any]) -> Planned:
    """The fault that `as_dict` wrote."""
    return Planned(int(row["number"]), float(row["at_s"]), str(row["kind"]), float(row["length_s"]), float(row["pick"]))


def schedule(seed: int, seconds: float, kinds: Sequence[Kind], every_s: float) -> tuple[Planned, ...]:
    """Faults of `kinds` in (LEAD_S, seconds), one every `every_s` in the mean; every kind once before any comes twice.

    No fault is planned to last beyond the end: a length that does not fit is replaced by the longest that does.
    """
    assert kinds, "a schedule needs a kind of fault"
    assert every_s > 0, "faults are some time apart"
    chance = Random(seed)
    drawn = _rounds(chance, kinds)
    found: list[Planned] = []
    at_s = LEAD_S
    while at_s < seconds:
        kind = next(drawn)
        length_s = _fitting(chance.choice(kind.lengths_s), kind, seconds - at_s)
        found.append(Planned(len(found), round(at_s, 3), kind.name, length_s, round(chance.random(), 6)))
        at_s += every_s * chance.uniform(*SPREAD)
    return tuple(found)


def _rounds(chance: Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Every kind once, then each as often as its weight says, shuffled anew in every round."""
    first = list(kinds)
    chance.shuffle(first)
    yield from first
    while True:
        again = [kind for kind in kinds for _ in range(kind.weight)]
        chance.shuffle(again)
        yield from again


def _fitting(length_s: float, kind: Kind, room_s: float) -> float:
    if length_s <= room_s:
        return length_s
    fitting = [each for each in kind.lengths_s if each <= room_s]
    return max(fitting) if fitting else min(kind.lengths_s)
