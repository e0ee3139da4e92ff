"""What the API knows of executions: the index, the process that feeds it, and who waits for its changes."""

import asyncio
import contextlib
import logging
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import orjson

import app
from app.adapters.execution_reader import ExecutionReader, Row
from app.errors import Unavailable
from app.http.execution_ids import is_execution_id
from app.http.health import Check
from app.http.start import Accepted, fingerprint
from config.http import ExecutionsSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

_READERS: Final = 2
_LINE_BYTES: Final = 16 << 20  # the ids of one batch that are watched
_RESTART_FIRST_S: Final = 0.2
_RESTART_MAX_S: Final = 10.0
_STOP_S: Final = 5.0
_ASKED_MAX: Final = 5000
_LOOK_S: Final = 1.0  # between two looks whether the process has said something; it does so twice a second
_HUSH_LOOKS: Final = 5
_UNREAD_BYTES: Final = 1 << 20  # of orders, after which a question waits until the process reads again


class Behind(Unavailable):
    """The index of executions has not read everything yet."""


class Watcher:
    """Wakes who waits for an execution when something of it has changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def told(self) -> None:
        self._changed.set()

    async def changed(self, timeout_s: float) -> bool:
        """Wait for the next change; False when there was none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class ExecutionIndex:
    """Reads are answered by threads from the index's file; `run` keeps the process alive that feeds it."""

    def __init__(self, settings: ExecutionsSettings, configuration: bytes) -> None:
        """`configuration` is the first line for the process; see `app.adapters.execution_feed`."""
        self._settings = settings
        self._configuration = configuration
        self.reader = ExecutionReader(Path(settings.directory))
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="executions")
        self._watchers: defaultdict[str, set[Watcher]] = defaultdict(set)
        self._reached: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._orders: asyncio.StreamWriter | None = None
        self._open = asyncio.Event()
        self.state: Mapping[str, Any] = {}
        self._silent_looks = 0
        self.pid: int | None = None

    # ---- life ----

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the feeding process until `stop`; one that dies is started again after a pause."""
        pause_s = _RESTART_FIRST_S
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            while not stop.is_set():
                opened, why = await self._live(stopping)
                pause_s = _RESTART_FIRST_S if opened else min(_RESTART_MAX_S, 2 * pause_s)
                if not stop.is_set():
                    log.warning(
                        "the feed of the index of executions ended: %s", why, extra={"action": "executions_feed_ended"}
                    )
                    await asyncio.wait({stopping}, timeout=pause_s)
        finally:
            stopping.cancel()

    async def _live(self, stopping: "asyncio.Task[Any]") -> tuple[bool, str]:
        """One life of the process; whether it came as far as opening the index, and how it ended."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "app.adapters.execution_feed",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for this process, whose end is the other's end
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        process.stdin.write(self._configuration)
        hearing = asyncio.create_task(self._hear(process.stdout, process.stdin), name="executions feed")
        silent = asyncio.create_task(self._silence(), name="silence of the executions feed")
        try:
            await asyncio.wait({hearing, silent, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stuck = silent.done()
            silent.cancel()
            if stuck:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            opened = self._open.is_set()
            self._orders, self.state, self.pid = None, {}, None
            self._open.clear()
            process.stdin.close()
            await _end(process, hearing)
        if stuck:
            return opened, f"it had said nothing for {self._settings.feed_silent_s} s"
        error = None if hearing.cancelled() else hearing.exception()
        return opened, f"exit code {process.returncode}" if error is None else repr(error)

    async def _silence(self) -> None:
        """Return when the open process has said nothing for too long.

        Looks are counted, not seconds, so that a stop of this process is not taken for one of the other.
        """
        self._silent_looks = 0
        while self._silent_looks * _LOOK_S < self._settings.feed_silent_s:
            await asyncio.sleep(_LOOK_S)
            self._silent_looks += self._open.is_set()

    async def _hear(self, lines: asyncio.StreamReader, orders: asyncio.StreamWriter) -> None:
        while line := await lines.readline():
            message = orjson.loads(line)
            self._silent_looks = 0
            for execution_id in message.get("told", ()):
                for watcher in self._watchers.get(execution_id, ()):
                    watcher.told()
            for number in message.get("reached", ()):
                if (waiting := self._reached.pop(number, None)) is not None and not waiting.done():
                    waiting.set_result(None)
            self.state = message.get("state", self.state)
            if "open" in message:
                self.reader.reopen()
                self._orders = orders
                for execution_id in self._watchers:
                    self._order({"watch": execution_id})
                self._open.set()

    def _order(self, order: Mapping[str, Any]) -> None:
        if self._orders is not None:
            self._orders.write(orjson.dumps(order) + b"\n")

    def close(self) -> None:
        """End the threads; nothing may be asked any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def complete(self) -> bool:
        """Whether lists may be believed: the index is fed, and all that was there when it connected is in it."""
        return self.check().ok

    def check(self) -> Check:
        """For readiness: fed, and everything that was there at the start is in it."""
        state = self.state
        if self._silent_looks >= _HUSH_LOOKS:
            return Check(ok=False, detail="the process that feeds it says nothing")
        if not state.get("connected"):
            return Check(ok=False, detail="waits for Kafka")
        detail = f"{state['executions']} executions, lag {state['lag']} records"
        return Check(bool(state["caught_up"]), detail)

    # ---- questions ----

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """The answer of a method of `reader`, from its threads. Raises `Unavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, question, *arguments)

    async def row(self, execution_id: str) -> Row | None:
        """An execution; None only when there was none at the time of the call. Raises `Behind`."""
        return await self.known(self.reader.get, execution_id)

    async def known(self, question: Callable[..., T | None], execution_id: str, *arguments: Any) -> T | None:
        """The answer of a question about one execution, asked again once everything was read. Raises `Behind`."""
        if not is_execution_id(execution_id):
            return None
        if self._open.is_set():
            found = await self.ask(question, execution_id, *arguments)
            if found is not None:
                return found
        await self.reach(execution_id)
        return await self.ask(question, execution_id, *arguments)

    async def reach(self, execution_id: str) -> None:
        """Return when all that is now on the partitions of an execution is in the index. Raises `Behind`."""
        if len(self._reached) >= _ASKED_MAX:
            raise Behind("Too many ask for executions that the index has not read yet.")
        self._number += 1
        number = self._number
        waiting = self._reached[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._settings.catch_up_wait_ms / 1000):
                await self._open.wait()
                # Without a connection nothing is answered, so that the question is put again.
                while not waiting.done():
                    if self._orders is not None and self._orders.transport.get_write_buffer_size() < _UNREAD_BYTES:
                        self._order({"ask": number, "execution": execution_id})
                    await asyncio.wait({waiting}, timeout=0.25)
        except TimeoutError as error:
            raise Behind("The index of executions has not read everything yet.") from error
        finally:
            self._reached.pop(number, None)

    @contextlib.asynccontextmanager
    async def watching(self, execution_id: str) -> AsyncIterator[Watcher]:
        """A watcher of one execution, told at once and then at each change."""
        watcher = Watcher()
        self._watchers[execution_id].add(watcher)
        self._order({"watch": execution_id})
        try:
            yield watcher
        finally:
            watchers = self._watchers[execution_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[execution_id]
                self._order({"unwatch": execution_id})

    # ---- what starts ask; see app.http.start_routes.Results ----

    async def final(self, execution_id: str, timeout_s: float) -> bytes | None:
        """The execution as JSON once it has ended, None when it has not in time."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        async with self.watching(execution_id) as watcher:
            while (left_s := ends_s - loop.time()) > 0:
                if not await watcher.changed(left_s):
                    return None
                outcome = await self.ask(self.reader.outcome, execution_id)
                if outcome is not None:
                    return msgspec.json.encode(outcome)
        return None

    async def first(self, execution_id: str) -> Accepted | None:
        """The execution of this id, or of this id with its partition, as far as the index is."""
        return await self.ask(self._first, execution_id) if self._open.is_set() else None

    def _first(self, execution_id: str) -> Accepted | None:
        row = self.reader.first(execution_id)
        if row is None:
            return None
        begun = self.reader.history(row.id, -1, 1)
        known = fingerprint(orjson.loads(begun.events[0]).get("input")) if begun and begun.events else b""
        return Accepted(row.id, row.workflow, row.version, known=True, input_print=known)


async def _end(process: asyncio.subprocess.Process, hearing: "asyncio.Task[None]") -> None:
    """Its stdin is closed: it ends by itself, and is killed when it does not."""
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


def _environment() -> dict[str, str]:
    """Our own code is found first, whatever lies in the working folder."""
    root = str(Path(app.__file__).resolve().parent.parent)
    paths = [root, *_others(os.environ.get("PYTHONPATH", ""), root)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _others(paths: str, root: str) -> Sequence[str]:
    return [path for path in paths.split(os.pathsep) if path and path != root]
