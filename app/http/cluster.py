"""The route of the cluster: its nodes, who leads, and which partitions nobody has."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.group_states import GroupLag, GroupStates
from app.adapters.members_topic import MembersTopic
from app.domain import membership
from app.domain.cluster import NodeView
from app.domain.membership import Roster, Standing
from app.http.problems import UNAVAILABLE
from app.http.strict import StrictRoute
from config.cluster import ClusterSettings

_SEAT: dict[str, Any] = {
    "group": "headrace-workflow",
    "partitions": ["workflow.commands-0", "workflow.commands-1"],
    "standbys": ["workflow.commands-2"],
}
_NODE: dict[str, Any] = {
    "node_id": "node-1",
    "state": "ready",
    "leads": True,
    "version": "0.1.0",
    "started_at": 1763689000000,
    "api": "127.0.0.1:8080",
    "roles": ["coordinator", "worker"],
    "partitions": 2,
    "standbys": 1,
    "lag_records": 0,
    "clock_ahead_ms": 0.4,
    "heard_ms_ago": 812,
    "unreachable": [],
    "processes": [{"role": "coordinator", "pid": 4711, "ready": True, "seats": [_SEAT]}],
}
_GROUP: dict[str, Any] = {
    "group": "headrace-workflow",
    "partitions": 4,
    "owned": 4,
    "ownerless": [],
    "lag_records": 0,
}


class SeatView(BaseModel):
    """The place of a process in a consumer group; partitions are topic-number."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SEAT]})

    group: str
    partitions: list[str]
    standbys: list[str] = Field(description="Partitions whose state it keeps warm.")


class MemberProcess(BaseModel):
    """One process of a node."""

    model_config = ConfigDict(json_schema_extra={"examples": _NODE["processes"]})

    role: str
    pid: int
    ready: bool
    seats: list[SeatView]


class MemberView(BaseModel):
    """One node, by what it says of itself and what others say of it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_NODE]})

    node_id: str
    state: Literal["joining", "ready", "leaving", "unreachable"]
    leads: bool = Field(description="Whether it does what one node has to do for all.")
    version: str
    started_at: int = Field(description="When it was started, ms UTC by its own clock.")
    api: str = Field(description="host:port of its HTTP API, empty without one.")
    roles: list[str]
    partitions: int = Field(description="Partitions that its processes have.")
    standbys: int = Field(description="Partitions whose state it keeps warm.")
    lag_records: int | None = Field(
        description="Records of its partitions not yet finished with; 0 without any, null while unknown."
    )
    clock_ahead_ms: float | None = Field(description="How far its clock is ahead of the broker's.")
    heard_ms_ago: int = Field(description="When it last said something on cluster.members.")
    unreachable: list[str] = Field(description="The nodes that this one does not reach.")
    processes: list[MemberProcess]


class GroupView(BaseModel):
    """One consumer group of the cluster."""

    model_config = ConfigDict(json_schema_extra={"examples": [_GROUP]})

    group: str
    partitions: int | None = Field(description="Of all topics it reads; null while the broker does not say.")
    owned: int = Field(description="Partitions that reachable nodes have.")
    ownerless: list[str] = Field(description="Partitions that no reachable node has.")
    lag_records: int | None = Field(description="Records not yet finished with; null while unknown.")


class ClusterStats(BaseModel):
    """The nodes of the cluster as this one has heard of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "leader": "node-1",
                    "members": 1,
                    "status": "Up",
                    "unreachable": [],
                    "versions": {"0.1.0": 1},
                    "ownerless": 0,
                    "nodes": [_NODE],
                    "groups": [_GROUP],
                }
            ]
        }
    )

    leader: str | None
    members: int
    status: Literal["Up", "Degraded", "Down"] = Field(
        description="Up: a node is ready, every one is reached and no partition is known to be without an owner."
        " Degraded: a node is not reached, or a partition has no owner. Down: no node is ready."
    )
    unreachable: list[str]
    versions: dict[str, int]
    ownerless: int = Field(description="Partitions that no reachable node has, over all groups.")
    nodes: list[MemberView]
    groups: list[GroupView]


@dataclass(frozen=True, slots=True)
class ClusterReads:
    """What the route works with."""

    members: MembersTopic
    groups: GroupStates
    settings: ClusterSettings
    monotonic_s: Callable[[], float] = time.monotonic


def cluster_router(reads: ClusterReads) -> APIRouter:
    """The routes below /api/v1/cluster."""
    router = APIRouter(prefix="/api/v1/cluster", tags=["cluster"], route_class=StrictRoute)

    @router.get(
        "/stats", response_model=ClusterStats, responses=UNAVAILABLE, summary="Nodes, leader and partitions of all"
    )
    async def cluster_stats() -> dict[str, Any]:
        if not reads.members.ready:
            raise HTTPException(
                503, "The members of the cluster have not all been read yet.", headers={"Retry-After": "1"}
            )
        roster = reads.members.roster
        topics = {group: frozenset(read) for group, read in membership.owned(roster.views).items()}
        groups = await reads.groups.of(topics) if topics else {}
        return stats(roster, groups, reads.settings.silent_after_s, reads.monotonic_s())

    return router


def stats(roster: Roster, groups: Mapping[str, GroupLag], silent_after_s: float, now_s: float) -> dict[str, Any]:
    """The answer made of what was heard and of what the broker says."""
    found = membership.standings(roster, silent_after_s)
    leader = membership.leader(roster, silent_after_s)
    away = [node_id for node_id, standing in found.items() if standing == "unreachable"]
    counts = {topic: count for lag in groups.values() for topic, count in lag.partitions.items()}
    missing = membership.ownerless(roster.views, away, counts)
    lost = sum(map(len, missing.values()))
    return {
        "leader": leader,
        "members": len(found),
        "status": membership.status(found, lost),
        "unreachable": away,
        "versions": dict(sorted(Counter(view.version for view in roster.views).items())),
        "ownerless": lost,
        "nodes": [_node(roster, view, found[view.node_id], leader, groups, now_s) for view in roster.views],
        "groups": _groups(roster, groups, missing, away),
    }


def _node(
    roster: Roster,
    view: NodeView,
    standing: Standing,
    leader: str | None,
    groups: Mapping[str, GroupLag],
    now_s: float,
) -> dict[str, Any]:
    owned = {(seat.group, text) for seat in view.seats for text in seat.partitions}
    return {
        "node_id": view.node_id,
        "state": standing,
        "leads": view.node_id == leader,
        "version": view.version,
        "started_at": view.epoch,
        "api": view.api,
        "roles": list(view.roles),
        "partitions": len(owned),
        "standbys": len({(seat.group, text) for seat in view.seats for text in seat.standbys}),
        "lag_records": _lag(owned, groups),
        "clock_ahead_ms": membership.clock_ahead_ms(view),
        "heard_ms_ago": max(0, round((now_s - roster.members[view.node_id].heard_s) * 1000)),
        "unreachable": list(membership.unreachable_of(view)),
        "processes": [
            {
                "role": process.role,
                "pid": process.pid,
                "ready": process.ready,
                "seats": [
                    {"group": seat.group, "partitions": list(seat.partitions), "standbys": list(seat.standbys)}
                    for seat in process.seats
                ],
            }
            for process in view.processes
        ],
    }


def _lag(owned: Iterable[tuple[str, str]], groups: Mapping[str, GroupLag]) -> int | None:
    """As that of a group: of the partitions that it is known of."""
    behind = [groups.get(group, GroupLag()).behind.get(text) for group, text in owned]
    known = [records for records in behind if records is not None]
    return sum(known) if known or not behind else None


def _groups(
    roster: Roster, groups: Mapping[str, GroupLag], missing: Mapping[str, tuple[str, ...]], away: list[str]
) -> list[dict[str, Any]]:
    reached = membership.owned(view for view in roster.views if view.node_id not in away)
    found = []
    for group, topics in sorted(membership.owned(roster.views).items()):
        known = groups.get(group, GroupLag())
        counts = [known.partitions[topic] for topic in topics if topic in known.partitions]
        found.append(
            {
                "group": group,
                "partitions": sum(counts) if counts else None,
                "owned": sum(len(numbers) for numbers in reached.get(group, {}).values()),
                "ownerless": list(missing.get(group, ())),
                "lag_records": known.lag,
            }
        )
    return found
