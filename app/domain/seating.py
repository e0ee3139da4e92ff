"""Which member of a consumer group owns which partition, and who keeps its tables warm besides.

(1) a partition stays with the member that has it, if that one's tables are near the newest there are;
(2) one without an owner goes to a member whose tables are near, of those to the one that has least: never to one
    without its state while one with it lives;
(3) members that have at least two more than others give to those whose tables are near;
(4) each partition has standbys, on other nodes than its owner's where there are any;
(5) who would be given a partition under (3) but for its tables becomes one more standby of it, and asks for another
    round once they are near.
Where there is no state every member is near, so that partitions are spread evenly and stay where they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

# Changelog records that a takeover reads without anybody noticing: about a twentieth of a second's work.
NEAR_RECORDS = 5_000
# Seconds that a round is left alone before a member asks for another, to be given what its tables are near enough for.
ASK_FIRST_S = 2.5
ASK_MOST_S = 80.0


@dataclass(frozen=True, slots=True)
class Seated:
    """A member as it joins: `held` is the next changelog offset that its tables of a partition have not seen."""

    member_id: str
    node: str = ""
    held: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    owned: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Seating:
    """Owner and standbys of every partition; `warming` are those of the standbys that (5) made."""

    owners: Mapping[int, str]
    standbys: Mapping[int, tuple[str, ...]]
    warming: Mapping[int, tuple[str, ...]]

    def owned_by(self, member_id: str) -> list[int]:
        """The partitions of a member, ascending."""
        return sorted(partition for partition, owner in self.owners.items() if owner == member_id)

    def kept_by(self, member_id: str) -> list[int]:
        """The partitions whose tables a member keeps warm, ascending."""
        return sorted(partition for partition, members in self.standbys.items() if member_id in members)

    def awaited_from(self, member_id: str) -> list[int]:
        """The partitions that a member will be given once its tables are near."""
        return sorted(partition for partition, members in self.warming.items() if member_id in members)


class _Table:
    """The work of one seating."""

    def __init__(
        self, members: Sequence[Seated], partitions: Sequence[int], near: int, load: Mapping[str, int]
    ) -> None:
        self.members = sorted(members, key=lambda member: member.member_id)
        self.nodes = {member.member_id: member.node or member.member_id for member in self.members}
        self.load = {member.member_id: load.get(member.member_id, 0) for member in self.members}
        self.owners: dict[int, str] = {}
        self._near = near
        self._newest = {p: max(member.held.get(p, 0) for member in self.members) for p in partitions}

    def is_near(self, member: Seated, partition: int) -> bool:
        return self._newest[partition] - member.held.get(partition, 0) <= self._near

    def give(self, partition: int, member_id: str) -> None:
        """To this member, away from the one that had it."""
        before = self.owners.get(partition)
        if before is not None:
            self.load[before] -= 1
        self.owners[partition] = member_id
        self.load[member_id] += 1

    def seat(self, partitions: Sequence[int]) -> None:
        """(1) and (2)."""
        for partition in partitions:
            owners = [m for m in self.members if partition in m.owned and self.is_near(m, partition)]
            if owners:
                self.give(partition, max(owners, key=lambda m: m.held.get(partition, 0)).member_id)
        for partition in partitions:
            if partition not in self.owners:
                near = [member for member in self.members if self.is_near(member, partition)]
                self.give(partition, min(near, key=lambda m: (self.load[m.member_id], m.member_id)).member_id)

    def even_out(self, partitions: Sequence[int]) -> None:
        """(3): each step brings two members closer, so that it ends."""
        while (step := self._next_step(partitions, near=True)) is not None:
            self.give(*step)

    def _next_step(self, partitions: Sequence[int], *, near: bool) -> tuple[int, str] | None:
        for least in sorted(self.members, key=lambda m: (self.load[m.member_id], m.member_id)):
            for partition in sorted(partitions, key=lambda p: (-self.load[self.owners[p]], p)):
                if self.load[self.owners[partition]] - self.load[least.member_id] < 2:
                    break
                if self.is_near(least, partition) is near:
                    return partition, least.member_id
        return None

    def standbys(self, partitions: Sequence[int], replicas: int) -> dict[int, tuple[str, ...]]:
        """(4)"""
        kept = dict.fromkeys(self.load, 0)
        chosen: dict[int, tuple[str, ...]] = {}
        for partition in partitions:
            owner = self.owners[partition]
            ranked = sorted(
                (member for member in self.members if member.member_id != owner),
                key=lambda m: (
                    self.nodes[m.member_id] == self.nodes[owner],
                    not self.is_near(m, partition),
                    kept[m.member_id],
                    -m.held.get(partition, 0),
                    m.member_id,
                ),
            )
            chosen[partition] = tuple(member.member_id for member in ranked[:replicas])
            for member_id in chosen[partition]:
                kept[member_id] += 1
        return chosen

    def warming(self, partitions: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """(5): as if the tables of those that are not near were; nothing is given."""
        before, load = dict(self.owners), dict(self.load)
        wanted: dict[int, tuple[str, ...]] = {}
        while (step := self._next_step([p for p in partitions if p not in wanted], near=False)) is not None:
            partition, member_id = step
            wanted[partition] = (member_id,)
            self.give(partition, member_id)
        self.owners, self.load = before, load
        return wanted


def seat(
    members: Sequence[Seated],
    partitions: Sequence[int],
    *,
    replicas: int = 0,
    near: int = NEAR_RECORDS,
    load: Mapping[str, int] = MappingProxyType({}),
) -> Seating:
    """Seat `members`, of which there is at least one; `load` are partitions of other topics that they have already."""
    table = _Table(members, partitions, near, load)
    table.seat(partitions)
    table.even_out(partitions)
    standbys = table.standbys(partitions, replicas)
    warming = table.warming(partitions)
    for partition, extra in warming.items():
        standbys[partition] += tuple(member for member in extra if member not in standbys[partition])
    return Seating(table.owners, standbys, warming)


class Asking:
    """When a member may ask for another round: each of them stops everybody's work for a moment.

    Once a round, and not before that is some seconds old: `ASK_FIRST_S`, doubled with every ask that comes before twice
    `ASK_MOST_S` have gone by since the last one, up to `ASK_MOST_S`. Members that take partitions from one another so
    leave each other more and more time to open them.
    """

    def __init__(self) -> None:
        self._generation: int | None = None
        self._since_s = 0.0
        self._asked_s: float | None = None
        self._asked_in: int | None = None
        self._pause_s = ASK_FIRST_S

    def may(self, generation: int, now_s: float, *, ready: bool) -> bool:
        """Whether to ask now, in the round of this number, given that the tables are `ready`; true once a round."""
        if generation != self._generation:
            self._generation, self._since_s = generation, now_s
        calm = self._asked_s is None or now_s - self._asked_s >= 2 * ASK_MOST_S
        pause_s = ASK_FIRST_S if calm else self._pause_s
        if not ready or self._asked_in == generation or now_s - self._since_s < pause_s:
            return False
        self._asked_s, self._asked_in, self._pause_s = now_s, generation, min(2 * pause_s, ASK_MOST_S)
        return True
