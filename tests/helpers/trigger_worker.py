"""The triggers alone, as a process that may be killed: `python -m tests.helpers.trigger_worker BOOTSTRAP`."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.adapters.clock import SystemClock
from app.adapters.definitions_feed import DefinitionsFeed
from app.http.health import HealthRegistry
from app.roles.context import Context
from app.roles.triggers import run_triggers
from config.settings import Settings


def trigger_context(bootstrap: str, folder: Path | None = None, **kafka: Any) -> Context:
    """A context whose triggers look at the definitions often; an engine in it keeps its tables in `folder`."""
    settings = Settings(
        kafka={"bootstrap_servers": bootstrap, "session_timeout_ms": 6_000, **kafka},
        tables={} if folder is None else {"directory": str(folder)},
        triggers={"refresh_interval_ms": 50, "topic_check_interval_s": 0.2},
    )
    return Context(settings, lambda: settings, HealthRegistry(frozenset(), "1"), asyncio.Event(), SystemClock())


@asynccontextmanager
async def following(context: Context) -> AsyncIterator[DefinitionsFeed]:
    """The registry of workflows, read until the context stops."""
    feed = DefinitionsFeed(context.settings.kafka, context.bootstrap, context.settings.http.read_model)
    reading = asyncio.create_task(feed.run(context.stop))
    try:
        yield feed
    finally:
        context.stop.set()
        await reading


async def _main(bootstrap: str) -> None:
    context = trigger_context(bootstrap)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, context.stop.set)
    async with following(context) as feed:
        await run_triggers(context, feed)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
