"""Puts an execution aside whose rows cannot be read: it fails, loudly, and its partition goes on.

Its row is kept as it is under `q`, for people to look at; sealed chunks stay where they are. Its history is ended
with the cause where its header can be read, so that readers learn of it; who waits for it is told, and it becomes a
dead letter. Its id is never used again.
"""

import logging
import struct
import sys
from typing import Final, NamedTuple

from agents.engine_batch import Batch
from agents.engine_outside import Outside
from agents.engine_terms import names_of
from app.domain.workflow.commands import TaskError
from app.domain.workflow.effects import Ended
from app.domain.workflow.events import ExecutionEnded, ExecutionStarted
from app.domain.workflow.evolve import evolve
from app.domain.workflow.state import Execution
from app.ports import OutRecord
from app.workflow_wire import decode_run, encode_run
from config.topics import WORKFLOW_EVENTS
from tables import executions as rows
from tables.executions import Header
from tables.partition import TablePartition

log = logging.getLogger(__name__)
# What a row of unknown bytes may raise when it is read: nothing of it is known.
UNREADABLE: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, struct.error,
)  # fmt: skip


class Broken(NamedTuple):
    """An execution whose row, under `prefix`, cannot be read."""

    execution_id: str
    prefix: bytes
    row: bytes
    error: Exception


def put_aside(broken: Broken, batch: Batch, tables: TablePartition, outside: Outside, now_ms: int) -> bool:
    """Move the row, and end the execution as well as can be. Whether it was live and counted."""
    execution_id, prefix, row, error = broken
    header = header_or_none(row)
    state = _begun(execution_id, row, header, tables)
    log.error(
        "the rows of execution %s cannot be read, it is put aside: %r",
        execution_id,
        error,
        exc_info=error,
        extra={"action": "execution_broken", **names_of(state)},
    )
    batch.delete(prefix + execution_id.encode())
    batch.put(rows.aside_key(execution_id), row)
    if prefix != rows.LIVE:
        return False
    message = f"the rows of this execution cannot be read: {error!r}"
    failure = TaskError(type="Unreadable", message=message[:1_000], retryable=False)
    if header is not None:
        state.at = max(now_ms, header.at)
        ended = ExecutionEnded(seq=header.next_seq, at=state.at, status="failed", error=failure)
        run = encode_run(execution_id, header.workflow, header.version, tables.epoch, [ended])
        batch.outputs.append(OutRecord(WORKFLOW_EVENTS.name, execution_id.encode(), run, now_ms, (), tables.partition))
        batch.cancels.append((execution_id, None, None, sys.maxsize))
    batch.ended[state.workflow, "failed"] = batch.ended.get((state.workflow, "failed"), 0) + 1
    end = Ended("failed", None, failure, None, "", state.parent, state.notify)
    batch.outputs += outside.told(state, end, now_ms)
    return header is not None


def header_or_none(row: bytes) -> Header | None:
    """The header, when that much can be read."""
    try:
        return rows.header_of(row)
    except UNREADABLE:
        return None


def _begun(execution_id: str, row: bytes, header: Header | None, tables: TablePartition) -> Execution:
    """What its first event says, else its header, else its id alone."""
    try:
        first = next(rows.all_runs(execution_id, rows.history_of(row), tables.get))
        return evolve(None, decode_run(first).events[0])
    except (*UNREADABLE, StopIteration):
        started = ExecutionStarted(
            seq=0,
            at=0 if header is None else header.at,
            workflow="" if header is None else header.workflow,
            version="" if header is None else header.version,
            input=None,
            key=None if header is None else header.key,
            priority=0,
            asked_at=0,
            trigger={},
            notify=None if header is None else header.notify,
            execution_id=execution_id,
        )
        return evolve(None, started)
