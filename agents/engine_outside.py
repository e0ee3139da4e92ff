"""Records that an engine sends to others: commands for other executions and entities, and dead letters."""

import base64
from typing import Any

import orjson

from agents.engine_entities import ENTITY_TOLD
from agents.engine_terms import Node
from app.domain.workflow.commands import Cancel, ChildEnded, Command, Parent, Start, TaskError
from app.domain.workflow.definition import Workflow
from app.domain.workflow.effects import Ended, StartChild
from app.domain.workflow.expressions import ExpressionError
from app.domain.workflow.placement import partition_of, placed
from app.domain.workflow.spans import below_attempt
from app.domain.workflow.state import Execution
from app.ports import InRecord, OutRecord
from app.workflow_starts import key_text
from app.workflow_wire import encode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER

# Of the value of a refused command, what its dead letter keeps.
KEEP_BYTES = 524_288
# What a command is beyond its payload: names, ids, the trigger.
OVERHEAD_BYTES = 16_384


class Outside:
    """Makes the records of one partition's engine."""

    def __init__(self, node: Node, partition: int) -> None:
        self._node = node
        self._partition = partition

    # ---- commands ----

    def command(self, command: Command, now_ms: int, traceparent: str | None = None) -> OutRecord:
        """A command on the partition of its execution."""
        key = command.execution_id
        headers = () if traceparent is None else (("traceparent", traceparent.encode()),)
        partition = partition_of(key, self._node.partitions)
        return OutRecord(WORKFLOW_COMMANDS.name, key.encode(), encode_command(command), now_ms, headers, partition)

    def place(self, child_id: str, workflow: str, version: str | None, given: Any) -> str:
        """The id of a sub-workflow's execution: beside its parent, unless a limit of its own counts elsewhere."""
        definition = self._definition(workflow, version)
        if definition is None or (definition.concurrency is None and definition.rate is None):
            return f"{child_id}-p{self._partition}"
        try:
            key = self._key(definition, given)
        except ExpressionError:
            return f"{child_id}-p{self._partition}"  # `start_child` says why it cannot be started
        return placed(child_id, f"{workflow}\x1f{key or ''}", self._node.partitions)

    def start_child(self, effect: StartChild, state: Execution, now_ms: int) -> OutRecord:
        """The start of a sub-workflow; one that cannot have a key is answered at once."""
        definition = self._definition(effect.workflow, effect.version)
        try:
            key = None if definition is None else self._key(definition, effect.input)
        except ExpressionError as error:
            failure = TaskError(type="Expression", message=f"`concurrency.key` of {effect.workflow!r}: {error}")
            return self.command(child_ended(effect.parent, effect.child_id, "failed", None, failure), now_ms)
        traceparent = state.traceparent
        if self._node.tracing is not None:
            work = state.find(effect.parent.task, effect.parent.item)
            assert work is not None, "a child is an attempt of its parent"
            traceparent = below_attempt(traceparent, state.execution_id, work.token)
        start = Start(
            execution_id=effect.child_id,
            workflow=effect.workflow,
            version=definition.version if definition is not None else effect.version or "",
            input=effect.input,
            key=key,
            priority=definition.priority if definition is not None else state.priority,
            at_ms=now_ms,
            trigger={"kind": "workflow", "execution_id": state.execution_id, "task": effect.parent.task},
            parent=effect.parent,
            traceparent=traceparent,
        )
        record = self.command(start, now_ms, traceparent)
        limit = self._node.terms().limits.input_bytes
        if len(record.value or b"") > limit + OVERHEAD_BYTES:
            failure = TaskError(type="PayloadTooLarge", message=f"the input is over {limit} bytes", retryable=False)
            return self.command(child_ended(effect.parent, effect.child_id, "skipped", None, failure), now_ms)
        return record

    def cancel_child(self, child_id: str, now_ms: int) -> OutRecord:
        """Nobody waits for a sub-workflow any more."""
        cancel = Cancel(execution_id=child_id, command_id=f"{child_id}/parent", reason="its parent no longer waits")
        return self.command(cancel, now_ms)

    def told(self, state: Execution, ended: Ended, now_ms: int) -> list[OutRecord]:
        """What others are told of an end: a parent, an entity, the dead letters."""
        records = self.answers(state, ended, now_ms)
        if ended.status in {"failed", "timed_out"}:
            records.append(self._dead_execution(state, ended, now_ms))
        return records

    def answers(self, state: Execution, ended: Ended, now_ms: int) -> list[OutRecord]:
        """What those are told who wait for an end."""
        records = []
        if ended.parent is not None:
            answer = child_ended(ended.parent, state.execution_id, ended.status, ended.result, ended.error)
            records.append(self.command(answer, now_ms, state.traceparent))
        if ended.notify is not None:
            records.append(self._entity_told(state, ended, now_ms))
        return records

    def _definition(self, workflow: str, version: str | None) -> Workflow | None:
        graph = self._node.graphs.get(workflow, version or "")
        return None if graph is None else graph.workflow

    def _key(self, definition: Workflow, given: Any) -> str | None:
        concurrency = definition.concurrency
        if concurrency is None or concurrency.key is None:
            return None
        return key_text(self._node.expressions.evaluate(concurrency.key, {"input": given, "trigger": {}}))

    def _entity_told(self, state: Execution, ended: Ended, now_ms: int) -> OutRecord:
        entity = ended.notify or ""
        body = {
            "type": ENTITY_TOLD,
            "entity_id": entity,
            "execution_id": state.execution_id,
            "workflow": state.workflow,
            "status": ended.status,
            "at_ms": state.at,
        }
        partition = partition_of(entity, self._node.partitions)
        return OutRecord(WORKFLOW_COMMANDS.name, entity.encode(), orjson.dumps(body), now_ms, (), partition)

    # ---- dead letters ----

    def _dead_execution(self, state: Execution, ended: Ended, now_ms: int) -> OutRecord:
        error = ended.error
        body = {
            "kind": "execution",
            "execution_id": state.execution_id,
            "workflow": state.workflow,
            "version": state.version,
            "status": ended.status,
            "task": ended.task,
            "error": None if error is None else {"type": error.type, "message": error.message},
            "at": state.at,
        }
        return OutRecord(WORKFLOW_DEADLETTER.name, state.execution_id.encode(), orjson.dumps(body), now_ms)

    def dead_command(self, record: InRecord, reason: str, detail: str, now_ms: int) -> OutRecord:
        """A record of `workflow.commands` that is not obeyed."""
        value = record.value or b""
        body = {
            "kind": "command",
            "reason": reason,
            "detail": detail,
            "value": base64.b64encode(value[:KEEP_BYTES]).decode(),
            "value_bytes": len(value),
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "at": now_ms,
        }
        return OutRecord(WORKFLOW_DEADLETTER.name, record.key, orjson.dumps(body), now_ms)


def child_ended(parent: Parent, child_id: str, status: str, result: Any, error: TaskError | None) -> ChildEnded:
    """What a parent is told."""
    return ChildEnded(
        execution_id=parent.execution_id,
        task=parent.task,
        item=parent.item,
        attempt=parent.attempt,
        child_id=child_id,
        status=status,
        result=result,
        error=error,
    )
