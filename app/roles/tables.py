"""The tables of one stage on this node: those of its partitions, and those it keeps warm for others."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from agents.stage import Stage
from app import metrics
from app.adapters.changelog_follower import KafkaChangelogFollower
from app.adapters.changelog_reader import KafkaChangelogReader
from app.adapters.connection import security_options
from app.adapters.faust_app import App
from app.adapters.lease import Lease
from app.adapters.producer import BatchProducer
from app.adapters.rocks import RocksFolder, RocksLimits
from app.domain.seating import NEAR_RECORDS, Asking
from app.errors import EnvironmentError_
from app.lifecycle import exit_now
from app.ports import Clock
from app.roles.context import Context
from app.roles.takeovers import Takeovers
from config.tables import TablesSettings
from config.topics import TopicSpec
from tables.partition import SingleTrip, TablePartition
from tables.restore import Place, Restored, open_partition
from tables.standby import Standbys

log = logging.getLogger(__name__)

LOCK_PATIENCE_S: Final = 10.0
LOCK_RETRY_S: Final = 0.05
WARMING_LOOK_S: Final = 0.25
# Asked for well before the limit of being given: more comes while the group goes round.
ASK_AT_RECORDS: Final = NEAR_RECORDS // 4

T = TypeVar("T")


class StageTables:
    """Opens, keeps warm and tells what there is (`app.adapters.assignor.Holdings`); made by `stage_tables`.

    Transactions settle in one trip, and their outputs follow: they are written twice, and never taken back
    (docs/decisions/0011 and 0015).
    """

    def __init__(
        self,
        context: Context,
        producer: BatchProducer,
        lease: Lease,
        topic: TopicSpec,
        changelog: TopicSpec,
        follower: KafkaChangelogFollower,
        reader: KafkaChangelogReader,
    ) -> None:
        self._context = context
        self._producer = producer
        self._lease = lease
        self._topic = topic
        self._changelog = changelog
        self._stage = changelog.name.partition(".")[0]
        self._folder = RocksFolder(limits_of(context.settings.tables))
        self._reader = reader
        written = context.settings.producer
        # Without idempotence a batch may overtake the one before it that was refused.
        self._single_trip = SingleTrip(written.max_request_bytes // 2) if written.idempotence else None
        self._owned: dict[int, TablePartition] = {}
        self._opening: dict[int, Callable[[], int]] = {}
        self.following: asyncio.Task[None] | None = None
        self.here = f"{self.node or 'node'} {self._stage} {os.getpid()}"
        self.takeovers = Takeovers(self.here, context.clock.monotonic_s)
        self.standbys = Standbys(self._place, self._folder, follower, context.clock.now_ms)

    # ---- what the group asks, from another thread ----

    @property
    def topic(self) -> str:
        """The input whose partitions they belong to."""
        return self._topic.name

    @property
    def replicas(self) -> int:
        """Standbys of each partition."""
        return self._context.settings.cluster.standby_replicas

    @property
    def node(self) -> str:
        """The node of this process."""
        return self._context.settings.cluster.node_id or ""

    def held(self) -> dict[int, int]:
        """The next changelog offset that the tables of each partition have not seen.

        Those that are being opened count: a round that comes meanwhile would take the partition from who has it, and
        under load, when opening takes longer than from one round to the next, nobody would ever have it.
        """
        # In the order in which a partition goes from one to the next, in another thread: it is in one of them at least.
        found = self.standbys.held()
        found |= {partition: held() for partition, held in list(self._opening.items())}
        return found | {partition: tables.held for partition, tables in list(self._owned.items()) if not tables.closed}

    # ---- life ----

    def keep_what_is_there(self) -> None:
        """Before the group is joined: what is on the disk is followed, so that it counts when partitions are given."""
        folder = self._place(0).path.parent
        found = {int(path.name) for path in folder.glob("*") if path.name.isdigit()} if folder.is_dir() else set()
        self.standbys.keep(found)

    async def open(self, partition: int) -> TablePartition:
        """Open, restore and take over one partition."""
        try:
            opened, restored = await _insist(lambda: self._open(partition), self._context.clock)
            self._owned[partition] = opened
        finally:
            self._opening.pop(partition, None)
        self.takeovers.opened(partition, restored.owner)
        metrics.TABLE_RESTORED.labels(self._stage).inc(restored.records)
        metrics.TABLE_RESTORE_SECONDS.labels(self._stage).observe(restored.seconds)
        return opened

    def seated(self, standbys: Collection[int], owned: Collection[int]) -> None:
        """The group has spoken: keep these warm, beside those that are opened next."""
        self._owned = {partition: tables for partition, tables in self._owned.items() if not tables.closed}
        taken_next = {partition for partition in self.standbys.partitions if partition in owned}
        self.standbys.keep({partition for partition in standbys if partition not in owned} | taken_next)

    def are_near(self, partitions: Collection[int]) -> bool:
        """Whether the tables of all these are warm enough to be given to this member, which opens none just now."""
        if self._opening:
            return False
        behind = [self.standbys.behind(partition) for partition in partitions]
        return all(records is not None and records <= ASK_AT_RECORDS for records in behind)

    def _place(self, partition: int) -> Place:
        folder = Path(self._context.settings.tables.directory) / self._stage / str(partition)
        return Place(folder, self._changelog.name, partition)

    async def _open(self, partition: int) -> tuple[TablePartition, Restored]:
        kept = self.standbys.held().get(partition)
        if kept is not None:
            self._opening[partition] = lambda: kept
        return await open_partition(
            self._place(partition),
            self._folder,
            self._reader,
            self._producer,
            self._lease.held,
            self._context.clock.now_ms,
            single_trip=self._single_trip,
            warm=self.standbys.take(partition),
            holding=lambda held: self._opening.update({partition: held}),
            owner=self.here,
        )


@contextlib.asynccontextmanager
async def stage_tables(
    context: Context,
    producer: BatchProducer,
    lease: Lease,
    topic: TopicSpec,
    changelog: TopicSpec,
) -> AsyncIterator[StageTables]:
    """The tables of a stage that reads `topic`; at the end the warm ones are let go of, the stage closes its own."""
    batch = context.settings.tables.restore_batch_records
    security = security_options(context.settings.kafka)
    reader = KafkaChangelogReader(context.bootstrap, batch, spare=2, **security)
    async with KafkaChangelogFollower(context.bootstrap, changelog.name, **security) as follower:
        tables = StageTables(context, producer, lease, topic, changelog, follower, reader)
        tables.following = asyncio.create_task(tables.standbys.run(), name=f"standbys of {changelog.name}")
        try:
            await reader.prepare()
            tables.keep_what_is_there()
            yield tables
        finally:
            tables.following.cancel()
            await asyncio.gather(tables.following, return_exceptions=True)
            tables.standbys.close()
            await reader.close()


def limits_of(tables: TablesSettings) -> RocksLimits:
    """The bounds of one store."""
    return RocksLimits(
        block_cache_bytes=tables.block_cache_bytes,
        write_buffer_bytes=tables.write_buffer_bytes,
        max_open_files=tables.max_open_files,
        sync_writes=tables.sync_writes,
    )


async def _insist(opening: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """A process on this machine that gives a partition up needs a moment to let go of its folder."""
    patience_s = clock.monotonic_s() + LOCK_PATIENCE_S
    while True:
        try:
            return await opening()
        except EnvironmentError_ as error:
            if not error.facts.get("locked") or clock.monotonic_s() >= patience_s:
                raise
        await asyncio.sleep(LOCK_RETRY_S)


def follow_assignment(app: App, topic: str, stage: Stage, lease: Lease, tables: StageTables | None = None) -> None:
    """Open and close the stage's partitions as the group assigns them, and keep warm what it says."""
    last_generation = [-1]
    app.holdings = tables

    async def on_assigned(_: Any, assigned: Any, **__: Any) -> None:
        generation = app.consumer_generation_id
        kept = generation == last_generation[0] + 1 and lease.held()
        last_generation[0] = generation
        lease.renew()
        owned = [tp.partition for tp in assigned if tp.topic == topic]
        if tables is not None:
            tables.takeovers.seated(owned, app.seat.orphans)
        await stage.assigned(owned, kept=kept)
        if tables is not None:
            tables.seated(app.seat.standbys, owned)

    async def hand_back(revoked: Any) -> None:
        if tables is not None:
            tables.takeovers.goes_round()
        await stage.revoked([tp.partition for tp in revoked if tp.topic == topic])

    def end(stood_s: float) -> NoReturn:
        try:
            log.critical(
                "this process stood still for %.1f s and has lost the partitions of %s: it ends, and starts anew",
                stood_s,
                stage.name,
                extra={
                    "action": "partitions_lost",
                    "stood_s": round(stood_s, 3),
                    "partitions": list(stage.partitions),
                },
            )
        finally:  # the stop may have come within a line of the log
            exit_now(1)

    app.on_partitions_assigned.connect(on_assigned, weak=False)
    app.hand_back = hand_back
    stage.ask_anew = app.ask_for_round
    lease.end = end
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
