"""How far consumer groups are in their topics, asked of the broker now and then and remembered for a moment."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from app.adapters.topic_reader import TopicReader
from app.adapters.topics_admin import committed_offsets
from app.errors import BrokerUnavailable, UserError
from config.kafka import KafkaSettings

REMEMBERED_S: Final = 2.0
ANSWER_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class GroupLag:
    """`partitions` is how many each topic has; `behind` the records not yet committed, by topic-number where known."""

    partitions: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    behind: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def lag(self) -> int | None:
        """The records not yet committed, None where nothing is known."""
        return sum(self.behind.values()) if self.behind else None


class GroupStates:
    """One question at a time, whoever asks; the answer of a broker that does not give one is what was known."""

    def __init__(self, kafka: KafkaSettings, bootstrap: str, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._kafka = kafka.model_copy(update={"bootstrap_servers": bootstrap})
        self._reader = TopicReader(self._kafka)
        self._monotonic_s = monotonic_s
        self._one = asyncio.Lock()
        self._known: dict[str, GroupLag] = {}
        self._asked_s = float("-inf")
        self._was_answered = False

    async def of(self, groups: Mapping[str, frozenset[str]]) -> Mapping[str, GroupLag]:
        """That of each group for the topics it reads; returns within a few seconds, and never raises."""
        async with self._one:
            is_old = self._monotonic_s() - self._asked_s >= REMEMBERED_S
            # A group that is new is asked for at once, but not of a broker that is away: each who waits here would
            # wait for the questions of all before it.
            is_new = self._was_answered and not groups.keys() <= self._known.keys()
            if is_old or is_new:
                self._was_answered = False
                try:
                    async with asyncio.timeout(ANSWER_S):
                        self._known = await self._ask(groups)
                    self._was_answered = True
                except (BrokerUnavailable, UserError, TimeoutError):
                    # Without an answer the counts of before are the best there is, but no lag is.
                    self._known = {group: GroupLag(known.partitions) for group, known in self._known.items()}
                finally:
                    self._asked_s = self._monotonic_s()
        return self._known

    async def _ask(self, groups: Mapping[str, frozenset[str]]) -> dict[str, GroupLag]:
        topics = sorted({topic for read in groups.values() for topic in read})
        ends = dict(zip(topics, await asyncio.gather(*map(self._reader.ends, topics)), strict=True))
        servers = self._kafka.bootstrap_servers
        committed = await asyncio.gather(*(committed_offsets(servers, group, self._kafka) for group in groups))
        found = {}
        for (group, read), done in zip(groups.items(), committed, strict=True):
            behind = {
                f"{topic}-{partition}": max(0, ends[topic][partition] - offset)
                for topic in read
                for partition, offset in done.get(topic, {}).items()
                if partition in ends[topic]
            }
            found[group] = GroupLag({topic: len(ends[topic]) for topic in read}, behind)
        return found
