"""The role `producer`: the device fleet, its commands, and the batched producer under both."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from agents.generate import GenerateLimits, commands, fleet_of, generate, limits_of
from agents.ledger import Books
from app import metrics
from app.adapters.faust_app import running
from app.domain import watchdog
from app.domain.watchdog import Progress
from app.http.health import Check
from app.ports import Clock, InRecord
from app.roles.context import Context, first_of, raise_crash
from app.roles.spooled import spooled
from config.topics import DEVICE_COMMANDS, DEVICE_TELEMETRY


async def run_producer(context: Context) -> None:
    """Run the fleet until stop; its last readings and the ledger's balance come before the producer closes."""
    books = Books(DEVICE_TELEMETRY.name)
    fleet = fleet_of(context.settings.device)
    async with (
        context.producer("fleet", books.delivered) as producer,
        spooled(context, producer, books, "fleet") as way,
    ):
        app = context.faust_app("fleet")

        async def obey(stream: Any) -> None:
            await commands(_acknowledged(stream), fleet=fleet, clock=context.clock, publisher=producer)

        app.add_agent("commands", DEVICE_COMMANDS.name, obey)

        def limits() -> GenerateLimits:
            now = context.current()
            return limits_of(now.device, with_headers=now.producer.cloudevents_headers)

        acknowledged = Acknowledged(books, context.clock, context.settings.health.stall_after_s)
        context.health.add("fleet", lambda: Check(app.has_joined, f"{len(fleet.devices)} devices obey commands"))
        context.health.add("readings", acknowledged.check)
        metrics.LEDGER_IMBALANCE.set_function(lambda: way.imbalance)
        async with running(app):
            generating = asyncio.create_task(
                generate(fleet, way.sender, context.clock, books, limits, context.stop), name="fleet"
            )
            crashing = asyncio.create_task(raise_crash(app), name="commands")
            await first_of(generating, crashing, *way.failures())
        await way.settled()


class Acknowledged:
    """Whether the broker goes on to acknowledge what was sent.

    It makes the process not ready and no more than that: the watchdog (`app.domain.watchdog`) would end it after two
    minutes without the broker, and with it the readings that wait in memory.
    """

    def __init__(self, books: Books, clock: Clock, patience_s: float) -> None:
        self._books = books
        self._clock = clock
        self._patience_s = patience_s
        self._watch = watchdog.begin(clock.monotonic_s(), self._progress())

    def check(self) -> Check:
        """Not ok when readings wait and none was acknowledged for `patience_s`, or when the ledger does not balance."""
        self._watch = watchdog.observe(self._watch, self._clock.monotonic_s(), self._progress())
        books, idle_s = self._books, self._watch.idle_s
        detail = f"{books.ledger.acknowledged} acknowledged, {books.unacknowledged} under way"
        if books.ledger.spooled:
            detail += f", {books.ledger.spooled} on disk"
        if books.imbalance:
            return Check(ok=False, detail=f"{detail}, {books.imbalance} of unknown fate")
        if idle_s >= self._patience_s:
            return Check(ok=False, detail=f"{detail}, none for {idle_s:.0f} s")
        return Check(ok=True, detail=detail)

    def _progress(self) -> Progress:
        return Progress(self._books.unacknowledged, self._books.delivered_records)


async def _acknowledged(stream: Any) -> AsyncIterator[list[InRecord]]:
    """The records of each batch, acknowledged once the loop that obeys them asks for the next."""
    async for event in stream.noack().events():
        yield list(event.value.records)
        event.ack()
