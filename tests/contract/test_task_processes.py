"""Laws of task processes, with real ones: what dies is told precisely and replaced, what hangs is killed."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import psutil
import pytest

from app.adapters.tasks.executor import ExecutorLimits
from app.adapters.tasks.processes import ProcessLimits, ProcessNotStarted, ProcessPool
from tests.helpers.task_types import Reports, eventually, executor, order, run

ONE = ProcessLimits(processes=1)
QUICK = ExecutorLimits(cancel_grace_s=0.1, heartbeat_interval_s=0.0)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have waited for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_processes_are_reused_and_not_ours() -> None:
    async with executor(processes=ONE) as running:
        pids = {(await run(running, order("test.process", "pid"))).result for _ in range(3)}
        assert len(pids) == 1
        assert pids != {os.getpid()}
        assert (await run(running, order("test.process", value={"a": (1, None)}))).result == {"a": [1, None]}


@pytest.mark.parametrize(
    ("do", "value", "told"),
    [
        ("exit", 3, {"exit_code": 3}),
        ("exit", 0, {"exit_code": 0}),
        ("kill", None, {"signal": "SIGKILL"}),
        ("segfault", None, {"signal": "SIGSEGV"}),
    ],
)
async def test_process_that_dies_fails_its_attempt_precisely_and_is_replaced(do: str, value: Any, told: Any) -> None:
    async with executor(processes=ONE) as running:
        report = await run(running, order("test.process", do, value))
        assert report.error is not None
        assert (report.error.type, report.error.retryable) == ("ProcessDied", True)
        assert told.items() <= report.error.detail.items()
        assert (await run(running, order("test.process", value="alive"))).result == "alive"


@pytest.mark.parametrize(
    ("do", "value", "type_"),
    [
        ("raise", "broken", "ValueError"),
        ("raise the unsayable", None, "Unsayable"),
        ("fail", "it", "Refused"),
        ("system exit", 3, "SystemExit"),
        ("interrupt", None, "KeyboardInterrupt"),
        ("memory", None, "MemoryError"),
        ("not json", None, "ResultNotSerialisable"),
        ("large", 600_000, "ResultTooLarge"),
    ],
)
async def test_failure_in_a_process_says_what_it_was(do: str, value: Any, type_: str) -> None:
    async with executor(processes=ONE) as running:
        report = await run(running, order("test.process", do, value))
    assert report.error is not None
    assert report.error.type == type_


async def test_answer_longer_than_a_frame_is_refused_in_the_process() -> None:
    async with executor(processes=replace(ONE, frame_bytes=1_000)) as running:
        report = await run(running, order("test.process", "large", 2_000))
        assert report.error is not None
        assert report.error.detail == {"bytes": 2_002, "limit_bytes": 1_000}


async def test_hanging_task_is_killed_at_its_timeout(tmp_path: Path) -> None:
    async with executor(QUICK, ONE) as running:
        pid = (await run(running, order("test.process", "pid"))).result
        report = await run(running, order("test.process", "hang", str(tmp_path / "pid"), timeout_s=0.2))
        assert report.error is not None
        assert report.error.type == "Timeout"
        await eventually(lambda: not psutil.pid_exists(pid))
        assert (await run(running, order("test.process", value=1))).result == 1


async def test_cancelled_task_is_asked_first_and_killed_when_it_does_not_heed(tmp_path: Path) -> None:
    heeding, hanging = tmp_path / "heeding", tmp_path / "hanging"
    async with executor(ExecutorLimits(cancel_grace_s=20), ONE) as running:
        reports = Reports()
        assert running.submit(order("test.process", "until cancelled", str(heeding)), reports)
        await eventually(lambda: heeding.exists() and heeding.read_text() == "running")
        running.cancel("e-1")
        await eventually(lambda: heeding.read_text() == "heeded")
        await eventually(lambda: running.free == running.limits.concurrency)
        assert running.processes.started == 1
    async with executor(QUICK, ONE) as running:
        assert running.submit(order("test.process", "hang", str(hanging)), reports)
        pid = int(await eventually(lambda: hanging.exists() and hanging.read_text()))
        running.cancel("e-1")
        await eventually(lambda: not psutil.pid_exists(pid))
        assert (await run(running, order("test.process", value=1))).result == 1
    assert reports.reports == []


async def test_what_a_task_started_ends_too_when_its_process_ends_before_its_connection() -> None:
    pool = ProcessPool(replace(ONE, module="tests.helpers.task_child"))
    job = {"type": "test.process", "given": {"do": "leave a child"}, "rows": [], "context": {}}
    try:
        async with pool.process() as process:
            call = {**job, "idempotency_key": "e/t", "attempt": 1, "deadline_ms": None}
            left = psutil.Process(orjson.loads((await process.run(orjson.dumps(call), None)).content))
            assert process._socket is not None
            cast(asyncio.ReadTransport, process._socket).pause_reading()
            os.kill(process.pid, signal.SIGKILL)
            await eventually(lambda: is_gone(left.pid))
    finally:
        await pool.close()


async def test_closing_kills_what_runs(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    reports = Reports()
    async with executor(QUICK, ONE) as running:
        assert running.submit(order("test.process", "hang", str(told)), reports)
        pid = int(await eventually(lambda: told.exists() and told.read_text()))
    assert not psutil.pid_exists(pid)
    assert reports.reports == []


async def test_printing_disturbs_nothing_and_heartbeats_come_through() -> None:
    async with executor(QUICK, ONE) as running:
        assert (await run(running, order("test.process", "print"))).result == "printed"
        reports = Reports()
        assert running.submit(order("test.process", "beat", heartbeat_s=60), reports)
        (report,) = await reports.wait_for(1)
        assert (report.result, len(reports.heartbeats)) == ("beaten", 3)


async def test_process_is_replaced_after_its_share_of_tasks() -> None:
    async with executor(processes=replace(ONE, tasks_each=2)) as running:
        pids = [(await run(running, order("test.process", "pid"))).result for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_only_named_variables_of_the_environment_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("SHOWN", "yes")
    async with executor(processes=replace(ONE, environment=("SHOWN",))) as running:
        seen = (await run(running, order("test.process", "environment"))).result
    assert "SHOWN" in seen
    assert "HEADRACE_SECRET_TOKEN" not in seen


async def test_process_that_cannot_start_is_a_failure_and_no_hang() -> None:
    pool = ProcessPool(replace(ONE, module="tests.helpers.no_such_module"))
    with pytest.raises(ProcessNotStarted, match="no_such_module"):
        async with pool.process():
            pass
    await pool.close()
    assert pool.pids == ()


async def test_process_that_a_given_up_job_waited_for_serves_the_next_one() -> None:
    """Else a queue of jobs with less time left than a start takes would carry out nothing, for ever."""
    pool = ProcessPool(replace(ONE, module="tests.helpers.task_child"))
    given_up = served = 0
    while not served:
        assert given_up < 10_000
        try:
            async with asyncio.timeout(0.02), pool.process() as process:
                served = process.pid
        except TimeoutError:
            given_up += 1
    assert given_up > 0
    assert pool.started == 1
    assert pool.pids == (served,)
    await pool.close()
    assert is_gone(served)


async def test_closing_ends_a_process_whose_job_was_given_up_while_it_started() -> None:
    pool = ProcessPool(replace(ONE, module="tests.helpers.task_child"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02), pool.process():
            pass
    (pid,) = pool.pids
    await pool.close()
    assert is_gone(pid)
    assert pool.pids == ()


async def test_start_that_failed_for_a_given_up_job_does_not_fail_the_next() -> None:
    pool = ProcessPool(replace(ONE, module="tests.helpers.no_such_module"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001), pool.process():
            pass
    await eventually(pool._unclaimed[0].done)
    pool.limits = replace(ONE, module="tests.helpers.task_child")
    async with pool.process() as process:
        assert process.alive
    await pool.close()


async def test_computing_in_processes_leaves_the_loop_free() -> None:
    """A task that computes for a second on the loop would hold up every other turn of it."""
    async with executor(processes=ONE) as running:
        await run(running, order("test.process", "pid"))
        reports = Reports()
        assert running.submit(order("test.process", "compute", 1.0), reports)
        lags: list[float] = []
        while not reports.reports:
            before_s = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - before_s - 0.005)
        assert reports.reports[0].result == "computed"
    # The median, for on a busy machine a single turn may be late for reasons of its own.
    assert sorted(lags)[len(lags) // 2] < 0.1
    assert len(lags) > 5
