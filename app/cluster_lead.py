"""What one node does for all: it tells of who comes and goes, forgets the dead, and publishes metrics of the whole."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from app import metrics
from app.adapters.topics_admin import describe_topics
from app.domain import membership
from app.domain.cluster import NodeView
from app.domain.membership import Roster, Standing
from app.errors import BrokerUnavailable
from app.ports import Clock
from config.settings import Settings

log = logging.getLogger(__name__)

PARTITIONS_INTERVAL_S: Final = 30.0
_TEXTS: Final[Mapping[str, str]] = {
    "joined": "node %s has joined",
    "ready": "node %s is ready",
    "leaving": "node %s is leaving",
    "left": "node %s has left",
    "unreachable": "node %s is not reached any more",
    "back": "node %s is back",
}


class Lead:
    """The duties of the leader, looked at again and again by every node and done by the one that leads.

    Two nodes may both believe to lead for a moment: a line is then said twice, a record written twice.
    """

    def __init__(self, settings: Settings, bootstrap: str, clock: Clock) -> None:
        self._terms = settings.cluster
        self._kafka = settings.kafka
        self._bootstrap = bootstrap
        self._clock = clock
        self._standings: dict[str, Standing] | None = None
        self._leads = False
        self._partitions: dict[str, int] = {}
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def look(self, own: NodeView, roster: Roster) -> tuple[str, ...]:
        """Do what is due; the nodes whose records are to be ended, as they will not come back."""
        silent_s = self._terms.silent_after_s
        found = membership.standings(roster, silent_s)
        away = [node_id for node_id, standing in found.items() if standing == "unreachable"]
        metrics.CLUSTER_MEMBERS.set(len(found))
        metrics.CLUSTER_UNREACHABLE.set(len(away))
        leads = membership.leader(roster, silent_s) == own.node_id
        metrics.CLUSTER_LEADER.set(int(leads))
        before, self._standings = self._standings, found
        if leads != self._leads:
            self._leads = leads
            if leads:
                _tell("leads", f"node {own.node_id} leads the cluster of {len(found)}", own.node_id)
        if not leads:
            self._stop_publishing()
            return ()
        for change in membership.changes(found if before is None else before, found):
            _tell(change.event, _TEXTS[change.event] % change.node_id, change.node_id)
        self._publish(roster, found, away)
        return membership.forgotten(roster, silent_s, self._terms.forget_after_s)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _publish(self, roster: Roster, found: Mapping[str, Standing], away: list[str]) -> None:
        views = roster.views
        self._ask_partitions(views)
        metrics.CLUSTER_NODES.clear()
        for (version, standing), count in Counter((view.version, found[view.node_id]) for view in views).items():
            metrics.CLUSTER_NODES.labels(version, standing).set(count)
        metrics.CLUSTER_OWNERLESS.clear()
        missing = membership.ownerless(views, away, self._partitions)
        for group in membership.owned(views):
            metrics.CLUSTER_OWNERLESS.labels(group).set(len(missing.get(group, ())))

    def _stop_publishing(self) -> None:
        metrics.CLUSTER_NODES.clear()
        metrics.CLUSTER_OWNERLESS.clear()

    def _ask_partitions(self, views: tuple[NodeView, ...]) -> None:
        """How many partitions the topics have, asked beside everything else now and then."""
        topics = {topic for owned in membership.owned(views).values() for topic in owned}
        now_s = self._clock.monotonic_s()
        is_new = not topics <= self._partitions.keys()
        since_s = now_s - self._asked_s
        if self._asking is None and topics and (since_s >= PARTITIONS_INTERVAL_S or (is_new and since_s >= 1.0)):
            self._asked_s = now_s
            self._asking = asyncio.create_task(self._learn_partitions(topics), name="partitions of topics")

    async def _learn_partitions(self, topics: set[str]) -> None:
        try:
            states = await describe_topics(self._bootstrap, topics, self._kafka)
            self._partitions = {state.name: state.partitions for state in states}
        except BrokerUnavailable:
            self._asked_s = self._clock.monotonic_s()  # what was known stays true, and it is asked again
        finally:
            self._asking = None


def _tell(event: str, text: str, node_id: str) -> None:
    level = logging.WARNING if event == "unreachable" else logging.INFO
    log.log(level, text, extra={"action": "cluster_event", "event": event, "node_id": node_id})
