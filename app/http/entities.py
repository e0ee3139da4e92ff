"""What the routes of schedules and backfills share: summaries, commands to their owners, the wait for an effect."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, cast

import msgspec
from fastapi import HTTPException

from app.domain.workflow.backfill import BackfillCancel, BackfillStart
from app.domain.workflow.definition import Workflow
from app.domain.workflow.placement import partition_of
from app.domain.workflow.schedule import (
    ScheduleDelete,
    SchedulePause,
    SchedulePut,
    ScheduleResume,
    ScheduleRunNow,
    name_problem,
)
from app.errors import BrokerUnavailable
from app.http.paging import Key, page
from app.http.workflow_access import Access
from app.ports import Definitions, OutRecord
from config.topics import WORKFLOW_COMMANDS

Summary = Mapping[str, Any]
EntityOrder = (
    SchedulePut | ScheduleDelete | SchedulePause | ScheduleResume | ScheduleRunNow | BackfillStart | BackfillCancel
)
# The owner answers within a few milliseconds; where nobody owns it yet, the order is durable all the same.
APPLIED_WITHIN_S: Final = 1.0
_LOOK_S: Final = 0.01


class Registry(Definitions, Protocol):
    """Definitions that know summaries too (`app.adapters.definitions_feed` fits)."""

    @property
    def ready(self) -> bool: ...
    def entities(self, kind: str) -> Mapping[str, Summary]: ...


def registry(access: Access) -> Registry:
    """Raises HTTP 503 before there is one."""
    if access.starter.definitions is None:
        raise _not_read()
    return cast(Registry, access.starter.definitions)


def summaries(access: Access, kind: str) -> Mapping[str, Summary]:
    """All of a kind by name. Raises HTTP 503 while not everything has been read."""
    known = registry(access)
    if not known.ready:
        raise _not_read()
    return known.entities(kind)


async def summary(access: Access, kind: str, name: str) -> Summary:
    """One. Raises HTTP 404 when there is none, also after everything that is on the topic now has been read."""
    found = summaries(access, kind).get(name)
    if found is None:
        await _caught_up(access)
        found = summaries(access, kind).get(name)
    if found is None:
        raise HTTPException(404, f"There is no {kind} {name}.")
    return found


async def known_workflow(access: Access, workflow: str, version: str | None) -> Workflow:
    """The definition an order names. Raises HTTP 422 when it is not registered."""
    definitions = registry(access)
    for attempt in range(2):
        found = definitions.latest(workflow) if version is None else definitions.get(workflow, version)
        if found is not None:
            return found
        if attempt == 0:
            await _caught_up(access)
    what = f"version {version} of workflow {workflow}" if version else f"workflow {workflow}"
    raise HTTPException(422, f"No {what} is registered.")


def listed(
    found: Mapping[str, Summary], wanted: Callable[[Summary], bool], after: Key | None, limit: int
) -> tuple[list[Summary], Key | None]:
    """A page by name."""
    return page((each for each in found.values() if wanted(each)), lambda each: (str(each["id"]),), after, limit)


def checked_name(name: str) -> str:
    """Raises HTTP 422 for what cannot be a name."""
    problem = name_problem(name)
    if problem is not None:
        raise HTTPException(422, problem)
    return name


async def tell(access: Access, order: EntityOrder) -> None:
    """Return when the order is durable. Raises `Unavailable` or `PublishFailed`, both answered 503."""
    publisher, timeout_s = access.starter.publisher, access.settings.starts.acknowledge_timeout_s
    if publisher is None:
        raise BrokerUnavailable("The broker has not been reached yet.")
    try:
        async with asyncio.timeout(timeout_s):
            partitions = await publisher.partitions(WORKFLOW_COMMANDS.name)
            key, partition = order.entity_id, partition_of(order.entity_id, partitions)
            value = msgspec.json.encode(order)
            at_ms = access.starter.now_ms()
            await publisher.publish([OutRecord(WORKFLOW_COMMANDS.name, key.encode(), value, at_ms, (), partition)])
    except TimeoutError as error:
        raise BrokerUnavailable(f"The broker has not acknowledged within {timeout_s:g} s.") from error


async def told(access: Access, kind: str, name: str, order: EntityOrder) -> dict[str, Any]:
    """Send an order and wait a moment for its effect; `applied` says whether it was seen here."""
    known = registry(access).entities(kind)
    gone = isinstance(order, ScheduleDelete)
    await tell(access, order)
    ends_s = time.monotonic() + APPLIED_WITHIN_S
    while not (applied := _is_applied(known.get(name), order, gone=gone)) and time.monotonic() < ends_s:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    return {"id": name, "command_id": order.command_id, "applied": applied, kind: known.get(name) if applied else None}


def _is_applied(found: Summary | None, order: EntityOrder, *, gone: bool) -> bool:
    return found is None if gone else found is not None and found.get("command_id") == order.command_id


async def _caught_up(access: Access) -> None:
    try:
        async with asyncio.timeout(access.settings.starts.definitions_wait_ms / 1000):
            await registry(access).caught_up()
    except TimeoutError as error:
        raise _not_read() from error


def _not_read() -> HTTPException:
    return HTTPException(503, "The definitions have not all been read yet.", headers={"Retry-After": "1"})
