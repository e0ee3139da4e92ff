"""The tables of one stage on this node: those of its partitions, and those it keeps warm for others."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Final, TypeVar

from app import metrics
from app.adapters.changelog_follower import KafkaChangelogFollower
from app.adapters.changelog_reader import KafkaChangelogReader
from app.adapters.connection import security_options
from app.adapters.lease import Lease
from app.adapters.producer import BatchProducer
from app.adapters.rocks import RocksFolder, RocksLimits
from app.domain.seating import NEAR_RECORDS
from app.errors import EnvironmentError_
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
