"""What a task process runs: one task after the other, as frames on a socket tell, until the socket closes.

`python -m app.adapters.tasks.child SOCKET MEMORY_BYTES FRAME_BYTES PARENT`: the number of the socket's descriptor,
the memory it may ask for (0: any), the longest answer, and the process it belongs to.
"""

import contextlib
import ctypes
import os
import queue
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from app.adapters.tasks.failures import describe
from app.adapters.tasks.frames import CANCEL, ERROR, ERROR_BYTES, HEARTBEAT, JOB, LAST, READY, RESULT, Reader, frame
from app.adapters.tasks.payload import TooLarge, dumps
from app.adapters.tasks.preparation import Types
from app.adapters.tasks.protocol import SyncTaskType, TaskCall
from app.adapters.tasks.registry import Registry
from app.errors import TaskFailed

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_READ_BYTES: Final = 1 << 18
_UNLIMITED: Final = 1 << 62
_SHORT: Final = 4_000


class _Line:
    """The socket: jobs come in on a thread of its own, answers go out from any."""

    def __init__(self, connection: socket.socket) -> None:
        self.jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self._connection = connection
        self._writing = threading.Lock()
        self._pid = os.getpid()

    def listen(self) -> None:
        """Read until the other side is gone; then nobody wants what this process does."""
        reader = Reader(_UNLIMITED)
        while some := self._received():
            for kind, content in reader.feed(some):
                if kind == JOB:
                    self.cancelled.clear()
                    self.jobs.put(content)
                elif kind == CANCEL:
                    self.cancelled.set()
        os._exit(0)

    def say(self, kind: bytes, content: bytes = b"") -> None:
        """Send one frame."""
        with self._writing:
            self._connection.sendall(frame(kind, content))

    def heartbeat(self) -> None:
        """Tell that the task is alive."""
        if self.is_ours:
            self.say(HEARTBEAT)

    @property
    def is_ours(self) -> bool:
        """False in a process that the task has forked."""
        return os.getpid() == self._pid

    def _received(self) -> bytes:
        with contextlib.suppress(OSError):
            return self._connection.recv(_READ_BYTES)
        return b""


def main(arguments: Sequence[str], types: Types | None = None) -> None:
    """Serve until the socket closes."""
    descriptor, memory_bytes, frame_bytes, parent = map(int, arguments)
    _settle_in(memory_bytes, parent)
    line = _Line(socket.socket(fileno=descriptor))
    os.set_inheritable(descriptor, False)
    registry = types or Registry()
    threading.Thread(target=line.listen, name="listen", daemon=True).start()
    line.say(READY)
    while True:
        kind, content = _outcome(registry, line, line.jobs.get(), frame_bytes)
        if not line.is_ours:
            os._exit(0)  # it came back from the task's function twice: the answer is the other one's
        if _has_left_children():
            line.say(LAST)
        line.say(kind, content)


def _outcome(registry: Types, line: _Line, job: bytes, frame_bytes: int) -> tuple[bytes, bytes]:
    """Run one job; whatever the task raises is its outcome."""
    try:
        result = dumps(_run(registry, line, orjson.loads(job)))
        if len(result) > frame_bytes:
            raise TooLarge(len(result), frame_bytes)
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are failures of the task
        return ERROR, _told(error)
    return RESULT, result


def _run(registry: Types, line: _Line, job: dict[str, Any]) -> Any:
    task_type = registry.get(job["type"])
    if not isinstance(task_type, SyncTaskType):
        raise TaskFailed("BrokenPlugin", f"{job['type']} has no method run_sync", retryable=False)
    call: TaskCall[Any] = TaskCall(
        params=task_type.params_model.model_validate(job["given"]),
        rows=job["rows"],
        context=job["context"],
        idempotency_key=job["idempotency_key"],
        attempt=job["attempt"],
        deadline_ms=job["deadline_ms"],
        heartbeat=line.heartbeat,
        cancelled=line.cancelled.is_set,
        traceparent=job.get("traceparent"),
    )
    return task_type.run_sync(call)


def _has_left_children() -> bool:
    """Whether something that the task started still runs; this process is ended then, and that with it."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
        return True
    return False


def _told(error: BaseException) -> bytes:
    found = describe(error)
    told = {"type": found.type, "message": found.message, "retryable": found.retryable}
    try:
        encoded = orjson.dumps({**told, "detail": found.detail}, default=repr, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, RecursionError):  # lone surrogates, or a detail that contains itself
        encoded = b""
    if 0 < len(encoded) <= ERROR_BYTES:
        return encoded
    return orjson.dumps({**told, "type": _plain(found.type)[:100], "message": _plain(found.message)[:_SHORT]})


def _plain(text: str) -> str:
    """Without lone surrogates, which no JSON can hold."""
    return text.encode(errors="replace").decode()


def _settle_in(memory_bytes: int, parent: int) -> None:
    """Die with the parent, be the first to go when memory runs out, and ask for no more than allowed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):  # not every container allows it
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        os._exit(0)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(sys.argv[1:])
