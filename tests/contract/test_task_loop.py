"""Laws of coroutines that hold up the event loop: ended where they stand, told precisely, and others go on."""

import asyncio
import signal
import time

import pytest

from app.adapters.tasks.executor import ExecutorLimits
from app.adapters.tasks.guard import SIGNAL
from tests.helpers.task_types import DEADLINE_S, Reports, executor, order, run

QUICK = ExecutorLimits(held_up_s=0.2, cancel_grace_s=0.1)


@pytest.mark.parametrize(
    ("do", "value"), [("block", DEADLINE_S), ("compute", None), ("block in a task of its own", DEADLINE_S)]
)
async def test_coroutine_that_holds_up_the_loop_has_failed_and_others_go_on(do: str, value: float | None) -> None:
    async with executor(QUICK) as running:
        others = Reports()
        assert running.submit(order("test.async", "sleep", 0.01), others)
        began_s = time.monotonic()
        report = await run(running, order("test.async", do, value))
        assert time.monotonic() - began_s < DEADLINE_S
        assert report.error is not None
        assert (report.error.type, report.error.retryable) == ("HeldUpLoop", True)
        assert "task_types.py" in str(report.error.detail)
        (other,) = await others.wait_for(1)
        assert other.error is None
        assert (await run(running, order("test.async", value=1))).result == 1
        assert running.free == running.limits.concurrency


async def test_task_that_catches_everything_is_ended_all_the_same() -> None:
    async with executor(QUICK) as running:
        report = await run(running, order("test.async", "swallow", DEADLINE_S))
    assert (report.result, report.error) == (None, None)


async def test_code_of_the_service_that_holds_up_the_loop_is_left_alone() -> None:
    async with executor(QUICK) as running:
        assert (await run(running, order("test.async", value=1))).result == 1
        time.sleep(0.6)  # noqa: ASYNC251 - on purpose
        assert (await run(running, order("test.async", value=2))).result == 2


async def test_many_short_tasks_that_keep_the_loop_busy_are_left_alone() -> None:
    async with executor(ExecutorLimits(held_up_s=0.1)) as running:
        reports = Reports()
        for number in range(60):
            assert running.submit(order("test.async", "block", 0.01, task=f"t{number}"), reports)
        await reports.wait_for(60)
    assert [report.error for report in reports.reports] == [None] * 60


async def test_guard_ends_with_the_last_executor_of_its_loop() -> None:
    before = signal.getsignal(SIGNAL)
    async with executor(QUICK):
        async with executor(QUICK):
            assert signal.getsignal(SIGNAL) != before
        assert signal.getsignal(SIGNAL) != before
    assert signal.getsignal(SIGNAL) == before
    await asyncio.sleep(0)
