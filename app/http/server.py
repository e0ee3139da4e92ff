"""An HTTP server inside the running event loop: bound before anything else, stopped within a limit."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import EnvironmentError_
from app.http import problems
from app.http.connection import patient


class _Uvicorn(uvicorn.Server):
    """Uvicorn that leaves signals to the process's own lifecycle and says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Address(NamedTuple):
    """Where to listen, what for, and the setting that moves it elsewhere."""

    host: str
    port: int
    purpose: str
    setting: str


def bind_all(*addresses: Address) -> list[socket.socket]:
    """Every address, or none and one sentence why not."""
    listening: list[socket.socket] = []
    try:
        for address in addresses:
            listening.append(bind(*address))  # noqa: PERF401 - what was bound must be known when one fails
    except BaseException:
        for taken in listening:
            taken.close()
        raise
    return listening


def bind(host: str, port: int, purpose: str, setting: str) -> socket.socket:
    """A listening address; raises `EnvironmentError_` with one sentence why not."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except socket.gaierror as error:
        raise EnvironmentError_(f"{setting.rsplit('.', 1)[0]}.host: {host!r} is no address here.") from error
    # With the protocol named, asyncio sets TCP_NODELAY; without it every answer waits 40 ms for an ACK.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        # Listening at once makes a second binder fail here, and lets early callers wait in the backlog.
        taken.listen(128)
    except OSError as error:
        taken.close()
        raise EnvironmentError_(_why(error, host, port, purpose, setting), port=port) from error
    taken.setblocking(False)
    return taken


def _why(error: OSError, host: str, port: int, purpose: str, setting: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken, and {purpose} needs it: "
            f"stop the other program or set {setting} to a free port."
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"Port {port} on {host} is not allowed for this user: set {setting} to a port above 1023."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: change {setting.rsplit('.', 1)[0]}.host."
    return f"{purpose} cannot listen on {host}:{port}: {error.strerror}."


class HttpServer:
    """One application on one address."""

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        *,
        keep_alive_s: int = 5,
        connections_max: int = 1000,
        head_timeout_s: float = 10.0,
        stalled_s: float = 30.0,
    ) -> None:
        self._app = app
        self._connections_max = connections_max
        self._listening = listening
        host, port = listening.getsockname()[:2]
        self.port: int = port
        self.url = f"http://{'[' + host + ']' if ':' in host else host}:{port}"
        self._server = _Uvicorn(
            uvicorn.Config(
                self._answer,
                interface="asgi3",
                http=patient(head_timeout_s, stalled_s),
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=keep_alive_s,
                timeout_graceful_shutdown=5,
                h11_max_incomplete_event_size=64 << 10,
            )
        )
        self.task: asyncio.Task[None] | None = None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self._server.server_state.connections) <= self._connections_max:
            await self._app(scope, receive, send)
            return
        headers = {"Retry-After": "1", "Connection": "close"}
        busy = problems.response(503, "Too many connections are open.", scope["path"], headers=headers)
        await busy(scope, receive, send)

    async def start(self) -> None:
        """Return when requests are answered."""
        self.task = asyncio.create_task(self._server.serve(sockets=[self._listening]), name=f"http {self.url}")
        answers = asyncio.create_task(self._server.answers.wait())
        await asyncio.wait({self.task, answers}, return_when=asyncio.FIRST_COMPLETED)
        answers.cancel()
        if self.task.done():
            await self.task

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Answer what was asked, for `timeout_s` at most, and close."""
        if self.task is None:
            self._listening.close()
            return
        self._server.should_exit = True
        _, pending = await asyncio.wait({self.task}, timeout=timeout_s)
        for late in pending:
            late.cancel()
            await asyncio.wait({late})


async def stop_all(servers: list[HttpServer], timeout_s: float = 5.0) -> None:
    await asyncio.gather(*(server.stop(timeout_s) for server in servers))
