"""Laws of a side's process: heard line by line, always ended, its failures told with its last words."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from app.bench.child import SideFailed, start
from app.bench.environments import Command, PeerMissing
from app.bench.result import Run
from app.bench.series import series
from app.bench.side import Effort, Side


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_events_are_heard_and_other_lines_are_its_talk(tmp_path: Path) -> None:
    code = 'print("hello"); print(\'{"event": "result", "n": 3}\')'
    child = await start(python(code), tmp_path)
    assert (await child.until("result", 10))["n"] == 3
    await child.ended(10)
    await child.stop()
    assert list(child.heard) == ["hello"]


async def test_the_specification_is_the_last_argument(tmp_path: Path) -> None:
    code = "import sys, json; print(json.dumps({'event': 'result', **json.load(open(sys.argv[-1]))}))"
    child = await start(python(code), tmp_path, {"records": 7})
    assert (await child.until("result", 10))["records"] == 7
    await child.stop()


async def test_a_failure_is_told_with_the_last_words(tmp_path: Path) -> None:
    child = await start(python("import sys; sys.exit('no broker there')"), tmp_path)
    with pytest.raises(SideFailed, match="code 1: no broker there"):
        await child.until("result", 10)
    await child.stop()


async def test_an_end_without_the_result_is_a_failure(tmp_path: Path) -> None:
    child = await start(python("print('bye')"), tmp_path)
    with pytest.raises(SideFailed, match="ended without result: bye"):
        await child.until("result", 10)
    await child.stop()


async def test_a_side_that_ignores_sigterm_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bench.child.STOP_TIMEOUT_S", 0.2)
    code = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "c = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
        'print(\'{"event": "ready", "child": %d}\' % c.pid, flush=True); signal.pause()'
    )
    child = await start(python(code), tmp_path)
    grandchild = (await child.until("ready", 10))["child"]
    await child.stop()
    assert child.process.returncode == -9
    async with asyncio.timeout(10):
        while not ended(grandchild):  # noqa: ASYNC110 - another process tells no event
            await asyncio.sleep(0)


async def test_a_side_dies_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    benchmark = (
        "import asyncio, pathlib, signal, sys; from app.bench.child import start;"
        "c = asyncio.run(start((sys.executable, '-c', 'import signal; signal.pause()'), pathlib.Path(sys.argv[1])));"
        "print(c.process.pid, flush=True); signal.pause()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", benchmark, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    side = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    async with asyncio.timeout(10):
        while not ended(side):  # noqa: ASYNC110 - another process tells no event
            await asyncio.sleep(0)


def absent(_: object) -> Command:
    raise PeerMissing("no Java")


def present(_: object) -> Command:
    return Command(("x",), "1")


def measured(fail: str) -> Callable[[Side, Command, int], Awaitable[Run]]:
    async def measure(side: Side, _: Command, run: int) -> Run:
        if side.name == fail:
            raise SideFailed("ended with code 1")
        return Run(run, side.name, 100.0 + run)

    return measure


async def test_what_cannot_run_is_reported_with_its_reason_and_the_others_go_on() -> None:
    sides = (Side("headrace", present, "d"), Side("p", absent, "d"), Side("q", present, "d"), Side("r", present, "d"))
    result = await series("x", "u", sides, Effort(1, 3), {}, measured("q"), lambda _: None)
    assert result.missing == {"p": "no Java", "q": "ended with code 1"}
    assert result.ours == 101.0
    assert result.peers == {"r": 101.0}


async def test_a_failure_of_ours_leaves_no_figure() -> None:
    sides = (Side("headrace", present, "d"), Side("q", present, "d"))
    result = await series("x", "u", sides, Effort(1, 1), {}, measured("headrace"), lambda _: None)
    assert result.ours is None
    assert result.ratios == {}
