"""Task types that misbehave on purpose, orders for them, and an executor over them."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.adapters.clock import SystemClock
from app.adapters.tasks.executor import Executor, ExecutorLimits
from app.adapters.tasks.payload import Payloads
from app.adapters.tasks.preparation import Preparation
from app.adapters.tasks.processes import ProcessLimits, ProcessPool
from app.adapters.tasks.protocol import Kind, TaskCall, TaskType
from app.adapters.tasks.secrets import Secrets
from app.adapters.tasks.turns import turn
from app.domain.workflow.commands import Heartbeat, Report
from app.domain.workflow.orders import TaskOrder
from app.errors import TaskFailed

DEADLINE_S = 60.0


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")
    do: str = "echo"
    value: Any = None


class Unsayable(Exception):
    """An error of which nobody can say what it is."""

    def __str__(self) -> str:
        raise LookupError("no words")

    __repr__ = __str__


class Hanging:
    """Functions that hang wait for this, so that a test can let them go at its end."""

    released = threading.Event()
    entered = threading.Event()


class Coroutine:
    """Does what it is told on the loop."""

    name = "test.async"
    params_model = Params
    kind: Kind = "async"
    pure = False

    async def run(self, call: TaskCall[Params]) -> Any:
        match call.params.do:
            case "hang":
                await asyncio.Event().wait()
            case "stubborn":
                while not Hanging.released.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.01)
            case "beat":
                for _ in range(5):
                    call.heartbeat()
                    await asyncio.sleep(0)
            case "cancel itself":
                raise asyncio.CancelledError
            case "sleep":
                await asyncio.sleep(call.params.value)
            case "block":
                time.sleep(call.params.value)  # noqa: ASYNC251 - on purpose
            case "compute":
                while True:
                    sum(range(1_000))
            case "block in a task of its own":
                await asyncio.create_task(_blocks(call.params.value))
            case "swallow":
                for _ in range(3):
                    with contextlib.suppress(BaseException):
                        time.sleep(call.params.value)  # noqa: ASYNC251 - on purpose
            case _:
                return done(call)
        return None


async def _blocks(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - on purpose


class Sharing:
    """Holds the only one of something for as long as it is told."""

    name = "test.sharing"
    params_model = Params
    kind: Kind = "async"
    pure = False
    takes_turns = True

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(1)

    async def run(self, call: TaskCall[Params]) -> Any:
        async with turn(self._turns):
            await asyncio.sleep(call.params.value)
        return call.params.value


class Blocking:
    """Does what it is told in a thread."""

    name = "test.blocking"
    params_model = Params
    kind: Kind = "blocking"
    pure = False

    def run_sync(self, call: TaskCall[Params]) -> Any:
        if call.params.do == "hang":
            Hanging.entered.set()
            Hanging.released.wait(DEADLINE_S)
            return None
        if call.params.do == "wait to be cancelled":
            Hanging.entered.set()
            ends_s = time.monotonic() + DEADLINE_S
            while not call.cancelled() and time.monotonic() < ends_s:
                threading.Event().wait(0.005)
            Hanging.released.set()
            return None
        if call.params.do == "thread":
            return threading.current_thread().name
        return done(call)


class Processed:
    """Does what it is told in a task process."""

    name = "test.process"
    params_model = Params
    kind: Kind = "process"
    pure = False

    def run_sync(self, call: TaskCall[Params]) -> Any:
        value = call.params.value
        match call.params.do:
            case "exit":
                os._exit(value)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                ctypes.string_at(0)
            case "memory":
                return len(bytearray(1 << 40))
            case "hang":
                Path(value).write_text(str(os.getpid()))
                while True:
                    time.sleep(1)
            case "compute":
                ends_s = time.monotonic() + value
                while time.monotonic() < ends_s:
                    sum(range(1000))
                return "computed"
            case "pid":
                return os.getpid()
            case "print":
                print("a" * 100_000)
                print("and errors", file=sys.stderr)
                return "printed"
            case "leave a child":
                return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
            case "come back twice":
                if os.fork():
                    time.sleep(0.05)
                    return "once"
                call.heartbeat()
                return "twice"
            case "flood":
                for _ in range(200):
                    os.write(1, b"o" * 100_000)
                    os.write(2, b"e" * 100_000)
                return "flooded"
            case "overflow the stack":
                sys.setrecursionlimit(1 << 30)
                return _deeper(0)
            case "close everything":
                os.closerange(3, 4_096)
                return "closed"
            case "environment":
                return sorted(os.environ)
            case "beat":
                for _ in range(3):
                    call.heartbeat()
                return "beaten"
            case "until told":
                Path(value).write_text("running")
                while not Path(f"{value}.go").exists():
                    time.sleep(0.005)
                return "told"
            case "until cancelled":
                Path(value).write_text("running")
                while not call.cancelled():
                    time.sleep(0.005)
                Path(value).write_text("heeded")
                return None
        return done(call)


def _deeper(depth: int) -> int:
    return min([depth], key=_deeper_still)


def _deeper_still(depth: int) -> int:
    return _deeper(depth + 1)


def done(call: TaskCall[Params]) -> Any:
    """What every kind can do."""
    value = call.params.value
    match call.params.do:
        case "echo":
            return value
        case "rows":
            return list(call.rows)
        case "length":
            return len(value)
        case "count":
            return [len(call.rows), type(call.rows[0]).__name__]
        case "call":
            names = {"key": call.idempotency_key, "attempt": call.attempt, "traceparent": call.traceparent}
            return {**names, "context": dict(call.context)}
        case "raise":
            raise ValueError(value)
        case "fail badly":
            raise TaskFailed(value, value, detail={value: value})
        case "raise the unsayable":
            raise Unsayable
        case "fail":
            raise TaskFailed("Refused", f"refused {value}", retryable=False, detail={"value": value})
        case "system exit":
            raise SystemExit(value)
        case "interrupt":
            raise KeyboardInterrupt
        case "raise at length":
            raise ValueError("x" * 10_000_000)
        case "fail at length":
            raise TaskFailed("x" * 10_000_000, "y" * 10_000_000, detail={"z": "z" * 10_000_000})
        case "recurse":
            return done(call)
        case "end a generator":
            raise GeneratorExit
        case "raise a stop":
            raise StopIteration(1)
        case "raise a group":
            raise BaseExceptionGroup("many", [KeyboardInterrupt(), ValueError("one")])
        case "not a number":
            return {"mean": float(value)}
        case "huge":
            return [1 << 4_000]
        case "surrogate":
            return {"text": "\ud800"}
        case "deep":
            deep: list[Any] = []
            for _ in range(100_000):
                deep = [deep]
            return deep
        case "never awaited":
            return asyncio.sleep(1)
        case "generator":
            return (n for n in range(3))
        case "not json":
            return {"rows": [{"ok": 1}, {"bad": {1, 2}}]}
        case "cyclic":
            cycle: list[Any] = []
            cycle.append(cycle)
            return cycle
        case "large":
            return "x" * value
        case "long":
            return [{"n": n} for n in range(value)]
    raise AssertionError(call.params.do)


class Types:
    """The types above by name."""

    def __init__(self) -> None:
        self._types: dict[str, TaskType] = {one.name: one for one in (Coroutine(), Sharing(), Blocking(), Processed())}

    def get(self, name: str) -> TaskType:
        if name not in self._types:
            raise TaskFailed("UnknownTaskType", f"there is no task type {name!r}", retryable=False)
        return self._types[name]


class PlainExpressions:
    """Stands for CEL where a test is not about it: `${a.b}` and `a.b` walk the names."""

    def evaluate(self, source: str, names: Mapping[str, Any]) -> Any:
        found: Any = names
        for part in source.strip().split("."):
            found = found[part]
        return found

    def render(self, params: Any, names: Mapping[str, Any]) -> Any:
        if isinstance(params, str) and params.startswith("${"):
            return self.evaluate(params[2:-1], names)
        if isinstance(params, Mapping):
            return {key: self.render(value, names) for key, value in params.items()}
        return params


def order(type_: str, do: str = "echo", value: Any = None, **more: Any) -> TaskOrder:
    made = TaskOrder(
        execution_id="e-1", workflow="w", version="v", task=f"{type_}/{do}/{value!r:.60}", item=None,
        attempt=1, token=7, type=type_, params={"do": do, "value": value}, context={"input": None, "needs": {}},
    )  # fmt: skip
    return replace(made, **more)


class Reports:
    """Collects what an executor reports."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.heartbeats: list[Heartbeat] = []
        self._changed = asyncio.Event()

    def __call__(self, said: Report | Heartbeat) -> None:
        if isinstance(said, Report):
            self.reports.append(said)
        else:
            self.heartbeats.append(said)
        self._changed.set()

    async def wait_for(self, count: int) -> list[Report]:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.reports) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.reports


async def eventually(found: Callable[[], Any]) -> Any:
    """Wait for a condition with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not (answer := found()):  # noqa: ASYNC110 - the condition is another process's
            await asyncio.sleep(0.01)
    return answer


@contextlib.asynccontextmanager
async def executor(
    limits: ExecutorLimits | None = None,
    processes: ProcessLimits | None = None,
    environ: Mapping[str, str] | None = None,
    payloads: Payloads | None = None,
) -> AsyncIterator[Executor]:
    """A running executor over the types above."""
    preparation = Preparation(Types(), PlainExpressions(), Secrets(None, environ or {}), payloads)
    pool = ProcessPool(replace(processes or ProcessLimits(), module="tests.helpers.task_child"))
    running = Executor(limits or ExecutorLimits(cancel_grace_s=0.2), preparation, pool, SystemClock(), payloads)
    try:
        yield running
    finally:
        await running.close()


async def run(running: Executor, one: TaskOrder) -> Report:
    """The report of one order."""
    reports = Reports()
    assert running.submit(one, reports)
    (report,) = await reports.wait_for(1)
    return report
