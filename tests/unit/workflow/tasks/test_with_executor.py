"""Built-in task types in the executor that runs them in production: orders in, reports out."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.adapters.clock import SystemClock
from app.adapters.expressions import CelExpressions
from app.adapters.producer import ProducerLimits
from app.adapters.tasks.build import new_executor
from app.adapters.tasks.executor import Executor
from app.domain.workflow.commands import Heartbeat, Report
from app.domain.workflow.orders import TaskOrder
from config.settings import Settings
from config.tasks import TasksSettings

DEADLINE_S = 60.0
NUMBERS = itertools.count()


@pytest.fixture
async def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Executor]:
    monkeypatch.setenv("HEADRACE_SECRET_DB", f"sqlite:///{tmp_path / 's3cret.db'}")
    monkeypatch.setenv("HEADRACE_SECRET_TOKEN", "s3cret-token")
    tasks = TasksSettings(
        files_directory=str(tmp_path), sqlite_paths=(str(tmp_path),), payload_directory=str(tmp_path / "payloads")
    )
    settings = Settings(tasks=tasks)
    made = new_executor(settings, CelExpressions(), SystemClock(), ProducerLimits("127.0.0.1:1"))
    try:
        yield made
    finally:
        await made.close()


async def report_of(
    executor: Executor, type_: str, params: Mapping[str, Any], needs: Mapping[str, Any] | None = None, **more: Any
) -> Report:
    ended: asyncio.Future[Report] = asyncio.get_running_loop().create_future()

    def hear(told: Report | Heartbeat) -> None:
        if isinstance(told, Report):
            ended.set_result(told)

    context = {
        "input": {"limit": 2, "text": "${secret:db}"},
        "needs": needs or {},
        "trigger": {},
        "execution": {"id": "e1"},
    }
    order = TaskOrder(
        execution_id="e1", workflow="w", version="v", task=f"t{next(NUMBERS)}", item=None, attempt=1, token=1,
        type=type_, params=params, context=context,
    )  # fmt: skip
    assert executor.submit(order, hear)
    async with asyncio.timeout(DEADLINE_S):
        return await ended


async def test_rows_flow_from_task_to_task(executor: Executor, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,v\n1,1\n2,2\n3,3\n")
    read = await report_of(executor, "source.file", {"path": "r.csv", "numbers": True})
    kept = await report_of(executor, "transform.cel", {"filter": "row.v >= input.limit"}, {"read": read.result})
    assert kept.result == [{"id": 2, "v": 2}, {"id": 3, "v": 3}]
    sink = {"url": "${secret:db}", "table": "kept", "key": ["id"], "create": True, "from": "rows.kept"}
    stored = await report_of(executor, "sink.sql", sink, {"rows": {"kept": kept.result}})
    assert stored.result == {"table": "kept", "rows": 2, "repeated": False}
    query = {"url": "${secret:db}", "query": "select count(*) as n from kept where v > :limit"}
    assert (await report_of(executor, "source.sql", query)).result == [{"n": 1}]


async def test_a_function_runs_in_a_process(executor: Executor) -> None:
    rows = [{"at": n, "value": 2 * n + 1} for n in range(5)]
    params = {"function": "app.examples.transforms:trend"}
    done = await report_of(executor, "transform.python", params, {"read": rows})
    assert done.result == {"slope": 2.0, "intercept": 1.0, "count": 5}


async def test_no_function_outside_of_the_allowed_modules_runs_anywhere(executor: Executor) -> None:
    for mode in ("auto", "process", "thread", "async"):
        told = await report_of(executor, "transform.python", {"function": "os:getcwd", "mode": mode})
        assert told.error is not None
        assert (told.error.type, told.error.retryable) == ("FunctionRefused", False)


async def test_an_error_does_not_tell_the_secret(executor: Executor) -> None:
    told = await report_of(executor, "source.file", {"path": "${secret:token}.json"})
    assert told.error is not None
    assert "s3cret" not in repr(told.error)
    told = await report_of(executor, "source.file", {"path": "${input.text}.json"})
    assert told.error is not None
    assert "s3cret" not in repr(told.error)


async def test_no_value_is_pasted_into_a_query_even_of_a_definition_that_nobody_checked(executor: Executor) -> None:
    query = {"url": "${secret:db}", "query": "select '${input.text}' as pasted"}
    told = await report_of(executor, "source.sql", query)
    assert told.error is not None
    assert (told.error.type, told.error.retryable) == ("InvalidParams", False)
