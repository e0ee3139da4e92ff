"""A node's membership in the registry: it joins or is refused, says what it is, hears the others, and leaves."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from app.adapters.members_topic import MembersTopic, Written
from app.cluster_lead import Lead
from app.domain import membership
from app.domain.cluster import NodeView
from app.domain.membership import CLOCK_AHEAD_MS, INSTANCE, SETTLED, UNREACHABLE, Roster
from app.errors import BrokerUnavailable, UserError
from app.http.health import Check
from app.ports import Clock
from config.settings import Settings
from config.topics import CLUSTER_MEMBERS

log = logging.getLogger(__name__)

TICK_S: Final = 0.5
CHANGE_INTERVAL_S: Final = 1.0
ANSWER_INTERVAL_S: Final = 0.1
RETRY_S: Final = 1.0
CLOCK_WARNING_S: Final = 60.0
_LOOK_S: Final = 0.01
# A measurement that took longer says little about a clock.
_UNCERTAIN_MS: Final = 1_000.0
_LEAVE_S: Final = 3.0


class NameTaken(UserError):
    """Another node of the cluster has this name."""


class OtherVersion(UserError):
    """The cluster is of another version."""


class ClusterRegistry:
    """`run` is the whole life of it; `joined` is set once the node may begin its work.

    `own` says what the node is now, `unreachable` whom it does not reach; the registry adds the facts that the
    protocol needs, and an epoch that is later than that of any earlier start under the same name.
    """

    def __init__(
        self,
        settings: Settings,
        own: Callable[[], NodeView],
        clock: Clock,
        *,
        bootstrap: str | None = None,
        unreachable: Callable[[], Collection[str]] = tuple,
        instance: str | None = None,
        topic: str = CLUSTER_MEMBERS.name,
    ) -> None:
        self.joined = asyncio.Event()
        self._terms = settings.cluster
        self._own = own
        self._clock = clock
        self._unreachable = unreachable
        self._instance = instance or os.urandom(8).hex()
        kafka = settings.kafka
        self._topic = MembersTopic(
            kafka,
            bootstrap or kafka.bootstrap_servers,
            settings.http.read_model,
            heard=self._heard,
            topic=topic,
            monotonic_s=clock.monotonic_s,
            now_ms=clock.now_ms,
        )
        self._lead = Lead(settings, bootstrap or kafka.bootstrap_servers, clock)
        self._epoch = 0
        self._ahead_ms: float | None = None
        self._instances: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._echoed = self._answer = False
        self._failure: UserError | None = None
        self._said: NodeView | None = None
        self._said_s = float("-inf")
        self._down_s: float | None = None
        self._version_warning = ""
        self._clock_warned_s = float("-inf")
        self._complaint = ""

    @property
    def roster(self) -> Roster:
        """Everybody, as this node has heard of them."""
        return self._topic.roster

    @property
    def epoch(self) -> int:
        """That of this start; 0 before `run` has read who was there."""
        return self._epoch

    @property
    def leader(self) -> str | None:
        """Whoever does what one node has to do for all."""
        return membership.leader(self.roster, self._terms.silent_after_s)

    def changed(self) -> None:
        """What `own` says is another now: it is told within a second."""
        self._wake.set()

    def alive(self, node_id: str) -> None:
        """A node was heard on another way than the topic."""
        self._topic.alive(node_id)

    def check(self) -> Check:
        """Not ok while the brokers take no records of this node; the detail also warns of clock and version."""
        if not self._topic.ready:
            return Check(ok=False, detail="waits for cluster.members")
        if self._down_s is not None:
            return Check(
                ok=False, detail=f"Kafka takes no records for {self._clock.monotonic_s() - self._down_s:.0f} s"
            )
        if not self.joined.is_set():
            return Check(ok=False, detail="joins the cluster")
        found = membership.standings(self.roster, self._terms.silent_after_s)
        away = [node for node, standing in found.items() if standing == "unreachable"]
        parts = [f"{len(found)} nodes, {self.leader} leads", self._complaint, self._version_warning]
        if away:
            parts.insert(1, f"not reached: {', '.join(away)}")
        return Check(ok=True, detail="; ".join(part.rstrip(".") for part in parts if part))

    async def run(self, stop: asyncio.Event) -> None:
        """(1) read who is there (2) join (3) speak and hear until `stop` (4) leave. Waits through absences of Kafka.

        Raises `NameTaken` and `OtherVersion`, before or after it has joined; nothing was changed for the others then.
        """
        ended = asyncio.Event()
        following = asyncio.create_task(self._topic.run(ended), name="members")
        living = asyncio.create_task(self._live(stop), name="member")
        try:
            await asyncio.wait({following, living}, return_when=asyncio.FIRST_COMPLETED)
            await (living if living.done() else following)
        finally:
            living.cancel()
            ended.set()
            await asyncio.wait({following, living}, timeout=_LEAVE_S)
            following.cancel()
            await asyncio.gather(following, living, return_exceptions=True)
            await self._lead.close()
            await self._topic.close()

    async def _live(self, stop: asyncio.Event) -> None:
        """Numbered as `run`."""
        while not self._topic.ready:  # 1
            if await _stopped(stop, _LOOK_S):
                return
        if not await self._join(stop):  # 2
            return
        self.joined.set()
        self._ask_to_answer()  # that it has been taken in
        while not await self._pause(stop):  # 3
            self._raise_failure()
            await self._speak_if_due()
            for node_id in await self._lead.look(self._view(), self.roster):
                await self._write(node_id, None)
        await self._leave()  # 4

    # ---- joining ----

    async def _join(self, stop: asyncio.Event) -> bool:
        """False when the stop came first. (1) say that we are there (2) hear who answers (3) may we stay?"""
        before = {node_id for node_id in self.roster.members if node_id != self._own().node_id}
        known = self.roster.members.get(self._own().node_id)
        # A clock that was put back must not make this start look older than the one before.
        self._epoch = max(self._own().epoch, 0 if known is None else known.view.epoch + 1)
        while not await self._say():  # 1
            if await _stopped(stop, RETRY_S):
                return False
        asked_s = self._said_s
        ends_s = asked_s + self._terms.join_wait_ms / 1000
        while self._clock.monotonic_s() < ends_s:  # 2
            self._raise_failure()
            live = self._live_since(asked_s)
            # Whoever has our name answers too, but whether there is anybody only the end of the wait shows.
            if self._echoed and known is None and before <= {view.node_id for view in live}:
                break
            if await _stopped(stop, _LOOK_S):
                await self._leave()
                return False
            await self._speak_if_due()
        self._raise_failure()
        await self._compare_versions(self._live_since(asked_s))  # 3
        return True

    def _live_since(self, since_s: float) -> list[NodeView]:
        own = self._own().node_id
        members = self.roster.members
        return [member.view for node_id, member in members.items() if node_id != own and member.heard_s >= since_s]

    async def _compare_versions(self, live: Collection[NodeView]) -> None:
        verdict = membership.versions(self._view(), live)
        if verdict.refused and not self._terms.allow_version_mix:
            await self._leave()
            raise OtherVersion(verdict.refused)
        warning = verdict.warning or verdict.refused
        if warning and warning != self._version_warning:
            log.warning(warning, extra={"action": "cluster_event", "event": "version_mix"})
        self._version_warning = warning

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # ---- hearing ----

    def _heard(self, node_id: str, view: NodeView | None) -> None:
        if node_id == self._own().node_id:
            self._heard_own_name(view)
        elif view is not None:
            instance = view.facts.get(INSTANCE, "")
            is_new = self._instances.get(node_id) != instance
            self._instances[node_id] = instance
            # Somebody who joins wants to hear who is there, and one who misses us that we are.
            if self._echoed and (is_new or node_id in self._accusers(view)):
                self._ask_to_answer()

    def _accusers(self, view: NodeView) -> Collection[str]:
        return (view.node_id,) if self._own().node_id in membership.unreachable_of(view) else ()

    def _heard_own_name(self, view: NodeView | None) -> None:
        """Our own record came back, or somebody else uses our name: who came first keeps it."""
        if view is not None and view.facts.get(INSTANCE) == self._instance:
            self._echoed = True
            return
        if not self._echoed:
            return  # of an earlier start
        own = self._view()
        if view is None:
            self._ask_to_answer()
        elif self.joined.is_set():
            if SETTLED in view.facts and view.epoch > own.epoch:
                self._failure = NameTaken(
                    f"A later start has taken the name {own.node_id} over: this node ends. Give each node a"
                    " cluster.node_id of its own."
                )
            self._ask_to_answer()
        elif SETTLED in view.facts or membership.came_first(view, own):
            self._failure = NameTaken(
                f"A node with the name {own.node_id} is in the cluster already{_where(view)}: set cluster.node_id to"
                " another name, or stop that node."
            )
        else:
            self._ask_to_answer()
        self._wake.set()

    def _ask_to_answer(self) -> None:
        self._answer = True
        self._wake.set()

    # ---- speaking ----

    def _view(self) -> NodeView:
        """What the node says of itself, with the facts of the registry."""
        own = self._own()
        facts = {**own.facts, INSTANCE: self._instance}
        if away := sorted(self._unreachable()):
            facts[UNREACHABLE] = ",".join(away)
        if self._ahead_ms is not None:
            facts[CLOCK_AHEAD_MS] = f"{self._ahead_ms:.0f}"
        if self.joined.is_set():
            facts[SETTLED] = "1"
        return replace(own, epoch=self._epoch, clock_ms=self._clock.now_ms(), facts=MappingProxyType(facts))

    async def _pause(self, stop: asyncio.Event) -> bool:
        """Until something is to be said or looked at; True when the stop was asked for."""
        if not self._wake.is_set():
            waiting = {asyncio.create_task(self._wake.wait()), asyncio.create_task(stop.wait())}
            await asyncio.wait(waiting, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        self._wake.clear()
        return stop.is_set()

    async def _speak_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        ago_s = now_s - self._said_s
        if self._down_s is not None:
            is_due = ago_s >= RETRY_S
        elif self._answer:
            is_due = ago_s >= ANSWER_INTERVAL_S
        elif self._said is None or _lasting(self._view()) != _lasting(self._said):
            is_due = ago_s >= CHANGE_INTERVAL_S
        else:
            is_due = ago_s >= self._terms.refresh_interval_s
        if is_due:
            await self._say()

    async def _say(self) -> bool:
        """Write our record; False when Kafka does not take it."""
        view = self._view()
        self._said_s = self._clock.monotonic_s()
        self._answer = False
        written = await self._write(view.node_id, view)
        if written is None:
            return False
        self._said = view
        if written.clock_ahead_ms is not None and written.uncertainty_ms < _UNCERTAIN_MS:
            ahead_ms = written.clock_ahead_ms
            surely_ms = max(0.0, abs(ahead_ms) - written.uncertainty_ms)
            self._ahead_ms = surely_ms if ahead_ms > 0 else -surely_ms
            self._compare_clocks()
        return True

    async def _write(self, node_id: str, view: NodeView | None) -> Written | None:
        try:
            written = await self._topic.write(node_id, view)
        except BrokerUnavailable as error:
            if self._down_s is None:
                self._down_s = self._clock.monotonic_s()
                log.warning("%s Trying on.", error, extra={"action": "broker_unavailable"})
            return None
        if self._down_s is not None:
            took_s = self._clock.monotonic_s() - self._down_s
            log.info("Kafka takes records again after %.0f s", took_s, extra={"action": "broker_found"})
            self._down_s = None
        return written

    def _compare_clocks(self) -> None:
        before, own = self._complaint, self._view()
        live = [
            member.view
            for member in self.roster.members.values()
            if self.roster.heard_s - member.heard_s <= self._terms.silent_after_s
        ]
        self._complaint = membership.wrong_clock(own, live, self._terms.max_clock_skew_s)
        now_s = self._clock.monotonic_s()
        if self._complaint and now_s - self._clock_warned_s >= CLOCK_WARNING_S:
            self._clock_warned_s = now_s
            log.warning(
                "%s: schedules and timers of its partitions go by that clock. Set it, and let it be kept (NTP).",
                self._complaint,
                extra={"action": "clock_wrong", "clock_ahead_ms": round(self._ahead_ms or 0)},
            )
        elif before and not self._complaint:
            log.info("The clock of this node agrees with the others' again", extra={"action": "clock_right"})

    async def _leave(self) -> None:
        """The end of our record, unless it is no longer ours."""
        known = self.roster.members.get(self._own().node_id)
        if known is not None and known.view.facts.get(INSTANCE) == self._instance:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    await self._write(known.view.node_id, None)


def _lasting(view: NodeView) -> NodeView:
    """What is worth a record of its own when it changes."""
    facts = {name: value for name, value in view.facts.items() if name != CLOCK_AHEAD_MS}
    return replace(view, clock_ms=0, facts=facts)


def _where(view: NodeView) -> str:
    places = [place for place in (view.facts.get("host", ""), view.api or view.beats) if place]
    return f" ({', '.join(places)})" if places else ""


async def _stopped(stop: asyncio.Event, timeout_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), timeout_s)
    return stop.is_set()
