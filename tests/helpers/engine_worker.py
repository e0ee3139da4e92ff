"""A coordinator in a process of its own, to be killed: `python -m tests.helpers.engine_worker BOOTSTRAP FOLDER`.

Its tasks obey as `tests.helpers.engine.ObedientExecutor` does; it says `ready` when it has its partitions.
"""

import asyncio
import sys
from pathlib import Path

from tests.helpers.engine import KnownWorkflows, ObedientExecutor, coordinator, settings, task, workflow

FLOWS = (
    workflow("line", task("a", value="${input.n}"), task("b", "a", value="${a}"), task("c", "b")),
    workflow("nap", task("a", type="wait", params={"seconds": 2}), task("b", "a")),
    workflow("stuck", task("a", do="hang"), task("b", "a", value="${input.n}")),
)


async def main(broker: str, folder: str) -> None:
    async with coordinator(settings(broker, Path(folder)), KnownWorkflows(*FLOWS), ObedientExecutor(1_000)) as running:
        print("ready", flush=True)
        assert running.task is not None
        await running.task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
