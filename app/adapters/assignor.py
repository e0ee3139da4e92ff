"""Partition assignor of every group: sticky, even, and never away from where the tables are (`app.domain.seating`).

Members say at each join which tables they hold and how new those are; the group's leader seats them and tells each
what it owns, whose tables it is to keep warm, and which of those it will be given once they are near.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import orjson
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from faust.assignor import PartitionAssignor
from faust.assignor.client_assignment import ClientAssignment

from app.domain.seating import Seated, Seating, seat


class Holdings(Protocol):
    """The tables of a stage on this node (`app.roles.tables`); asked from the thread of the Kafka client."""

    @property
    def topic(self) -> str:
        """The input whose partitions they belong to."""

    @property
    def replicas(self) -> int:
        """Standbys of each partition."""

    @property
    def node(self) -> str:
        """The node this process is of; standbys are on another one where there is one."""

    def held(self) -> Mapping[int, int]:
        """The next changelog offset that the tables of each partition have not seen."""


class Seat(NamedTuple):
    """What the last round gave this member beside its partitions: numbers of the stage's topic.

    `orphans` are those of its partitions that nobody who took part in the round had before.
    """

    standbys: tuple[int, ...] = ()
    warming: tuple[int, ...] = ()
    orphans: tuple[int, ...] = ()


class SeatingAssignor(PartitionAssignor):
    """Faust's interface with our placement; `app.holdings` is None for a stage without tables."""

    def __init__(self, app: Any, replicas: int = 0) -> None:
        super().__init__(app, replicas)
        self.seat = Seat()
        self._owned: dict[str, list[int]] = {}

    @property
    def name(self) -> str:
        """The protocol of the group: members of another one cannot join."""
        return "headrace"

    @property
    def version(self) -> int:
        return 1

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member says when it joins."""
        holdings: Holdings | None = self.app.holdings
        said: dict[str, Any] = {"owned": self._owned}
        if holdings is not None:
            held = {str(partition): offset for partition, offset in holdings.held().items()}
            said |= {"node": holdings.node, "topic": holdings.topic, "held": held, "replicas": holdings.replicas}
        return ConsumerProtocolMemberMetadata(self.version, list(topics), orjson.dumps(said))

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """What the leader has given this member."""
        told = orjson.loads(assignment.user_data) if assignment.user_data else {}
        self.seat = Seat(*(tuple(told.get(name, ())) for name in Seat._fields))
        self._owned = {topic: sorted(partitions) for topic, partitions in assignment.assignment}
        self._assignment = ClientAssignment(actives={}, standbys={})

    def assign(
        self, cluster: ClusterMetadata, member_metadata: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Seat every member: topic by topic, so that many small topics do not all go to one member."""
        said = {member: _said(metadata) for member, metadata in member_metadata.items()}
        given: dict[str, list[tuple[str, list[int]]]] = {member: [] for member in member_metadata}
        told: dict[str, dict[str, tuple[int, ...]]] = {member: {} for member in member_metadata}
        load = dict.fromkeys(member_metadata, 0)
        for topic in sorted({topic for metadata in member_metadata.values() for topic in metadata.subscription}):
            subscribed = [member for member, metadata in member_metadata.items() if topic in metadata.subscription]
            partitions = sorted(cluster.partitions_for_topic(topic) or ())
            if not partitions:
                continue
            seating = _seat(topic, partitions, {member: said[member] for member in subscribed}, load)
            had = {each for member in subscribed for each in said[member].get("owned", {}).get(topic, ())}
            for member in subscribed:
                owned = seating.owned_by(member)
                load[member] += len(owned)
                if owned:
                    given[member].append((topic, owned))
                if said[member].get("topic") == topic:
                    told[member] = Seat(
                        standbys=tuple(seating.kept_by(member)),
                        warming=tuple(seating.awaited_from(member)),
                        orphans=tuple(partition for partition in owned if partition not in had),
                    )._asdict()
        return {
            member: ConsumerProtocolMemberAssignment(self.version, assigned, orjson.dumps(told[member]))
            for member, assigned in given.items()
        }


def _seat(topic: str, partitions: list[int], said: Mapping[str, dict[str, Any]], load: Mapping[str, int]) -> Seating:
    members = []
    replicas = 0
    for member, words in said.items():
        held = words["held"] if words.get("topic") == topic else {}
        owned = frozenset(words.get("owned", {}).get(topic, ()))
        members.append(Seated(member, words.get("node", ""), {int(p): offset for p, offset in held.items()}, owned))
        if words.get("topic") == topic:
            replicas = max(replicas, words.get("replicas", 0))
    return seat(members, partitions, replicas=replicas, load=load)


def _said(metadata: ConsumerProtocolMemberMetadata) -> dict[str, Any]:
    said: dict[str, Any] = orjson.loads(metadata.user_data) if metadata.user_data else {}
    return said
