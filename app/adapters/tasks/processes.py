"""A pool of task processes: each runs one task at a time, and one that dies or hangs is replaced.

The life of a job: (1) it waits for an idle process, or for a new one, which is not given up with the job;
(2) the process gets it over a socket of its own, so that what a task prints disturbs nothing; (3) the process answers
with a result or an error, as JSON: nothing that it sends is trusted to be more; (4) when the job is given up, the
process that has it and its children are killed;
(5) a process whose socket closes has died, and its job fails with `ProcessDied`, which says how;
(6) one whose task leaves processes of its own behind is replaced after its answer, and they end with it.
Processes are spawned, not forked: they share no lock and no connection with this one, and see only the environment
variables named. They end with this process, however that ends.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from app import metrics
from app.adapters.tasks.frames import (
    CANCEL,
    ERROR,
    ERROR_BYTES,
    HEARTBEAT,
    JOB,
    LAST,
    READY,
    RESULT,
    Broken,
    Reader,
    frame,
)

OUTPUT_TAIL_BYTES: Final = 4_096
PASSED_ON: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8", "PYTHONPYCACHEPREFIX",
)  # fmt: skip


class ProcessDied(Exception):
    """The process of a task ended under it; `detail` holds the exit code or signal, and what it printed last."""

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.detail = detail


class ProcessNotStarted(Exception):
    """No task process could be started."""


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The bounds of a pool; units are in the names."""

    processes: int = 2
    tasks_each: int = 1_000
    memory_bytes: int = 2 << 30
    start_timeout_s: float = 30.0
    frame_bytes: int = 64 << 20
    environment: Sequence[str] = ()
    module: str = "app.adapters.tasks.child"


class Answer(NamedTuple):
    """What a process said of its job: `content` is the JSON of a result, or of an error."""

    ok: bool
    content: bytes


class TaskProcess(asyncio.Protocol):
    """One process and its socket, from our side."""

    def __init__(self, limits: ProcessLimits) -> None:
        loop = asyncio.get_running_loop()
        self.done = 0
        self.pid = 0
        self._limits = limits
        self._reader = Reader(max(limits.frame_bytes, ERROR_BYTES))
        self._socket: asyncio.WriteTransport | None = None
        self._child: asyncio.SubprocessTransport | None = None
        self._output = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._heard: Callable[[], None] | None = None
        self._ready: asyncio.Future[None] = loop.create_future()
        self._exited: asyncio.Future[None] = loop.create_future()
        self._why: str | None = None

    # ---- life ----

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises `ProcessNotStarted`."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            command = [sys.executable, "-X", "faulthandler", "-m", self._limits.module, str(theirs.fileno())]
            self._child, _ = await loop.subprocess_exec(
                lambda: _Output(self._output, self._exited),
                *command,
                str(self._limits.memory_bytes),
                str(self._limits.frame_bytes),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=_environment(self._limits.environment),
            )
            self.pid = self._child.get_pid()
            theirs.close()
            await loop.create_connection(lambda: self, sock=ours)
            async with asyncio.timeout(self._limits.start_timeout_s):
                await self._ready
        except (OSError, TimeoutError, ProcessDied) as error:
            ours.close()
            theirs.close()
            await self.end()
            told = self._output.decode(errors="replace")[-1_000:]
            raise ProcessNotStarted(f"a task process did not start: {error or 'too slow'}. {told}".strip()) from error
        except BaseException:
            if self._socket is None:
                ours.close()
            theirs.close()
            await self.end()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can take a job."""
        return self._socket is not None and not self._socket.is_closing() and not self._exited.done()

    async def end(self) -> None:
        """Kill it with its children, and wait until it is gone."""
        self.kill()
        if self._socket is not None:
            self._socket.close()
        if self._child is not None:
            await asyncio.wait([self._exited])
            self._child.close()

    def kill(self) -> None:
        """(4): the whole group, so that nothing that the task started lives on."""
        if self.pid and not self._exited.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    # ---- one job ----

    async def run(self, job: bytes, heard: Callable[[], None] | None) -> Answer:
        """(2) (3) (5): give it `job` and wait for its answer; `heard` is called at each heartbeat."""
        assert self._answer is None, "one task at a time"
        assert self._socket is not None, "started"
        del self._output[:]
        self._answer = asyncio.get_running_loop().create_future()
        self._heard = heard
        self._socket.write(frame(JOB, job))
        try:
            answer = await self._answer
        except ProcessDied:
            await asyncio.wait([self._exited], timeout=self._limits.start_timeout_s)
            metrics.TASK_PROCESSES_DIED.inc()
            raise self._died() from None
        finally:
            self._answer = self._heard = None
        self.done += 1
        return answer

    def ask_to_stop(self) -> None:
        """Tell the task that it is cancelled; it may heed it."""
        if self.alive and self._answer is not None and self._socket is not None:
            self._socket.write(frame(CANCEL))

    def _died(self) -> ProcessDied:
        code = self._child.get_returncode() if self._child is not None else None
        detail: dict[str, Any] = {"pid": self.pid}
        if self._why is not None:
            how = self._why
        elif code is None:
            how = "closed its connection"
        elif code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
            detail["signal"] = name
        else:
            how = f"ended with exit code {code}"
            detail["exit_code"] = code
        if self._output:
            detail["output"] = self._output.decode(errors="replace")
        return ProcessDied(f"the process of the task {how} before the task was done", **detail)

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._socket = cast(asyncio.WriteTransport, transport)  # of uvloop, which derives from nothing

    def data_received(self, data: bytes) -> None:
        """Take what the process says; nonsense ends it."""
        try:
            frames = self._reader.feed(data)
        except Broken as error:
            self._why = f"sent {error}"
            self.kill()
            return
        for kind, content in frames:
            if kind == HEARTBEAT:
                if self._heard is not None:
                    self._heard()
            elif kind == READY:
                _resolve(self._ready, None)
            elif kind == LAST:
                self.done = self._limits.tasks_each
            elif kind in {RESULT, ERROR} and self._answer is not None:
                _resolve(self._answer, Answer(kind == RESULT, content))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        """(5)."""
        self.kill()  # it cannot answer any more
        for waiting in (self._ready, self._answer):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ProcessDied("its connection closed"))
                waiting.exception()  # whoever waits is told; nobody need be


class _Output(asyncio.SubprocessProtocol):
    """Keeps the last of what a process prints, and tells its end."""

    def __init__(self, tail: bytearray, exited: "asyncio.Future[None]") -> None:
        self._tail = tail
        self._exited = exited
        self._pid: int | None = None

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - asyncio passes it
        self._tail += data
        del self._tail[:-OUTPUT_TAIL_BYTES]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipes are ours, and the process runs."""
        self._pid = cast(asyncio.SubprocessTransport, transport).get_pid()

    def process_exited(self) -> None:
        """Whatever it started ends with it, also when its end is noticed before that of its connection."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
        _resolve(self._exited, None)


class ProcessPool:
    """Task processes, started when needed, `limits.processes` at most."""

    def __init__(self, limits: ProcessLimits) -> None:
        self.limits = limits
        self.started = 0
        self._idle: list[TaskProcess] = []
        self._all: set[TaskProcess] = set()
        self._starts: set[asyncio.Task[TaskProcess]] = set()
        self._unclaimed: deque[asyncio.Task[TaskProcess]] = deque()  # starts whose jobs were given up
        self._busy = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._endings: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that live."""
        return tuple(process.pid for process in self._all if process.pid)

    @contextlib.asynccontextmanager
    async def process(self) -> AsyncIterator[TaskProcess]:
        """(1): a process for one job; it is killed when the block is left by an exception."""
        await self._turn()
        process: TaskProcess | None = None
        try:
            process = await self._ready_process()
            yield process
        except BaseException:
            if process is not None:
                self._give_up(process)
                process = None
            raise
        finally:
            if process is not None:
                self._give_back(process)
            self._busy -= 1
            self._wake()

    async def _turn(self) -> None:
        if self._busy < self.limits.processes and not self._queue:
            self._busy += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._busy -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._queue and self._busy < self.limits.processes:
            turn = self._queue.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)

    async def _ready_process(self) -> TaskProcess:
        """An idle one, or one that is started; when this job is given up meanwhile, the next one has it.

        Killed with its job it would never be there: a queue of jobs that each have less time left than a start takes
        would kill one process after the other and carry out nothing.
        """
        while True:
            process = self._idle.pop() if self._idle else await self._started_process()
            if process.alive:
                return process
            self._give_up(process)

    async def _started_process(self) -> TaskProcess:
        if self._closed:
            raise ProcessNotStarted("the pool of task processes is closed")
        while self._unclaimed and _has_failed(self._unclaimed[0]):
            self._unclaimed.popleft()  # its job had been given up before, so that nobody need be told
        if self._unclaimed:
            start = self._unclaimed.popleft()
        else:
            start = asyncio.get_running_loop().create_task(self._start())
            self._starts.add(start)
            start.add_done_callback(self._starts.discard)
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            self._leave(start)
            raise

    def _leave(self, start: "asyncio.Task[TaskProcess]") -> None:
        """Whoever waited for it has given up: the next one gets it."""
        if self._closed:
            start.cancel()
        else:
            self._unclaimed.append(start)

    async def _start(self) -> TaskProcess:
        process = TaskProcess(self.limits)
        self._all.add(process)
        self.started += 1
        try:
            await process.start()
        except BaseException:
            self._all.discard(process)
            raise
        return process

    def _give_back(self, process: TaskProcess) -> None:
        if self._closed or not process.alive or process.done >= self.limits.tasks_each:
            self._give_up(process)
        else:
            self._idle.append(process)

    def _give_up(self, process: TaskProcess) -> None:
        process.kill()
        ending = asyncio.get_running_loop().create_task(self._end(process))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _end(self, process: TaskProcess) -> None:
        try:
            await process.end()
        finally:
            self._all.discard(process)

    async def close(self) -> None:
        """Kill every process, whatever it does, and wait until they are gone."""
        self._closed = True
        starts = list(self._starts)
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        for process in list(self._all):
            process.kill()
        await asyncio.gather(*(process.end() for process in list(self._all)), *self._endings)
        self._idle.clear()
        self._unclaimed.clear()
        self._all.clear()


def _environment(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in (*PASSED_ON, *names) if name in os.environ}


def _has_failed(start: "asyncio.Task[TaskProcess]") -> bool:
    return start.done() and (start.cancelled() or start.exception() is not None)


def _resolve(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)
