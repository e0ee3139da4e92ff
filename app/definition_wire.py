"""Definitions as they are on `workflow.definitions`, and the workflows that they are."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from app.domain.workflow.definition import (
    Concurrency,
    MapOver,
    Rate,
    Retry,
    ScheduleTrigger,
    Task,
    TopicTrigger,
    Workflow,
)
from app.ports import OutRecord
from config.topics import WORKFLOW_DEFINITIONS

ON_FAILURE: Final = "on_failure"
VERSION_CHARS: Final = 12
_WORKFLOW: Final = "workflow:"
_LATEST: Final = "latest:"


class Definition(NamedTuple):
    """One version: its canonical document (JSON, as the user wrote it) and when it was registered."""

    id: str
    version: str
    document: Mapping[str, Any]
    registered_at: int = 0


def version_of(document: Mapping[str, Any]) -> str:
    """What the content is called: the order of keys does not matter, that of lists does."""
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()[:VERSION_CHARS]


def registration(definition: Definition, at_ms: int) -> list[OutRecord]:
    """What makes a version known, and the latest one."""
    key = f"{definition.id}@{definition.version}"
    value = {
        "id": definition.id,
        "version": definition.version,
        "definition": definition.document,
        "registered_at": at_ms,
    }
    latest = {"id": definition.id, "version": definition.version}
    return [
        OutRecord(WORKFLOW_DEFINITIONS.name, f"{_WORKFLOW}{key}".encode(), orjson.dumps(value), at_ms),
        OutRecord(WORKFLOW_DEFINITIONS.name, f"{_LATEST}{definition.id}".encode(), orjson.dumps(latest), at_ms),
    ]


def decode_definition(value: bytes) -> Definition:
    """The value of a `workflow:…` record. Raises ValueError."""
    try:
        found = orjson.loads(value)
        return Definition(found["id"], found["version"], found["definition"], found.get("registered_at", 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the record of a definition is not as it should be: {error!r}") from error


def workflow_of(definition: Definition) -> Workflow:
    """The workflow that a document describes; it was checked when it was registered. Raises ValueError."""
    try:
        return _workflow(definition.id, definition.version, definition.document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the definition {definition.id}@{definition.version} cannot be read: {error!r}") from error


def _workflow(workflow: str, version: str, document: Mapping[str, Any]) -> Workflow:
    triggers = document.get("triggers")
    on_failure = document.get(ON_FAILURE)
    concurrency, rate = document.get("concurrency"), document.get("rate")
    return Workflow(
        id=workflow,
        version=version,
        tasks={name: _task(name, task) for name, task in document["tasks"].items()},
        http=triggers is None or any(one.get("http", False) is not False for one in triggers),
        schedules=tuple(_schedule(one) for one in triggers or () if "schedule" in one),
        topics=tuple(TopicTrigger(**one) for one in triggers or () if "topic" in one),
        concurrency=None if concurrency is None else Concurrency(**concurrency),
        rate=None if rate is None else Rate(**rate),
        priority=document.get("priority", 0),
        timeout_s=document.get("timeout_s"),
        on_failure=None if on_failure is None else _task(ON_FAILURE, on_failure),
        description=document.get("description", ""),
    )


def _schedule(trigger: Mapping[str, Any]) -> ScheduleTrigger:
    fields = {name: value for name, value in trigger.items() if name != "schedule"}
    return ScheduleTrigger(cron=trigger["schedule"], **fields)


def _task(name: str, task: Mapping[str, Any]) -> Task:
    fan = task.get("map")
    retry = dict(task.get("retry") or {})
    if "non_retryable" in retry:
        retry["non_retryable"] = tuple(retry["non_retryable"])
    needs = task.get("needs", ())
    return Task(
        name=name,
        type=task["type"],
        needs=(needs,) if isinstance(needs, str) else tuple(needs),
        params=task.get("with") or {},
        when=task.get("when"),
        map=None if fan is None else MapOver(over=fan) if isinstance(fan, str) else MapOver(**fan),
        retry=Retry(**retry),
        timeout_s=task.get("timeout_s"),
        heartbeat_s=task.get("heartbeat_s"),
        queue=task.get("queue", "default"),
    )


def id_of_key(key: str) -> tuple[str, str, str] | None:
    """(kind, id, version) of a key: kind "workflow" or "latest", or that of an entity; None for any other."""
    if key.startswith(_WORKFLOW):
        workflow, _, version = key.removeprefix(_WORKFLOW).rpartition("@")
        return ("workflow", workflow, version) if workflow and version else None
    kind, _, name = key.partition(":")
    return (kind, name, "") if kind and name else None
