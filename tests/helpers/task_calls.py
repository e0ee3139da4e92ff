"""Runs one attempt of a built-in task type, as an executor would, without an executor."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.adapters.expressions import CelExpressions
from app.adapters.producer import ProducerLimits
from app.adapters.tasks.protocol import AsyncTaskType, SyncTaskType, TaskCall, TaskFailed, kind_of
from app.adapters.tasks.registry import Registry
from app.adapters.tasks.resources import Resources
from config.kafka import KafkaSettings
from config.tasks import TasksSettings
from tests.helpers.sinks import FixedClock

NOBODY = "127.0.0.1:1"


class Tasks:
    """Task types with resources of their own."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.registry = Registry()

    async def run(
        self,
        type_: str,
        rows: Sequence[Any] = (),
        *,
        effect: str = "execution-1/task",
        context: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> Any:
        """The result of one attempt; raises what it raises."""
        task_type = self.registry.get(type_)
        model = task_type.params_model.model_validate(params)
        check = getattr(task_type, "check", None)
        if check is not None:
            check(model, self.resources)
        call = TaskCall(
            params=model, rows=rows, context=context or {}, idempotency_key=effect, resources=self.resources
        )
        if kind_of(task_type, model) == "async":
            assert isinstance(task_type, AsyncTaskType)
            return await task_type.run(call)
        assert isinstance(task_type, SyncTaskType)
        return await asyncio.to_thread(task_type.run_sync, call)

    async def failure(self, type_: str, rows: Sequence[Any] = (), **params: Any) -> TaskFailed:
        """The failure that an attempt ends with."""
        try:
            result = await self.run(type_, rows, **params)
        except TaskFailed as failed:
            return failed
        raise AssertionError(f"it gave {result!r:.200}")


@asynccontextmanager
async def tasks(folder: Path, bootstrap: str = NOBODY, **settings: Any) -> AsyncIterator[Tasks]:
    """Task types whose files lie in `folder`, closed at the end."""
    clock = FixedClock()
    confined: dict[str, Any] = {"files_directory": str(folder), "sqlite_paths": [str(folder)]}
    resources = Resources(
        TasksSettings(**{**confined, "allow_private_addresses": True, **settings}),
        KafkaSettings(bootstrap_servers=bootstrap),
        ProducerLimits(bootstrap_servers=bootstrap, flush_interval_ms=0, start_timeout_s=5, request_timeout_ms=3_000),
        CelExpressions(),
        clock,
    )
    try:
        yield Tasks(resources)
    finally:
        await resources.close()
