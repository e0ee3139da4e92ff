"""Gives entities what they are told and the timers they set, and puts what they answer into the engine's batch."""

import logging
from typing import Final

import orjson

from agents.engine_entities import ENTITY_ROWS, Entities, EntityCommand, EntityOutcome, GetRow, TimerChange
from agents.engine_outside import Outside
from agents.engine_terms import Node
from agents.engine_turns import Turns
from tables.partition import TablePartition
from tables.timers import timer_key

log = logging.getLogger(__name__)
# Row of an entity's timers: {name: due_ms}, so that one can be moved or cleared by its name.
ENTITY_TIMERS: Final = b"u"
# What a schedule that met a bug misses meanwhile, its catch-up policy decides when it is mended.
LOOK_AGAIN_MS: Final = 60_000


class EntityKeeper:
    """The entities of one partition."""

    def __init__(self, node: Node, tables: TablePartition, row: GetRow, turns: Turns, outside: Outside) -> None:
        """`row` sees what the batch under way has decided."""
        self._tables = tables
        self._row = row
        self._turns = turns
        self._outside = outside
        self._entities: Entities | None = node.make_entities(row) if node.make_entities is not None else None

    def take(self, command: EntityCommand) -> str | None:
        """Have a command obeyed; why it was refused, or None."""
        if self._entities is None:
            return "this coordinator keeps no schedules"
        try:
            outcome = self._entities.take(command, self._turns.now_ms)
        except Exception as error:  # noqa: BLE001 - one entity must not stop a partition for ever
            _say_broken(command.entity_id, error)
            return f"{command.entity_id} met {error!r}"[:1_000]
        self._apply(command.entity_id, outcome)
        return outcome.refused

    def timer(self, entity_id: str, name: str, due_ms: int) -> None:
        """A timer of an entity is due; its row is deleted already."""
        known = self._timers_of(entity_id)
        if known.get(name) == due_ms:
            del known[name]
            self._keep_timers(entity_id, known)
        self._look(entity_id, name, due_ms)

    def look_again(self) -> None:
        """The clock was put back: the timers of entities are for a time that is further off than they meant."""
        if self._entities is None:
            return
        for key, row in list(self._tables.range(ENTITY_TIMERS, ENTITY_TIMERS + b"\xff")):
            entity_id = key[len(ENTITY_TIMERS) :].decode()
            for name in orjson.loads(row):
                self._look(entity_id, name, self._turns.now_ms)

    def _look(self, entity_id: str, name: str, due_ms: int) -> None:
        """Have an entity look at what is due; one that cannot is asked again later."""
        if self._entities is None:
            return
        now_ms = self._turns.now_ms
        try:
            outcome = self._entities.timer(entity_id, name, due_ms, now_ms)
        except Exception as error:  # noqa: BLE001 - as for a command
            _say_broken(entity_id, error)
            outcome = EntityOutcome(timers=(TimerChange(name, now_ms + LOOK_AGAIN_MS),))
        self._apply(entity_id, outcome)

    def _apply(self, entity_id: str, outcome: EntityOutcome) -> None:
        batch, now_ms = self._turns.batch, self._turns.now_ms
        for key, value in outcome.rows.items():
            assert key.startswith(ENTITY_ROWS), f"{entity_id} may not change the row {key!r}"
            batch.rows[key] = value
        batch.outputs += [self._outside.command(start, now_ms, start.traceparent) for start in outcome.starts]
        batch.outputs += [self._outside.command(cancel, now_ms) for cancel in outcome.cancels]
        batch.outputs += outcome.summaries
        if outcome.timers:
            known = self._timers_of(entity_id)
            for name, due_ms in outcome.timers:
                before = known.pop(name, None)
                if before is not None and before == due_ms:
                    known[name] = before
                    continue
                if before is not None:
                    self._turns.clear_timer(timer_key(before, entity_id, name))
                if due_ms is not None:
                    known[name] = due_ms
                    self._turns.set_timer(timer_key(due_ms, entity_id, name))
            self._keep_timers(entity_id, known)

    def _timers_of(self, entity_id: str) -> dict[str, int]:
        row = self._row(ENTITY_TIMERS + entity_id.encode())
        return orjson.loads(row) if row is not None else {}

    def _keep_timers(self, entity_id: str, known: dict[str, int]) -> None:
        key = ENTITY_TIMERS + entity_id.encode()
        if known:
            self._turns.batch.put(key, orjson.dumps(known))
        else:
            self._turns.batch.delete(key)


def _say_broken(entity_id: str, error: Exception) -> None:
    """Log a bug, or a row that cannot be read, with the name of who met it."""
    log.error(
        "%s cannot go on: %r",
        entity_id.replace(":", " "),
        error,
        exc_info=error,
        extra={"action": "entity_broken", "entity_id": entity_id},
    )
