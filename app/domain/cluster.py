"""The nodes of a cluster as each of them sees the others: who they are, where they answer and what they own.

A node is one deployable: a supervisor with one process a role (`headrace up`), or a single worker process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

NodeState = Literal["joining", "ready", "leaving", "gone"]


@dataclass(frozen=True, slots=True)
class GroupSeat:
    """The place of a process in one consumer group.

    `member_id` is the group protocol's, the one a `LeaveGroup` names; `partitions` are "topic-number" texts.
    """

    group: str
    member_id: str
    generation: int = -1
    partitions: tuple[str, ...] = ()
    standbys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One process of a node; `pid` is that of its own machine."""

    role: str
    pid: int
    ready: bool = False
    seats: tuple[GroupSeat, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a node says of itself. `beats` is host:port of its heartbeats, `api` that of its HTTP API or empty.

    `epoch` is the instant of its start (ms since 1970): of two views of one `node_id` the later start is the node.
    `clock_ms` is its wall clock when it said so.
    """

    node_id: str
    epoch: int
    version: str
    state: NodeState
    beats: str = ""
    api: str = ""
    clock_ms: int = 0
    processes: tuple[ProcessView, ...] = ()
    facts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def roles(self) -> tuple[str, ...]:
        """Its roles in the order of the alphabet."""
        return tuple(sorted({process.role for process in self.processes}))

    @property
    def seats(self) -> tuple[GroupSeat, ...]:
        """Every seat of its processes."""
        return tuple(seat for process in self.processes for seat in process.seats)
