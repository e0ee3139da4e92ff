"""A process under test that serves one task queue with the types of `tests.helpers.task_types`.

`python -m tests.helpers.queue_worker BOOTSTRAP QUEUE`: says `ready` once it has joined, and runs until it is killed.
"""

import asyncio
import sys

from app.adapters.clock import SystemClock
from app.http.health import HealthRegistry
from app.roles.context import Context
from app.roles.queues import run_queue
from config.settings import Settings
from tests.helpers.kafka import until
from tests.helpers.task_types import executor


def context_of(bootstrap: str, stop: asyncio.Event, **tasks: object) -> Context:
    """What a role is given, with quick detection of the dead."""
    settings = Settings(
        kafka={
            "bootstrap_servers": bootstrap,
            "session_timeout_ms": 6_000,
            "heartbeat_interval_ms": 500,
        },
        producer={"flush_interval_ms": 1},
        tasks=tasks,
    )
    return Context(settings, lambda: settings, HealthRegistry(frozenset(), "1"), stop, SystemClock())


async def serve(bootstrap: str, queue: str) -> None:
    stop = asyncio.Event()
    context = context_of(bootstrap, stop)
    async with executor() as running:
        serving = asyncio.create_task(run_queue(context, queue, running))
        await until(lambda: serving.done() or context.health.ready().ok, "the queue is served")
        print("ready", flush=True)
        await serving


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
