"""Records of `workflow.commands` as what the engine decides: a command, an entity's command, or why it is neither."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import orjson

from agents.engine_debounce import DEBOUNCE_MAX_S
from agents.engine_entities import EntityCommand, is_entity
from agents.engine_outside import OVERHEAD_BYTES
from app.domain.workflow.commands import Command, Report, Start, TaskError
from app.domain.workflow.placement import WRONG_PARTITION, partition_of
from app.domain.workflow.turn import Limits
from app.ports import InRecord
from app.workflow_wire import decode_command

TRACEPARENT: Final = "traceparent"
# What rows and clocks can hold: numbers beyond are nobody's priority and no instant.
PRIORITY_MAX: Final = 1 << 31
INSTANT_MAX_MS: Final = 1 << 53


class Unreadable(NamedTuple):
    """A record that is no command: `detail` is one sentence."""

    reason: str
    detail: str


class Taken(NamedTuple):
    """A record and what it says. `oversize` is why its payload is refused, None when it is not."""

    record: InRecord
    said: Command | EntityCommand | Unreadable
    oversize: str | None = None


def is_start(record: InRecord) -> bool:
    """Whether a record starts an execution."""
    try:
        return isinstance(decode_command(record.value), Start)
    except ValueError:
        return False


def read(records: Sequence[InRecord], limits: Limits, partitions: int) -> list[Taken]:
    """What each record says; `partitions` is the number of those that executions live on."""
    return [_read(record, limits, partitions) for record in records]


def _read(record: InRecord, limits: Limits, partitions: int) -> Taken:
    key = (record.key or b"").decode(errors="replace")
    if is_entity(key):
        return Taken(record, _wrong_partition(record, key, partitions) or _entity(record, key))
    try:
        command: Command = decode_command(record.value)
    except ValueError as error:
        return Taken(record, Unreadable("unreadable", str(error)))
    if "\x00" in key:
        return Taken(record, Unreadable("unreadable", "an execution_id holds no zero byte"))
    if command.execution_id != key:
        return Taken(record, Unreadable("misplaced", f"the key {key!r} is not the execution_id of the command"))
    if (elsewhere := _wrong_partition(record, key, partitions)) is not None:
        return Taken(record, elsewhere)
    size = len(record.value or b"")
    if isinstance(command, Start):
        if (problem := _out_of_range(command)) is not None:
            return Taken(record, Unreadable("unreadable", problem))
        traceparent = _traceparent(record)
        if command.traceparent is None and traceparent is not None:
            command = replace(command, traceparent=traceparent)
        if size > limits.input_bytes + OVERHEAD_BYTES:
            return Taken(record, command, f"The input is larger than workflow.input_bytes, {limits.input_bytes}.")
    elif isinstance(command, Report) and size > limits.result_bytes + OVERHEAD_BYTES:
        message = f"the result of {size} bytes is larger than workflow.result_bytes, {limits.result_bytes}"
        refused = TaskError(type="PayloadTooLarge", message=message, retryable=False)
        command = replace(command, result=None, error=refused)
    elif size > max(limits.input_bytes, limits.result_bytes) + OVERHEAD_BYTES:
        return Taken(record, Unreadable("too_large", f"a {command.type} may not have {size} bytes"))
    return Taken(record, command)


def _wrong_partition(record: InRecord, key: str, partitions: int) -> Unreadable | None:
    """Why an id has no business here: what began here would be asked for elsewhere, and might begin there too."""
    placed = partition_of(key, partitions)
    if placed == record.partition:
        return None
    detail = (
        f"{key!r} lives on partition {placed} of {partitions}, and this came on {record.partition}:"
        " its sender has another partitioner or another number of partitions"
    )
    return Unreadable(WRONG_PARTITION, detail)


def _out_of_range(start: Start) -> str | None:
    """Why no row can hold a start: it is refused here, where it is one record, and not where it stops a partition."""
    if abs(start.priority) >= PRIORITY_MAX:
        return f"the priority of a start lies within {PRIORITY_MAX:,} of 0"
    if not 0 <= start.at_ms < INSTANT_MAX_MS:
        return "at_ms of a start is an instant in milliseconds since 1970"
    debounce = start.debounce
    if debounce is not None and not 0 <= debounce.seconds <= DEBOUNCE_MAX_S:
        return f"a start is debounced for at most {DEBOUNCE_MAX_S:,} seconds"
    if debounce is not None and not (0 <= debounce.at_ms < INSTANT_MAX_MS and -1 <= debounce.offset < INSTANT_MAX_MS):
        return "at_ms and offset of a debounced start are those of a record"
    return None


def _entity(record: InRecord, key: str) -> EntityCommand | Unreadable:
    try:
        body: Any = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError as error:
        return Unreadable("unreadable", f"a command of an entity is JSON: {error}")
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        return Unreadable("unreadable", "a command of an entity is an object with a `type`")
    return EntityCommand(key, body["type"], body, _traceparent(record))


def _traceparent(record: InRecord) -> str | None:
    for name, value in record.headers:
        if name == TRACEPARENT:
            return value.decode(errors="replace")
    return None
