"""The nodes of a cluster, folded from what they say: who is there, who is silent, who leads, who may not join.

Times are seconds of a clock that never goes back. A node is unreachable when it was not heard for so long while others
were, or when another node does not reach it and it has not spoken since that was first said.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

from app.domain.cluster import GroupSeat, NodeView

Standing = Literal["joining", "ready", "leaving", "unreachable"]
Status = Literal["Up", "Degraded", "Down"]

# Facts that a node tells of itself.
INSTANCE: Final = "instance"
UNREACHABLE: Final = "unreachable"
CLOCK_AHEAD_MS: Final = "clock_ahead_ms"
SETTLED: Final = "settled"
_ORDER: Final[Mapping[str, int]] = {"joining": 1, "ready": 0, "leaving": 2, "unreachable": 3}


@dataclass(frozen=True, slots=True)
class Member:
    """A node and when it was last heard of."""

    view: NodeView
    heard_s: float


@dataclass(frozen=True, slots=True)
class Roster:
    """`accused` holds since when somebody has said, without a break, that a node is not reached."""

    members: Mapping[str, Member] = field(default_factory=lambda: MappingProxyType({}))
    accused: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    heard_s: float = 0.0

    @property
    def views(self) -> tuple[NodeView, ...]:
        """Everybody, by name."""
        return tuple(self.members[name].view for name in sorted(self.members))


def take(roster: Roster, node_id: str, view: NodeView | None, now_s: float) -> Roster:
    """The roster after a record: None is the end of a node; an earlier start of a node says nothing any more.

    Nor does one that has not been taken in yet, where there is one of its name that was: it may be refused.
    """
    members = dict(roster.members)
    known = members.get(node_id)
    if view is None:
        members.pop(node_id, None)
    elif known is not None and _rank(view) < _rank(known.view):
        return roster
    else:
        members[node_id] = Member(view, now_s)
    named = {name for member in members.values() for name in unreachable_of(member.view)}
    accused = {name: roster.accused.get(name, now_s) for name in named}
    return Roster(members, accused, now_s)


def has_heir(roster: Roster, seats: Iterable[GroupSeat], nobody: Collection[str]) -> bool:
    """Whether a node, which is not one of `nobody`, sits in a group of these seats and can take what they give up."""
    groups = {seat.group for seat in seats}
    return any(seat.group in groups for view in roster.views if view.node_id not in nobody for seat in view.seats)


def _rank(view: NodeView) -> tuple[bool, int]:
    return SETTLED in view.facts, view.epoch


def heard(roster: Roster, node_id: str, now_s: float) -> Roster:
    """The roster after a sign of life that is no record."""
    member = roster.members.get(node_id)
    if member is None:
        return roster
    return replace(roster, members={**roster.members, node_id: replace(member, heard_s=now_s)}, heard_s=now_s)


def unreachable_of(view: NodeView) -> tuple[str, ...]:
    """The nodes that a node says it does not reach."""
    named = view.facts.get(UNREACHABLE, "")
    return tuple(name for name in named.split(",") if name and name != view.node_id)


def silent_s(roster: Roster, node_id: str) -> float:
    """How much longer than the others it was not heard: where nobody is heard, the way of the news is closed."""
    return roster.heard_s - roster.members[node_id].heard_s


def standing(roster: Roster, node_id: str, silent_after_s: float) -> Standing:
    member = roster.members[node_id]
    accused_s = roster.accused.get(node_id)
    if silent_s(roster, node_id) > silent_after_s or (accused_s is not None and member.heard_s <= accused_s):
        return "unreachable"
    return "leaving" if member.view.state == "gone" else member.view.state


def standings(roster: Roster, silent_after_s: float) -> dict[str, Standing]:
    """That of every node."""
    return {node_id: standing(roster, node_id, silent_after_s) for node_id in sorted(roster.members)}


def leader(roster: Roster, silent_after_s: float) -> str | None:
    """Who does what one node has to do for all: of the ready ones the oldest, else the oldest that is reached.

    Two nodes may differ for a moment, so that what a leader does must not hurt when it is done twice.
    """
    found = standings(roster, silent_after_s)
    reached = [node_id for node_id in found if found[node_id] in {"ready", "joining"}]
    return min(
        reached,
        key=lambda node_id: (_ORDER[found[node_id]], roster.members[node_id].view.epoch, node_id),
        default=None,
    )


def status(found: Mapping[str, Standing], ownerless: int) -> Status:
    """Of the cluster as a whole: who joins or leaves in order takes nothing from it, who is not reached does."""
    if "ready" not in found.values():
        return "Down"
    return "Degraded" if ownerless or "unreachable" in found.values() else "Up"


def forgotten(roster: Roster, silent_after_s: float, forget_after_s: float) -> tuple[str, ...]:
    """The nodes that will not be waited for any more."""
    return tuple(
        node_id
        for node_id, found in standings(roster, silent_after_s).items()
        if found == "unreachable" and silent_s(roster, node_id) > forget_after_s
    )


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a node: joined, ready, leaving, left, unreachable, back."""

    event: Literal["joined", "ready", "leaving", "left", "unreachable", "back"]
    node_id: str


def changes(before: Mapping[str, Standing], after: Mapping[str, Standing]) -> tuple[Change, ...]:
    """The difference of two looks at everybody's standing."""
    found = [Change("left", node_id) for node_id in before if node_id not in after]
    for node_id, now in after.items():
        was = before.get(node_id)
        if was is None:
            found.append(Change("joined", node_id))
        if now == was:
            continue
        if now == "unreachable":
            found.append(Change("unreachable", node_id))
        elif was == "unreachable":
            found.append(Change("back", node_id))
        elif now == "leaving" or (now == "ready" and was is not None):
            found.append(Change(now, node_id))
    return tuple(found)


# ---- who may join ----


def _numbers(version: str) -> tuple[int, int] | None:
    """Major and minor; None for what is no version."""
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a node may not join, empty when it may; and what its operator should know."""

    refused: str = ""
    warning: str = ""


def versions(own: NodeView, others: Iterable[NodeView]) -> Verdict:
    """A cluster is of one major version; a node of another minor one is what a rolling upgrade is made of."""
    mine = _numbers(own.version)
    other = sorted({(view.version, view.node_id) for view in others if view.version != own.version})
    major = [(version, node) for version, node in other if mine is None or (_numbers(version) or (None,))[0] != mine[0]]
    if major:
        return Verdict(
            refused=f"This node is version {own.version}, but {_named(major)}: records of another major version may not"
            " be understood. Stop the cluster and start it with one version, or set cluster.allow_version_mix."
        )
    minor = [(version, node) for version, node in other if _numbers(version) != mine]
    if minor:
        return Verdict(warning=f"This node is version {own.version}, but {_named(minor)}: finish the upgrade.")
    return Verdict()


def _named(found: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"node {node} is {version}" for version, node in found)


def same_name(own: NodeView, other: NodeView) -> bool:
    """Whether this is another start under our own name."""
    return own.node_id == other.node_id and own.facts.get(INSTANCE) != other.facts.get(INSTANCE)


def came_first(one: NodeView, other: NodeView) -> bool:
    """Which of two that start under one name at the same time keeps it."""
    return (one.epoch, one.facts.get(INSTANCE, "")) < (other.epoch, other.facts.get(INSTANCE, ""))


# ---- clocks ----


def clock_ahead_ms(view: NodeView) -> float | None:
    """How far a node says its clock is ahead of the broker's; None when it has not measured it."""
    try:
        return float(view.facts[CLOCK_AHEAD_MS])
    except (KeyError, ValueError):
        return None


def wrong_clock(own: NodeView, others: Iterable[NodeView], most_s: float) -> str:
    """One sentence when our clock differs by more than `most_s` from the broker's or a peer's, else nothing."""
    mine = clock_ahead_ms(own)
    if mine is None:
        return ""
    if abs(mine) > most_s * 1000:
        return f"The clock of this node is {_apart(mine)} the broker's"
    theirs = ((view.node_id, clock_ahead_ms(view)) for view in others if view.node_id != own.node_id)
    apart = [(mine - other, node) for node, other in theirs if other is not None and abs(mine - other) > most_s * 1000]
    if not apart:
        return ""
    by_ms, node = max(apart, key=lambda each: (abs(each[0]), each[1]))
    return f"The clock of this node is {_apart(by_ms)} that of node {node}"


def _apart(by_ms: float) -> str:
    return f"{abs(by_ms) / 1000:.1f} s {'ahead of' if by_ms > 0 else 'behind'}"


# ---- partitions ----


def owned(views: Iterable[NodeView]) -> dict[str, dict[str, set[int]]]:
    """Group, topic and the partitions that somebody has a seat for."""
    found: dict[str, dict[str, set[int]]] = {}
    for view in views:
        for seat in view.seats:
            topics = found.setdefault(seat.group, {})
            for text in seat.partitions:
                topic, _, number = text.rpartition("-")
                if topic and number.isdecimal():
                    topics.setdefault(topic, set()).add(int(number))
    return found


def ownerless(
    views: Iterable[NodeView], unreachable: Collection[str], partitions: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """By group, the partitions of its topics that no reachable node has; `partitions` is how many a topic has."""
    everybody = list(views)
    wanted = owned(everybody)
    reached = owned(view for view in everybody if view.node_id not in unreachable)
    missing: dict[str, tuple[str, ...]] = {}
    for group, topics in sorted(wanted.items()):
        gone = [
            f"{topic}-{number}"
            for topic in sorted(topics)
            for number in range(partitions.get(topic, 0))
            if number not in reached.get(group, {}).get(topic, ())
        ]
        if gone:
            missing[group] = tuple(gone)
    return missing
