"""The start of an execution as the engine wants it: concurrency key, placement, and the record that carries it."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from app.domain.workflow.commands import Debounce, Start
from app.domain.workflow.definition import Workflow
from app.domain.workflow.expressions import ExpressionError, Expressions
from app.domain.workflow.placement import partition_of, placed
from app.ports import OutRecord
from app.workflow_wire import EXECUTION_ID_LENGTH, encode_command
from config.topics import WORKFLOW_COMMANDS

_SEPARATOR: Final = "\x1f"


def key_text(value: Any) -> str:
    """The value of a concurrency key as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str).decode()


def start_of(
    workflow: Workflow,
    execution_id: str,
    given: Any,
    trigger: Mapping[str, Any],
    expressions: Expressions,
    partitions: int,
    *,
    at_ms: int,
    key: str | None = None,
    notify: str | None = None,
    debounce: Debounce | None = None,
    concurrency: int | None = None,
    traceparent: str | None = None,
) -> Start:
    """A start with its concurrency key (`key` goes before the definition's expression) and a placed id.

    What is limited by key or debounced lives on one partition; where both are, the concurrency key decides, so that
    a debounce is exact when its key determines that one. `concurrency` limits the executions of `key` where the
    definition limits nothing itself, and is told in the trigger. Raises `ExpressionError` for an input without a key,
    or an id that is too long.
    """
    if key is None and workflow.concurrency is not None and workflow.concurrency.key is not None:
        key = key_text(expressions.evaluate(workflow.concurrency.key, {"input": given, "trigger": trigger}))
    if workflow.concurrency is not None or workflow.rate is not None:
        concurrency = None
    if workflow.concurrency is not None or workflow.rate is not None or concurrency is not None:
        execution_id = placed(execution_id, f"{workflow.id}{_SEPARATOR}{key or ''}", partitions)
    elif debounce is not None:
        execution_id = placed(execution_id, f"{workflow.id}{_SEPARATOR}{debounce.key}", partitions)
    if len(execution_id) > EXECUTION_ID_LENGTH:
        raise ExpressionError(f"The execution id would have {len(execution_id)} characters, {execution_id[:60]}….")
    return Start(
        execution_id=execution_id,
        workflow=workflow.id,
        version=workflow.version,
        input=given,
        key=key,
        priority=workflow.priority,
        at_ms=at_ms,
        trigger=trigger if concurrency is None else {**trigger, "concurrency": concurrency},
        notify=notify,
        debounce=debounce,
        traceparent=traceparent,
    )


def start_record(start: Start, partitions: int, now_ms: int) -> OutRecord:
    """The record of `workflow.commands` that asks for it."""
    headers = () if start.traceparent is None else (("traceparent", start.traceparent.encode()),)
    return OutRecord(
        WORKFLOW_COMMANDS.name,
        start.execution_id.encode(),
        encode_command(start),
        now_ms,
        headers,
        partition_of(start.execution_id, partitions),
    )
