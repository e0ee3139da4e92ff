"""The registered workflows and the summaries of entities, as `workflow.definitions` has them, kept up to date."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from app.adapters.read_feed import ReadFeed
from app.definition_wire import Definition, decode_definition, id_of_key, workflow_of
from app.domain.workflow.definition import Workflow
from config.http import ReadModelSettings
from config.kafka import KafkaSettings
from config.topics import WORKFLOW_DEFINITIONS

log = logging.getLogger(__name__)

Changed = Callable[[str, str], None]
"""Called on the loop with the kind ("workflow", "latest", "schedule", "backfill") and the id of what changed."""


class DefinitionsFeed:
    """Implements `app.ports.Definitions`; knows what it has read so far, and nothing before `run` was started."""

    def __init__(
        self,
        kafka: KafkaSettings,
        bootstrap_servers: str,
        limits: ReadModelSettings,
        *,
        topic: str = WORKFLOW_DEFINITIONS.name,
        changed: Changed = lambda _kind, _id: None,
    ) -> None:
        self._changed = changed
        self._definitions: dict[str, dict[str, Definition]] = {}
        self._latest: dict[str, str] = {}
        self._workflows: dict[tuple[str, str], Workflow | None] = {}
        self._entities: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._topic = topic
        self._feed = ReadFeed(
            kafka,
            bootstrap_servers,
            limits,
            self._take,
            lambda: None,
            topics=(topic,),
            whole=(topic,),
            skippable=(),
            reader="the registry of workflows",
            asked=True,
        )

    @property
    def ready(self) -> bool:
        """Everything that was on the topic when it was first reached has been read."""
        return self._feed.caught_up

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the topic until `stop`, through any absence of the broker."""
        await self._feed.run(stop)

    async def caught_up(self) -> None:
        """Return when all that is on the topic now has been read; waits through an absence of the broker."""
        await self._feed.read_all()

    def get(self, workflow: str, version: str) -> Workflow | None:
        """One version, None when it is not known (yet) or cannot be read."""
        found = self._workflows.get((workflow, version))
        if found is not None or (workflow, version) in self._workflows:
            return found
        definition = self.definition(workflow, version)
        if definition is None:
            return None
        found = self._workflows[workflow, version] = _read(definition)
        return found

    def latest(self, workflow: str) -> Workflow | None:
        """The version that a start without one means."""
        version = self._latest.get(workflow)
        return None if version is None else self.get(workflow, version)

    def latest_version(self, workflow: str) -> str | None:
        return self._latest.get(workflow)

    def definition(self, workflow: str, version: str | None = None) -> Definition | None:
        """A version as it was registered; without `version` the latest."""
        chosen = self._latest.get(workflow) if version is None else version
        return None if chosen is None else self._definitions.get(workflow, {}).get(chosen)

    def workflows(self) -> list[str]:
        """Ids of all workflows, in order."""
        return sorted(self._latest)

    def versions(self, workflow: str) -> list[Definition]:
        """All versions, the one registered last first."""
        return sorted(
            self._definitions.get(workflow, {}).values(), key=lambda one: (one.registered_at, one.version), reverse=True
        )

    def entities(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        """Summaries of the entities of a kind ("schedule", "backfill") by name; changed in place as they come."""
        return self._entities.setdefault(kind, {})

    def _take(self, _: str, key: bytes | None, value: bytes | None) -> None:
        where = None if key is None else id_of_key(key.decode(errors="replace"))
        if where is None:
            self._unreadable(key, "its key names nothing")
            return
        kind, name, version = where
        try:
            if kind == "workflow":
                self._take_definition(name, version, value)
            elif kind == "latest":
                self._take_latest(name, value)
            else:
                self._take_entity(kind, name, value)
        except (ValueError, KeyError, TypeError) as error:
            self._unreadable(key, str(error))
            return
        self._changed(kind, name)

    def _take_definition(self, workflow: str, version: str, value: bytes | None) -> None:
        versions = self._definitions.setdefault(workflow, {})
        self._workflows.pop((workflow, version), None)
        if value is None:
            versions.pop(version, None)
            return
        definition = decode_definition(value)
        if (definition.id, definition.version) != (workflow, version):
            raise ValueError("its key and its value name different workflows")
        # A version that is applied again is the same: it keeps the time at which it was first registered.
        before = versions.get(version)
        versions[version] = definition if before is None else definition._replace(registered_at=before.registered_at)

    def _take_latest(self, workflow: str, value: bytes | None) -> None:
        if value is None:
            self._latest.pop(workflow, None)
        else:
            self._latest[workflow] = str(orjson.loads(value)["version"])

    def _take_entity(self, kind: str, name: str, value: bytes | None) -> None:
        known = self._entities.setdefault(kind, {})
        summary = None if value is None else orjson.loads(value)
        if summary is None:
            known.pop(name, None)
        elif isinstance(summary, dict):
            known[name] = summary
        else:
            raise ValueError("the summary of an entity is an object")

    def _unreadable(self, key: bytes | None, why: str) -> None:
        log.error(
            f"a record of {self._topic} is passed over: {why}",
            extra={"action": "definition_unreadable", "key": None if key is None else key.decode(errors="replace")},
        )


def _read(definition: Definition) -> Workflow | None:
    try:
        return workflow_of(definition)
    except ValueError as error:
        log.error("%s", error, extra={"action": "definition_unreadable", "workflow_id": definition.id})  # noqa: TRY400
        return None
