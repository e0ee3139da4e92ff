"""Schedules, backfills and dead letters over HTTP with their owner behind it: commands are obeyed as they are sent."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.types import ASGIApp

from app.adapters.topic_reader import TopicReader
from app.adapters.workflow_letters import LetterIndex
from app.http import problems
from app.http.backfills import backfills_router
from app.http.dead_letters import dead_letters_router
from app.http.gateway import on_invalid_request
from app.http.schedules import schedules_router
from app.http.start import Starter
from app.http.workflow_access import Access
from app.ports import InRecord, OutRecord
from config.http import HttpSettings, StartsSettings
from config.topics import WORKFLOW_DEADLETTER
from tests.helpers.streams import Record
from tests.helpers.workflow_api import NOW_MS, PARTITIONS, Catalogue, Commands, InputField, client
from tests.helpers.workflow_time import World, a_workflow


class Known(Catalogue):
    """Definitions with the summaries that the owner wrote."""

    def __init__(self, world: World) -> None:
        super().__init__(a_workflow())
        self.ready = True
        self._world = world

    def entities(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        prefix = f"{kind}:"
        return _Named(self._world.summaries, prefix)


class _Named(Mapping[str, Mapping[str, Any]]):
    """A view that follows the owner, as the feed's own does."""

    def __init__(self, summaries: dict[str, dict[str, Any] | None], prefix: str) -> None:
        self._summaries, self._prefix = summaries, prefix

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        found = self._summaries[self._prefix + name]
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Any:
        return (
            key.removeprefix(self._prefix)
            for key, value in self._summaries.items()
            if key.startswith(self._prefix) and value is not None
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Owned(Commands):
    """A publisher whose commands the owner obeys at once."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.shelf = Shelf()

    async def publish(self, records: Sequence[OutRecord]) -> None:
        await super().publish(records)
        for record in records:
            body = msgspec.json.decode(record.value) if record.value is not None else {}
            if "entity_id" in body:
                self._world.tell(body)
            elif record.topic == WORKFLOW_DEADLETTER.name:
                self.shelf.put(record.topic, record.key, record.value, record.headers)


class Shelf(TopicReader):
    """A topic of one partition in memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def put(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        self.records.append(Record(topic, 0, len(self.records), NOW_MS, key, value, tuple(headers)))

    async def begins(self, topic: str) -> dict[int, int]:
        return {0: 0}

    async def ends(self, topic: str) -> dict[int, int]:
        return {0: len(self.records)}

    async def read(
        self, topic: str, start: Mapping[int, int], end: Mapping[int, int]
    ) -> AsyncGenerator[Sequence[InRecord], None]:
        yield self.records[start[0] : end[0]]

    async def one(self, topic: str, partition: int, offset: int) -> InRecord | None:
        return self.records[offset] if offset < len(self.records) else None


class Api:
    """The routes on an application of their own."""

    def __init__(self) -> None:
        self.world = World(a_workflow(), now_ms=NOW_MS, partitions=PARTITIONS)
        self.known = Known(self.world)
        self.sent = Owned(self.world)
        settings = HttpSettings(starts=StartsSettings(definitions_wait_ms=20))
        starter = Starter(settings.starts, 1000, lambda: NOW_MS, self.known, InputField(), self.sent)
        access = Access(settings, starter, None)  # type: ignore[arg-type]
        api = FastAPI()
        api.include_router(schedules_router(access))
        api.include_router(backfills_router(access))
        api.include_router(dead_letters_router(access, LetterIndex(self.sent.shelf)))
        problems.install(api)
        api.add_exception_handler(RequestValidationError, on_invalid_request)
        self.app: ASGIApp = api

    async def ask(self, method: str, path: str, status: int = 202, **kwargs: Any) -> Any:
        async with client(self.app) as asking:
            answer = await asking.request(method, f"/api/v1/{path}", **kwargs)
        assert answer.status_code == status, answer.text
        return answer.json()
