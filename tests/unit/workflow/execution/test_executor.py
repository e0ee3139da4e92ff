"""Laws of the executor on the loop and in threads: each attempt is reported once, whatever the task does."""

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.adapters.tasks.executor import ExecutorLimits
from app.adapters.tasks.payload import PAYLOAD, Payloads
from tests.helpers.task_types import Hanging, Reports, eventually, executor, order, run

QUICK = ExecutorLimits(cancel_grace_s=0.05, heartbeat_interval_s=0.0)
KINDS = ("test.async", "test.blocking")


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    Hanging.released.clear()
    Hanging.entered.clear()
    yield
    Hanging.released.set()


@pytest.mark.parametrize("kind", KINDS)
async def test_result_is_reported_with_the_attempts_names(kind: str) -> None:
    async with executor(ExecutorLimits(worker="here")) as running:
        report = await run(running, order(kind, value={"a": (1, 2)}, item=3, attempt=2, token=9))
    assert (report.result, report.error) == ({"a": [1, 2]}, None)
    assert (report.execution_id, report.item, report.attempt, report.token) == ("e-1", 3, 2, 9)
    assert report.worker == "here"
    assert report.started_ms > 0


@pytest.mark.parametrize("kind", KINDS)
async def test_result_is_a_copy_that_the_task_cannot_change_later(kind: str) -> None:
    value = {"list": [1]}
    async with executor() as running:
        report = await run(running, order(kind, value=value))
    value["list"].append(2)
    assert report.result == {"list": [1]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("do", "value", "type_", "retryable"),
    [
        ("raise", "broken", "ValueError", True),
        ("raise the unsayable", None, "Unsayable", True),
        ("fail", "it", "Refused", False),
        ("system exit", 3, "SystemExit", True),
        ("interrupt", None, "KeyboardInterrupt", True),
        ("not json", None, "ResultNotSerialisable", False),
        ("cyclic", None, "ResultNotSerialisable", False),
        ("large", 600_000, "ResultTooLarge", False),
        ("long", 100_000, "ResultTooLarge", False),
    ],
)
async def test_failure_says_what_it_was(kind: str, do: str, value: Any, type_: str, retryable: bool) -> None:
    async with executor() as running:
        report = await run(running, order(kind, do, value))
        assert (await run(running, order(kind, value="alive"))).result == "alive"
        assert running.free == running.limits.concurrency
    assert report.error is not None
    assert (report.error.type, report.error.retryable) == (type_, retryable)
    assert report.result is None


@pytest.mark.parametrize(
    ("kind", "do", "value"),
    [
        ("test.async", "echo", 1),
        ("test.async", "raise", "broken"),
        ("test.async", "fail", "it"),
        ("test.async", "cancel itself", None),
        ("test.blocking", "echo", 1),
    ],
)
async def test_attempt_that_has_ended_leaves_nothing_to_the_collector(kind: str, do: str, value: Any) -> None:
    def known() -> int:
        return sum(type(each).__name__ == "_Run" for each in gc.get_objects())

    async with executor() as running:
        await run(running, order(kind, do, value))
        gc.collect()
        gc.disable()
        try:
            before = known()  # other tests may have left some that hang
            for _ in range(10):
                await run(running, order(kind, do, value))
            await asyncio.sleep(0)
            assert known() == before
        finally:
            gc.enable()


async def test_error_is_text_that_every_encoder_takes() -> None:
    async with executor() as running:
        report = await run(running, order("test.async", "fail badly", "x\ud800"))
    assert report.error is not None
    assert orjson.loads(orjson.dumps(asdict(report.error)))["type"] == "x?"


async def test_task_that_cancels_itself_has_failed() -> None:
    async with executor() as running:
        report = await run(running, order("test.async", "cancel itself"))
    assert report.error is not None
    assert report.error.type == "CancelledError"


@pytest.mark.parametrize(
    ("params", "type_"),
    [({"do": "echo", "other": 1}, "InvalidParams"), ({"do": "${input.nothing}"}, "KeyError")],
)
async def test_order_that_cannot_be_prepared_is_a_failed_attempt(params: dict[str, Any], type_: str) -> None:
    async with executor() as running:
        report = await run(running, order("test.async", params=params, context={"input": {}, "needs": {}}))
        unknown = await run(running, order("no.such"))
    assert report.error is not None
    assert report.error.type == type_
    assert unknown.error is not None
    assert (unknown.error.type, unknown.error.retryable) == ("UnknownTaskType", False)


# ---- what the task is given ----


@pytest.mark.parametrize(
    ("needs", "more", "rows"),
    [
        ({}, {}, []),
        ({"a": None}, {}, []),
        ({"a": [1, 2]}, {}, [1, 2]),
        ({"a": {"x": 1}}, {}, [{"x": 1}]),
        ({"a": 1, "b": [2]}, {}, [{"a": 1, "b": [2]}]),
        ({"a": 1, "b": [2]}, {"from": "b"}, [2]),
        ({"a": 1}, {"from": "${needs.a}"}, [1]),
        ({"a": 1}, {"from": [7, 8]}, [7, 8]),
    ],
)
async def test_rows_are_what_from_or_the_needs_say(needs: Any, more: Any, rows: list[Any]) -> None:
    async with executor() as running:
        ordered = order("test.async", params={"do": "rows", **more}, context={"input": None, "needs": needs})
        assert (await run(running, ordered)).result == rows


async def test_expressions_are_rendered_anew_for_each_attempt() -> None:
    async with executor() as running:
        for item in (1, 2):
            ordered = order("test.async", params={"value": "${item}"}, context={"item": item, "needs": {}})
            assert (await run(running, ordered)).result == item


async def test_secret_reaches_the_task_and_no_error() -> None:
    environ = {"HEADRACE_SECRET_TOKEN": "hunter2-very-secret"}
    reference = "${secret:TOKEN}"
    async with executor(environ=environ) as running:
        result = await run(running, order("test.async", params={"value": "Bearer " + reference}))
        assert result.result == "Bearer hunter2-very-secret"
        for kind in KINDS:
            for do in ("raise", "fail"):
                report = await run(running, order(kind, params={"do": do, "value": reference}))
                assert report.error is not None
                assert "hunter2" not in repr(report)
                assert report.error.message
        invalid = await run(running, order("test.async", params={"do": {"x": reference}}))
        assert invalid.error is not None
        assert invalid.error.type == "InvalidParams"
        assert "hunter2" not in repr(invalid)


async def test_input_that_looks_like_a_secret_stays_text() -> None:
    async with executor(environ={"HEADRACE_SECRET_TOKEN": "hunter2-very-secret"}) as running:
        context = {"input": {"text": "${secret:TOKEN}"}, "needs": {}}
        report = await run(running, order("test.async", params={"value": "${input.text}"}, context=context))
    assert report.result == "${secret:TOKEN}"


# ---- limits ----


async def test_more_than_the_slots_is_refused_and_nothing_begun() -> None:
    async with executor(ExecutorLimits(concurrency=2, cancel_grace_s=0.05)) as running:
        reports = Reports()
        assert running.submit(order("test.async", "hang"), reports)
        assert running.submit(order("test.async", "hang", execution_id="e-2"), reports)
        assert not running.submit(order("test.async"), reports)
        assert running.free == 0
        running.cancel("e-1")
        await eventually(lambda: running.free == 1)
        assert reports.reports == []


async def test_tasks_beyond_the_threads_wait_and_beyond_those_are_refused() -> None:
    async with executor(ExecutorLimits(threads=1, waiting=1, cancel_grace_s=0.05)) as running:
        reports = Reports()
        await run(running, order("test.blocking", value=0))
        assert running.submit(order("test.blocking", "hang"), reports)
        await asyncio.to_thread(Hanging.entered.wait, 60)
        waiting = order("test.blocking", value=0)
        assert running.submit(waiting, reports)
        assert not running.submit(waiting, reports)
        assert (await run(running, order("test.async", value=1))).result == 1
        Hanging.released.set()
        await reports.wait_for(2)


# ---- time-outs, heartbeats, cancel ----


@pytest.mark.parametrize("do", ["hang", "stubborn"])
async def test_coroutine_past_its_timeout_is_reported_and_its_slot_free(do: str) -> None:
    async with executor(QUICK) as running:
        report = await run(running, order("test.async", do, timeout_s=0.05))
        assert report.error is not None
        assert (report.error.type, report.error.retryable) == ("Timeout", True)
        assert running.free == running.limits.concurrency
        assert running.abandoned == (do == "stubborn")
        Hanging.released.set()
        await eventually(lambda: running.abandoned == 0)


async def test_thread_past_its_timeout_is_left_behind_and_counted_until_it_comes_back() -> None:
    async with executor(ExecutorLimits(threads=1, cancel_grace_s=0.05)) as running:
        report = await run(running, order("test.blocking", "hang", timeout_s=0.05))
        assert report.error is not None
        assert report.error.type == "Timeout"
        assert running.abandoned == 1
        assert (await run(running, order("test.blocking", "thread"))).result == "task-2"
        Hanging.released.set()
        await eventually(lambda: running.abandoned == 0)


async def test_with_too_many_threads_left_behind_blocking_tasks_fail_at_once_and_others_run() -> None:
    async with executor(ExecutorLimits(abandoned=0, cancel_grace_s=0.05)) as running:
        await run(running, order("test.blocking", "hang", timeout_s=0.05))
        report = await run(running, order("test.blocking"))
        assert report.error is not None
        assert (report.error.type, report.error.retryable) == ("TooManyAbandoned", True)
        assert (await run(running, order("test.async", value=1))).result == 1


async def test_attempt_past_the_engines_deadline_is_given_up() -> None:
    async with executor(QUICK) as running:
        report = await run(running, order("test.async", "hang", deadline_ms=1))
    assert report.error is not None
    assert report.error.type == "Timeout"


async def test_heartbeats_are_passed_on_and_silence_fails_the_attempt() -> None:
    async with executor(QUICK) as running:
        reports = Reports()
        assert running.submit(order("test.async", "beat", heartbeat_s=60), reports)
        await reports.wait_for(1)
        assert len(reports.heartbeats) == 5
        assert running.submit(order("test.async", "beat"), reports)
        await reports.wait_for(2)
        assert len(reports.heartbeats) == 5
        silent = await run(running, order("test.async", "hang", heartbeat_s=0.05))
        assert silent.error is not None
        assert silent.error.type == "HeartbeatTimeout"


async def test_heartbeats_come_no_more_often_than_allowed() -> None:
    async with executor(ExecutorLimits(heartbeat_interval_s=60)) as running:
        reports = Reports()
        assert running.submit(order("test.async", "beat", heartbeat_s=60), reports)
        await reports.wait_for(1)
        assert len(reports.heartbeats) == 1


async def test_cancelled_attempt_is_asked_to_stop_and_not_reported() -> None:
    async with executor(ExecutorLimits(cancel_grace_s=30)) as running:
        reports = Reports()
        assert running.submit(order("test.blocking", "wait to be cancelled"), reports)
        assert running.submit(order("test.async", "hang"), reports)
        await asyncio.to_thread(Hanging.entered.wait, 60)
        running.cancel("e-1")
        assert await asyncio.to_thread(Hanging.released.wait, 60)
        await eventually(lambda: running.free == running.limits.concurrency)
        assert (reports.reports, running.abandoned) == ([], 0)


async def test_cancel_reaches_only_the_item_that_is_meant() -> None:
    async with executor(QUICK) as running:
        reports = Reports()
        for item in (1, 2):
            assert running.submit(order("test.async", "hang", item=item), reports)
        running.cancel("e-1", "another task")
        running.cancel("e-1", None, 1)
        await eventually(lambda: running.free == running.limits.concurrency - 1)


async def test_close_ends_everything_and_reports_nothing() -> None:
    reports = Reports()
    async with executor(QUICK) as running:
        for do in ("hang", "stubborn"):
            assert running.submit(order("test.async", do), reports)
        assert running.submit(order("test.blocking", "hang"), reports)
    assert reports.reports == []
    assert not running.submit(order("test.async"), reports)
    Hanging.released.set()
    await eventually(lambda: running.abandoned == 0)


# ---- large results ----


async def test_large_result_becomes_a_file_and_is_read_for_the_task_that_needs_it(tmp_path: Path) -> None:
    payloads = Payloads(tmp_path, 3_600)
    limits = ExecutorLimits(claim_check=True, result_bytes=1_000, payload_bytes=100_000)
    async with executor(limits, payloads=payloads) as running:
        report = await run(running, order("test.async", "long", 500))
        assert set(report.result) == {PAYLOAD}
        for needs in ({"a": report.result}, {"a": [report.result, 1]}):
            context = {"input": None, "needs": needs}
            rows = await run(running, order("test.async", params={"do": "rows", "from": "a"}, context=context))
            assert rows.result == report.result or rows.result[PAYLOAD]["bytes"] > 1_000
        for name in ("ancestor", "item"):
            context = {"input": None, "trigger": None, "execution": {}, "needs": {}, name: report.result}
            params = {"do": "length", "value": f"${{{name}}}"}
            assert (await run(running, order("test.async", params=params, context=context))).result == 500, name
            rows = await run(running, order("test.async", params={"do": "rows", "from": name}, context=context))
            assert rows.result == report.result, name
        many = [report.result, *range(20_000)]
        count = await run(running, order("test.async", params={"do": "count"}, context={"needs": {"a": many}}))
        assert count.result == [20_001, "list"]
        beyond = await run(running, order("test.async", "large", 200_000))
        assert beyond.error is not None
        assert beyond.error.detail == {"bytes": 200_002, "limit_bytes": 100_000}
        lost = await run(
            running,
            order("test.async", params={"do": "rows"}, context={"needs": {"a": {PAYLOAD: {"sha256": "0" * 64}}}}),
        )
        assert lost.error is not None
        assert lost.error.type == "PayloadGone"


async def test_what_an_attempt_waits_for_its_turn_is_no_part_of_its_time_out() -> None:
    reports = Reports()
    async with executor() as running:
        for number in range(20):
            assert running.submit(order("test.sharing", value=0.05, timeout_s=0.5, item=number), reports)
        found = await reports.wait_for(20)
    assert [report.error for report in found] == [None] * 20, "the last waited for a second"


async def test_one_that_has_its_turn_for_too_long_is_ended_and_the_next_has_it() -> None:
    reports = Reports()
    async with executor(QUICK) as running:
        assert running.submit(order("test.sharing", value=60, timeout_s=0.1, item=0), reports)
        assert running.submit(order("test.sharing", value=0, timeout_s=0.1, item=1), reports)
        first, second = await reports.wait_for(2)
    assert first.error is not None
    assert (first.error.type, second.error) == ("Timeout", None)


async def test_one_whose_result_nobody_wants_any_more_does_not_wait_on() -> None:
    reports = Reports()
    async with executor(QUICK) as running:
        assert running.submit(order("test.sharing", value=60, item=0), reports)
        soon_ms = running._clock.now_ms() + 100
        assert running.submit(order("test.sharing", value=0, item=1, deadline_ms=soon_ms), reports)
        (report,) = await reports.wait_for(1)
        running.cancel("e-1")
    assert report.item == 1
    assert report.error is not None
    assert "waited for its turn" in report.error.message


async def test_so_many_may_wait_for_a_turn_and_others_go_past_them() -> None:
    reports = Reports()
    async with executor(ExecutorLimits(waiting=2, cancel_grace_s=0.05)) as running:
        assert (await run(running, order("test.sharing", value=0))).error is None  # its type is known from now on
        for number in range(3):
            assert running.submit(order("test.sharing", value=60, task="test.sharing/echo/0", item=number), reports)
            await asyncio.sleep(0)
        await eventually(lambda: running._in_line == 2)
        assert not running.submit(order("test.sharing", value=60, task="test.sharing/echo/0", item=3), reports)
        assert (await run(running, order("test.async", value="past"))).result == "past"
        running.cancel("e-1")
        await eventually(lambda: running.free == running.limits.concurrency)
        assert running._in_line == 0
