"""Laws of tasks that do their worst: each attempt fails with its cause, once, and the next one is carried out."""

import functools
import gc
from collections.abc import Iterator
from typing import Any

import orjson
import psutil
import pytest

from app.adapters.tasks.executor import Executor, ExecutorLimits
from app.adapters.tasks.processes import ProcessLimits
from app.domain.workflow.commands import Report
from app.workflow_wire import encode_command
from tests.helpers.task_types import Hanging, Reports, eventually, executor, order, run

ONE = ProcessLimits(processes=1, memory_bytes=1 << 30)
QUICK = ExecutorLimits(cancel_grace_s=0.1)
ALL_KINDS = ("test.async", "test.blocking", "test.process")


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    Hanging.released.clear()
    yield
    Hanging.released.set()


async def failed(running: Executor, kind: str, do: str, value: Any = None, **more: Any) -> Report:
    """A failed attempt that fits a record of the history, and after which another one is carried out."""
    report = await run(running, order(kind, do, value, **more))
    assert report.error is not None, report.result
    assert len(encode_command(report)) < 20_000
    orjson.dumps(report.error.message)
    assert (await run(running, order(kind, value="alive"))).result == "alive"
    return report


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("do", "value", "type_"),
    [
        ("raise at length", None, "ValueError"),
        ("fail at length", None, "x" * 100),
        ("raise the unsayable", None, "Unsayable"),
        ("recurse", None, "RecursionError"),
        ("end a generator", None, "GeneratorExit"),
        ("raise a group", None, "BaseExceptionGroup"),
        ("interrupt", None, "KeyboardInterrupt"),
        ("system exit", 0, "SystemExit"),
        ("not a number", "nan", "ResultNotSerialisable"),
        ("not a number", "-inf", "ResultNotSerialisable"),
        ("huge", None, "ResultNotSerialisable"),
        ("surrogate", None, "ResultNotSerialisable"),
        ("deep", None, "ResultNotSerialisable"),
        ("cyclic", None, "ResultNotSerialisable"),
        ("generator", None, "ResultNotSerialisable"),
        ("large", 600_000, "ResultTooLarge"),
        ("large", 60_000_000, "ResultTooLarge"),
    ],
)
async def test_failure_has_its_cause_wherever_it_runs(kind: str, do: str, value: Any, type_: str) -> None:
    async with executor(QUICK, ONE) as running:
        report = await failed(running, kind, do, value)
    assert report.error is not None
    assert report.error.type == type_


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_stop_of_an_iteration_is_a_failure_and_no_result(kind: str) -> None:
    async with executor(QUICK, ONE) as running:
        report = await failed(running, kind, "raise a stop")
    assert report.error is not None
    assert report.error.type == ("RuntimeError" if kind == "test.async" else "StopIteration")


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited:RuntimeWarning")
async def test_coroutine_that_nobody_awaited_is_no_result(kind: str) -> None:
    async with executor(QUICK, ONE) as running:
        report = await failed(running, kind, "never awaited")
    gc.collect()
    assert report.error is not None
    assert "coroutine" in report.error.message


@pytest.mark.parametrize(
    ("do", "how"),
    [("overflow the stack", "signal"), ("close everything", "pid")],
)
async def test_process_that_breaks_itself_is_told_and_replaced(do: str, how: str) -> None:
    async with executor(QUICK, ONE) as running:
        report = await failed(running, "test.process", do)
    assert report.error is not None
    assert (report.error.type, report.error.retryable) == ("ProcessDied", True)
    assert how in report.error.detail


async def test_flood_of_output_ends_no_task_and_fills_no_memory() -> None:
    async with executor(QUICK, ONE) as running:
        before = psutil.Process().memory_info().rss
        assert (await run(running, order("test.process", "flood"))).result == "flooded"
        assert psutil.Process().memory_info().rss - before < 30 << 20


async def test_task_that_comes_back_twice_answers_once() -> None:
    async with executor(QUICK, ONE) as running:
        reports = Reports()
        assert running.submit(order("test.process", "come back twice", heartbeat_s=60), reports)
        (report,) = await reports.wait_for(1)
        assert (report.result, reports.heartbeats) == ("once", [])
        for number in range(3):
            assert (await run(running, order("test.process", value=number))).result == number


async def test_what_a_task_leaves_behind_ends_with_it_and_the_next_task_is_not_hit() -> None:
    async with executor(QUICK, ONE) as running:
        reports = Reports()
        for number in range(3):
            assert running.submit(order("test.process", "leave a child", task=f"t{number}"), reports)
        await reports.wait_for(3)
        assert [report.error for report in reports.reports] == [None] * 3
        for report in reports.reports:
            await eventually(functools.partial(_has_ended, report.result))


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_others_go_on_while_all_of_this_happens() -> None:
    async with executor(ExecutorLimits(cancel_grace_s=0.1), ProcessLimits(processes=2)) as running:
        worst, others = Reports(), Reports()
        for do in ("hang", "stubborn"):
            assert running.submit(order("test.async", do, timeout_s=0.3), worst)
        for do, value in (("exit", 1), ("segfault", None), ("large", 600_000)):
            assert running.submit(order("test.process", do, value), worst)
        for number in range(20):
            assert running.submit(order("test.async", value=number), others)
            assert running.submit(order("test.blocking", value=number), others)
        await others.wait_for(40)
        assert all(report.error is None for report in others.reports)
        found = {report.task.split("/")[1]: report.error for report in await worst.wait_for(5)}
        assert {do: error and error.type for do, error in found.items()} == {
            "hang": "Timeout",
            "stubborn": "Timeout",
            "exit": "ProcessDied",
            "segfault": "ProcessDied",
            "large": "ResultTooLarge",
        }
        Hanging.released.set()
        await eventually(lambda: running.abandoned == 0)
