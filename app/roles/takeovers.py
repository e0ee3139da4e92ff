"""Partitions of an owner that is gone: told of once all of them go on here."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from app import metrics

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Took:
    """What came from one owner; `since_s` is when the group began to go round."""

    since_s: float
    partitions: list[int] = field(default_factory=list)
    executions: int = 0


class Takeovers:
    """From the moment that the group goes round without an owner until its partitions are open here.

    What passed before, until somebody saw that the owner was gone, is not in it: who removes a dead member says how
    long that took (`cluster_event`).
    """

    def __init__(self, here: str, now_s: Callable[[], float]) -> None:
        self._here = here
        self._now_s = now_s
        self._round_s: float | None = None
        self._opening: dict[int, float] = {}
        self._owners: dict[int, str] = {}
        self._took: dict[str, _Took] = {}

    def goes_round(self) -> None:
        """The group has begun to go round."""
        if self._round_s is None:
            self._round_s = self._now_s()

    def seated(self, owned: Collection[int], orphans: Collection[int]) -> None:
        """The round is over: `owned` are this process's now, of which nobody in the group had `orphans`."""
        began_s = self._now_s() if self._round_s is None else self._round_s
        before, self._round_s = self._opening, None
        self._opening = {p: before.get(p, began_s) for p in owned if p in orphans or p in before}
        self._tell_when_all()

    def opened(self, partition: int, owner: str | None) -> None:
        """Its tables are open; None when it has had no owner before."""
        if owner is None:
            self._opening.pop(partition, None)
            self._tell_when_all()
        elif partition in self._opening:
            self._owners[partition] = owner

    def goes_on(self, partition: int, executions: int) -> None:
        """It is open, and decisions are made about its `executions` from now on."""
        since_s = self._opening.pop(partition, None)
        owner = self._owners.pop(partition, "")
        if since_s is None:
            return
        took = self._took.setdefault(owner, _Took(since_s))
        took.since_s = min(took.since_s, since_s)
        took.partitions.append(partition)
        took.executions += executions
        self._tell_when_all()

    def _tell_when_all(self) -> None:
        if self._opening:
            return
        took, self._took = self._took, {}
        for owner, one in took.items():
            seconds = self._now_s() - one.since_s
            metrics.WORKFLOW_FAILOVER.observe(seconds)
            log.info(
                "partitions %s of %s go on here after %.0f ms, with %d executions",
                ", ".join(map(str, sorted(one.partitions))),
                owner or "an owner that is not known",
                seconds * 1000,
                one.executions,
                extra={
                    "action": "workflow_failover",
                    "from": owner,
                    "to": self._here,
                    "partitions": sorted(one.partitions),
                    "executions": one.executions,
                    "ms": round(seconds * 1000),
                },
            )
