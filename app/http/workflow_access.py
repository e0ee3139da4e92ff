"""What the routes of workflows and executions work with."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import HTTPException

from app.adapters.execution_reader import Row
from app.domain.workflow.commands import Command
from app.domain.workflow.definition import Workflow
from app.domain.workflow.placement import partition_of
from app.errors import BrokerUnavailable
from app.http.execution_ids import is_execution_id
from app.http.execution_index import ExecutionIndex
from app.http.start import Starter
from app.ports import OutRecord
from app.workflow_wire import encode_command
from config.http import HttpSettings
from config.topics import WORKFLOW_COMMANDS


@dataclass(slots=True)
class Access:
    """Shared by all routes; `starter` holds the way to Kafka and the definitions."""

    settings: HttpSettings
    starter: Starter
    index: ExecutionIndex

    def limit(self, asked: int | None) -> int:
        """Items of a page."""
        return min(asked or self.settings.page_size, self.settings.page_size_max)

    async def row(self, execution_id: str) -> Row:
        """An execution. Raises HTTP 404, or `Unavailable` (503) when it may only not have been read yet."""
        found = await self.index.row(execution_id)
        if found is None:
            raise missing(execution_id)
        return found

    def workflow(self, row: Row) -> Workflow | None:
        """The definition of an execution, when it is known here."""
        definitions = self.starter.definitions
        return None if definitions is None else definitions.get(row.workflow, row.version)

    async def tell(self, commands: Sequence[Command]) -> None:
        """Return when every command is durable. Raises `Unavailable` or `PublishFailed`, both answered 503."""
        publisher, timeout_s = self.starter.publisher, self.settings.starts.acknowledge_timeout_s
        if publisher is None:
            raise BrokerUnavailable("The broker has not been reached yet.")
        at_ms = self.starter.now_ms()
        try:
            async with asyncio.timeout(timeout_s):
                partitions = await publisher.partitions(WORKFLOW_COMMANDS.name)
                await publisher.publish([_record(command, partitions, at_ms) for command in commands])
        except TimeoutError as error:
            raise BrokerUnavailable(f"The broker has not acknowledged within {timeout_s:g} s.") from error


def missing(execution_id: str) -> HTTPException:
    """404, or 400 for what can be no id."""
    if is_execution_id(execution_id):
        return HTTPException(404, f"No execution {execution_id} is known.")
    return HTTPException(400, "An execution's id is letters, digits, dots, dashes, colons and underscores.")


def command_id(idempotency_key: str | None) -> str:
    """The caller's own, so that a repeat of the order has no effect; else a new one."""
    return idempotency_key or str(uuid.uuid4())


def _record(command: Command, partitions: int, at_ms: int) -> OutRecord:
    execution_id = command.execution_id
    return OutRecord(
        WORKFLOW_COMMANDS.name,
        execution_id.encode(),
        encode_command(command),
        at_ms,
        (),
        partition_of(execution_id, partitions),
    )
