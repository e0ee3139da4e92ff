"""Reads on after the faults until everything that was begun has ended, or the patience is over."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from contextlib import aclosing, suppress
from typing import Final

from app.adapters.topic_reader import Offsets, TopicReader
from app.domain.workflow.commands import Start
from app.domain.workflow.events import ExecutionEnded
from app.ports import InRecord
from app.workflow_wire import decode_command, decode_run
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS

_POLL_S: Final = 0.3


class Ends:
    """The executions whose end is on the log, and those that were begun, as far as it was read.

    One that was begun may be one that nobody was told of: its answer was lost. It has to end as well.
    """

    def __init__(self, reader: TopicReader) -> None:
        self.seen: set[str] = set()
        self.begun: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self._reader = reader
        self._at: dict[str, Offsets] = {}

    async def read_on(self) -> None:
        """What has come since the last time."""
        async for record in self._news(WORKFLOW_COMMANDS.name):
            with suppress(ValueError):  # what nobody can read is a dead letter
                if isinstance(command := decode_command(record.value), Start):
                    self.begun.add(command.execution_id)
        async for record in self._news(WORKFLOW_EVENTS.name):
            run = decode_run(record.value or b"")
            last = run.events[-1]
            self.begun.add(run.execution_id)
            if isinstance(last, ExecutionEnded) and run.execution_id not in self.seen:
                self.seen.add(run.execution_id)
                self.statuses[last.status] += 1

    def have_all_ended(self, accepted: AbstractSet[str]) -> bool:
        """Whether nothing is awaited any more: those accepted and those begun."""
        return accepted <= self.seen and self.begun <= self.seen

    async def until(self, accepted: AbstractSet[str], timeout_s: float) -> float:
        """Seconds until all have ended, at most `timeout_s`: then the checker says which have not."""
        began = time.monotonic()
        while True:
            await self.read_on()
            taken_s = time.monotonic() - began
            if self.have_all_ended(accepted) or taken_s > timeout_s:
                return taken_s
            await asyncio.sleep(_POLL_S)

    async def _news(self, topic: str) -> AsyncIterator[InRecord]:
        begin = self._at.get(topic) or await self._reader.begins(topic)
        end = await self._reader.ends(topic)
        async with aclosing(self._reader.read(topic, begin, end)) as batches:
            async for batch in batches:
                for record in batch:
                    yield record
        self._at[topic] = end
