"""The producer of the fleet with its spool, as settings have it: opened, watched, and closed in order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from agents.generate import Sender
from agents.ledger import Books
from agents.spooling import Spooler, SpoolingLimits, limits_of
from app.adapters.producer import BatchProducer
from app.adapters.producer_back import Retractable
from app.adapters.spool import Spool, SpoolRules
from app.domain.spool import SpoolLimits
from app.roles.context import Context


class Spooled:
    """What sends the fleet's readings: the producer alone, or with a spool behind it."""

    def __init__(self, producer: BatchProducer, books: Books, spooler: Spooler | None) -> None:
        self.producer = producer
        self.spooler = spooler
        self.sender: Sender = producer if spooler is None else spooler
        self._books = books

    @property
    def imbalance(self) -> int:
        """Readings whose fate is unknown."""
        return abs(self._books.imbalance) + (0 if self.spooler is None else abs(self.spooler.imbalance))

    async def settled(self) -> None:
        """Return when every reading is acknowledged or on disk, and all else acknowledged unless the broker is away."""
        if self.spooler is not None:
            await self.spooler.finish()
        if self.spooler is None or not self.spooler.is_away:
            await self.producer.flush()

    def failures(self) -> "list[asyncio.Task[None]]":
        """Tasks that raise the bug of the producer or of the spool."""
        tasks = [asyncio.create_task(_raised(self.producer), name="producer failure")]
        if self.spooler is not None:
            tasks.append(asyncio.create_task(_raised(self.spooler), name="spool failure"))
        return tasks


@contextlib.asynccontextmanager
async def spooled(context: Context, producer: BatchProducer, books: Books, name: str) -> AsyncIterator[Spooled]:
    """The way of the readings, with a spool in the sub-folder `name`. Raises `EnvironmentError_` for that folder."""
    settings = context.settings.spool
    if not settings.enabled:
        yield Spooled(producer, books, None)
        return

    def rules() -> SpoolRules:
        now = context.current().spool
        return SpoolRules(SpoolLimits(now.max_bytes, now.max_age_s * 1000, now.segment_bytes), now.fsync_interval_ms)

    def limits() -> SpoolingLimits:
        now = context.current()
        return limits_of(now.spool, now.producer)

    spool = Spool(Path(settings.directory) / name, rules, context.clock, books.lost_from_spool)
    spooler = Spooler(Retractable(producer, books.topic), spool, books, limits, context.clock)
    await spooler.start()
    whole = Spooled(producer, books, spooler)
    try:
        yield whole
    finally:
        await spooler.finish()


async def _raised(failing: "BatchProducer | Spooler") -> None:
    raise await failing.failure()
