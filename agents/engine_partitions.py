"""Among how many partitions the executions of a partition's rows were placed: row `n`, written when it is first opened.

Ids are placed by the number of partitions. With another number everybody would look for what is here elsewhere.
"""

import struct
from typing import Final

from agents.engine_entities import ENTITY_ROWS
from app.errors import UserError
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS, WORKFLOW_STATE
from tables import executions as rows
from tables.partition import Changes, TablePartition

PLACED: Final = b"n"
_COUNT: Final = struct.Struct(">I")
_OF_SOMEBODY: Final = (rows.LIVE, rows.ENDED, ENTITY_ROWS)


async def keep_partitions(tables: TablePartition, partitions: int, now_ms: int) -> None:
    """Compare the number with what the rows were made with, and note it. Raises `UserError` when it is another."""
    row = tables.get(PLACED)
    made_with = None if row is None else _COUNT.unpack(row)[0]
    if made_with == partitions:
        return
    if made_with is not None and _has_rows(tables):
        raise UserError(
            f"{WORKFLOW_COMMANDS.name} has {partitions} partitions, and the executions and schedules of partition "
            f"{tables.partition} were placed among {made_with}: they would be looked for elsewhere. The number of "
            f"partitions cannot change while there is state: delete {WORKFLOW_COMMANDS.name}, {WORKFLOW_EVENTS.name} "
            f"and {WORKFLOW_STATE.name} and begin anew."
        )
    written = tables.write(Changes({PLACED: _COUNT.pack(partitions)}), timestamp_ms=now_ms)
    await tables.settle(written, timestamp_ms=now_ms)


def _has_rows(tables: TablePartition) -> bool:
    return any(any(tables.range(prefix, bytes((prefix[0] + 1,)))) for prefix in _OF_SOMEBODY)
