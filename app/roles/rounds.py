"""A stage in the rounds of its consumer group: before it joins, when partitions come and go, and when to ask for more.

A round, which is the guarantee that nobody writes behind the next owner's claim:
(1) what the round before left to do is done;
(2) no partition decides anything more, and what is decided is settled;
(3) the group has spoken: partitions that stay go on, new ones open, the work on those that went ends; until then no
    record flows, since nobody would take it;
(4) the folders of those that went are closed, and what is to be kept warm from now on is opened, once records flow
    again: 20 to 40 ms of this loop for each folder, which came before the seek and the first fetch otherwise.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from agents.stage import Stage
from app.adapters.faust_app import App
from app.adapters.lease import Lease
from app.adapters.topics_admin import has_members
from app.domain.seating import Asking
from app.errors import BrokerUnavailable
from app.lifecycle import exit_now
from app.roles.context import Context
from app.roles.tables import StageTables
from app.task_ends import error_of

log = logging.getLogger(__name__)

WARMING_LOOK_S: Final = 0.25
# What lies on a disk and cannot become new in that time does so as a standby, and is asked for afterwards.
CATCH_UP_S: Final = 20.0
CATCH_UP_LOOK_S: Final = 0.05
# More than that is not read in this time beside other work.
FAR_RECORDS: Final = 500_000
MEMBERS_LOOK_S: Final = 1.0


class Rounds:
    """The rounds of one app; made by `follow_assignment`, its methods are called by the app."""

    def __init__(self, app: App, topic: str, stage: Stage, lease: Lease, tables: StageTables | None) -> None:
        self._app = app
        self._topic = topic
        self._stage = stage
        self._lease = lease
        self._tables = tables
        self._generation = -1
        self._unseated: tuple[Sequence[int], Sequence[int]] | None = None
        self._seating: asyncio.Task[None] | None = None

    async def hand_back(self, revoked: Any) -> None:
        """(1) and (2)."""
        self._app.may_flow.clear()
        if self._tables is not None:
            self._tables.takeovers.goes_round()
        await self._seated()
        await self._stage.revoked([tp.partition for tp in revoked if tp.topic == self._topic])

    async def on_assigned(self, _: Any, assigned: Any, **__: Any) -> None:
        """(3). What a round left that was cut short by this one is done before."""
        await self._seated()
        generation = self._app.consumer_generation_id
        kept = generation == self._generation + 1 and self._lease.held()
        self._generation = generation
        self._lease.renew()
        owned = [tp.partition for tp in assigned if tp.topic == self._topic]
        if self._tables is not None:
            self._tables.takeovers.seated(owned, self._app.seat.orphans)
        await self._stage.assigned(owned, kept=kept)
        self._unseated = (self._app.seat.standbys, owned)
        self._app.may_flow.set()

    def goes_on(self) -> None:
        """(4)."""
        if self._unseated is not None:
            self._begin()

    def _begin(self) -> None:
        if self._seating is None or self._seating.done():
            self._seating = asyncio.create_task(self._seat(), name=f"after a round of {self._stage.name}")
            self._seating.add_done_callback(self._was_seated)

    async def _seated(self) -> None:
        """(1): errors are told by whoever runs the stage."""
        if self._unseated is not None:
            self._begin()
        if self._seating is not None:
            await asyncio.wait({self._seating})

    async def _seat(self) -> None:
        await self._stage.let_go()
        # Once the app has stopped the tables are closed, and stay so.
        if self._unseated is not None and self._tables is not None and not self._app.should_stop:
            standbys, owned = self._unseated
            self._tables.seated(standbys, owned)
        self._unseated = None

    def _was_seated(self, task: "asyncio.Task[None]") -> None:
        if error := error_of(task):
            self._stage.fail(error)

    def end(self, stood_s: float) -> NoReturn:
        """This process was away for so long that others have its partitions."""
        try:
            log.critical(
                "this process stood still for %.1f s and has lost the partitions of %s: it ends, and starts anew",
                stood_s,
                self._stage.name,
                extra={
                    "action": "partitions_lost",
                    "stood_s": round(stood_s, 3),
                    "partitions": list(self._stage.partitions),
                },
            )
        finally:  # the stop may have come within a line of the log
            exit_now(1)


def follow_assignment(app: App, topic: str, stage: Stage, lease: Lease, tables: StageTables | None = None) -> None:
    """Open and close the stage's partitions as the group assigns them, and keep warm what it says."""
    rounds = Rounds(app, topic, stage, lease, tables)
    app.holdings = tables
    app.on_partitions_assigned.connect(rounds.on_assigned, weak=False)
    app.hand_back = rounds.hand_back
    app.goes_on = rounds.goes_on
    stage.ask_anew = app.ask_for_round
    lease.end = rounds.end
    lease.is_member = lambda timeout_s: app.is_member(timeout_s) if stage.count else None


def new_lease(context: Context) -> Lease:
    """The lease of one stage. In doubt well before anybody takes this process for one that stands still."""
    settings = context.settings
    return Lease(
        context.clock,
        settings.kafka.session_timeout_ms / 1000,
        stopped_s=settings.cluster.frozen_after_ms / 2000,
        still_s=settings.cluster.unreachable_after_ms / 1000,
    )


async def catch_up(context: Context, app: App, tables: StageTables) -> None:
    """Before a group that has members is joined: what lies on the disk becomes as new as what they have.

    Each round of a group stops everybody's work for a moment. Who joins with tables that are near is given its share in
    the round that it makes by joining; who does not needs a second one. Returns after `CATCH_UP_S` at the latest, and
    raises what ended the standbys.
    """
    found = tables.standbys.partitions
    if not found:
        return
    assert tables.following is not None, "stage_tables() starts it"
    waiting = asyncio.create_task(_until_near(context, app.conf.id, tables), name="until near")
    now_s = asyncio.get_running_loop().time
    begun_s = now_s()
    try:
        await asyncio.wait({waiting, tables.following}, timeout=CATCH_UP_S, return_when=asyncio.FIRST_COMPLETED)
        if tables.following.done():
            tables.following.result()
        near = waiting.done() and waiting.result()
    finally:
        waiting.cancel()
    log.info(
        "the tables of partitions %s that were here %s after %.1f s: joining %s",
        ", ".join(map(str, found)),
        "have caught up" if near else "are not waited for",
        now_s() - begun_s,
        app.conf.id,
        extra={"action": "cluster_event", "event": "caught_up" if near else "behind", "partitions": list(found)},
    )


async def _until_near(context: Context, group: str, tables: StageTables) -> bool:
    """Whether the tables are near; False, at once, where the group has no members or all that is left is far."""
    now_s = asyncio.get_running_loop().time
    asked_s: float | None = None
    while True:
        if asked_s is None or now_s() - asked_s >= MEMBERS_LOOK_S:
            try:
                if not await has_members(context.bootstrap, group, context.settings.kafka):
                    return False  # nobody works: what is missing is read when the partitions are opened
            except BrokerUnavailable:
                if asked_s is None:
                    return False  # joining waits for the broker
            asked_s = now_s()
        behind = {partition: tables.standbys.behind(partition) for partition in tables.standbys.partitions}
        awaited = [partition for partition, records in behind.items() if records is None or records <= FAR_RECORDS]
        if not awaited or tables.are_near(awaited):
            return bool(awaited)
        await asyncio.sleep(CATCH_UP_LOOK_S)


async def ask_when_near(app: App, tables: StageTables) -> None:
    """Ask the group for another round once the tables are near that it waits for, as often as `Asking` allows.

    Raises what ended the standbys: a bug, which ends the process.
    """
    asking, now_s = Asking(), asyncio.get_running_loop().time
    while True:
        assert tables.following is not None, "stage_tables() starts it"
        await asyncio.wait({tables.following}, timeout=WARMING_LOOK_S)
        if tables.following.done():
            tables.following.result()
        warming = app.seat.warming
        ready = bool(warming) and app.has_joined and tables.are_near(warming)
        if asking.may(app.consumer_generation_id, now_s(), ready=ready):
            log.info(
                "the tables of partitions %s are warm: asking for them",
                ", ".join(map(str, warming)),
                extra={"action": "cluster_event", "event": "warmed", "partitions": list(warming)},
            )
            app.ask_for_round()
