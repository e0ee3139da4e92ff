"""The seam between the engine and the entities that live beside executions: schedules and backfills.

An entity is owned by the partition of its id, as an execution is. The engine hands it what it is told and the
timers it set; what it answers becomes durable in the engine's own transaction, and only then is sent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from app.domain.workflow.commands import Cancel, Start
from app.ports import OutRecord

SCHEDULE_PREFIX: Final = "schedule:"
BACKFILL_PREFIX: Final = "backfill:"
ENTITY_TOLD: Final = "entity_told"
# Rows of entities begin with this; the engine lets an entity change no other.
ENTITY_ROWS: Final = b"s"

GetRow = Callable[[bytes], bytes | None]


class EntityCommand(NamedTuple):
    """One record of `workflow.commands` whose key is an entity's id.

    `type` and `body` are the JSON object's field `type` and the whole object. `entity_told` comes from the
    engine when an execution with `notify` has ended:
    {"type", "entity_id", "execution_id", "workflow", "status", "at_ms"}.
    """

    entity_id: str
    type: str
    body: Mapping[str, Any]
    traceparent: str | None = None


class TimerChange(NamedTuple):
    """Set a timer of the entity under `name` (a timer of that name is replaced), or clear it with `due_ms` None."""

    name: str
    due_ms: int | None


@dataclass(frozen=True, slots=True)
class EntityOutcome:
    """What an entity answers.

    `rows` (None deletes) have keys that begin with `ENTITY_ROWS` and the entity's id; `starts`, then `cancels`, are
    sent to the partitions of their executions; `summaries` are records of `workflow.definitions`. `refused` is why the
    command was not obeyed, one sentence: it becomes a dead letter.
    A start may be asked for again after long silence; when its execution has ended, `entity_told` comes again too.
    """

    rows: Mapping[bytes, bytes | None] = field(default_factory=dict)
    starts: tuple[Start, ...] = ()
    cancels: tuple[Cancel, ...] = ()
    timers: tuple[TimerChange, ...] = ()
    summaries: tuple[OutRecord, ...] = ()
    refused: str | None = None


class Entities(Protocol):
    """Decides for the entities of one partition; nothing in it waits, sends or keeps state outside its rows.

    It is made with a `GetRow` that sees every change already decided, durable or not.
    """

    def take(self, command: EntityCommand, now_ms: int) -> EntityOutcome:
        """Obey or refuse a command; a repetition changes nothing."""

    def timer(self, entity_id: str, name: str, due_ms: int, now_ms: int) -> EntityOutcome:
        """A timer that the entity set is due (it is gone now; set it again to be told again)."""


MakeEntities = Callable[[GetRow], Entities]


def is_entity(key: str) -> bool:
    """Whether a command's key names an entity and not an execution."""
    return key.startswith((SCHEDULE_PREFIX, BACKFILL_PREFIX))
