"""Reads on after the faults until everything acknowledged has ended, or the patience is over."""

import asyncio
import time
from collections import Counter
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from typing import Final

from app.adapters.topic_reader import Offsets, TopicReader
from app.domain.workflow.events import ExecutionEnded
from app.workflow_wire import decode_run
from config.topics import WORKFLOW_EVENTS

_POLL_S: Final = 0.3


class Ends:
    """The executions whose end is on the log, as far as it was read."""

    def __init__(self, reader: TopicReader) -> None:
        self.seen: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self._reader = reader
        self._at: Offsets | None = None

    async def read_on(self) -> None:
        """What has come since the last time."""
        topic = WORKFLOW_EVENTS.name
        if self._at is None:
            self._at = await self._reader.begins(topic)
        end = await self._reader.ends(topic)
        async with aclosing(self._reader.read(topic, self._at, end)) as batches:
            async for batch in batches:
                for record in batch:
                    run = decode_run(record.value or b"")
                    last = run.events[-1]
                    if isinstance(last, ExecutionEnded) and run.execution_id not in self.seen:
                        self.seen.add(run.execution_id)
                        self.statuses[last.status] += 1
        self._at = end

    async def until(self, wanted: AbstractSet[str], timeout_s: float) -> float:
        """Seconds until all of these have ended, at most `timeout_s`: then the checker says which have not."""
        began = time.monotonic()
        while True:
            await self.read_on()
            taken_s = time.monotonic() - began
            if wanted <= self.seen or taken_s > timeout_s:
                return taken_s
            await asyncio.sleep(_POLL_S)
