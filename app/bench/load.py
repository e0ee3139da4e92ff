"""A cheap HTTP/1.1 client for loads: keep-alive connections, one request under way on each, no library."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Self, cast

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_CHUNKED = b"transfer-encoding: chunked"


class Answer(NamedTuple):
    """Status and body of one answer."""

    status: int
    body: bytes


class AnswerLost(ConnectionError):
    """The server closed the connection before it had answered."""


class Connection(asyncio.Protocol):
    """One keep-alive connection; `send` again only when the last answer is there."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not say that it is one

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        parsed = parse(self._buffer)
        if parsed is not None:
            answer, used = parsed
            self._buffer = self._buffer[used:]
            waiting, self._waiting = self._waiting, None
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(AnswerLost(str(exc or "closed")))

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def send(self, request: bytes) -> "asyncio.Future[Answer]":
        """The answer to a whole request as it goes over the wire. Raises `AnswerLost`."""
        if self._transport is None:
            raise AnswerLost("closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def parse(buffer: bytes) -> tuple[Answer, int] | None:
    """The first answer of a buffer and how many bytes it took; None while it is not whole."""
    head = buffer.find(_END_OF_HEAD)
    if head < 0:
        return None
    status = int(buffer[9:12])
    lowered = buffer[:head].lower()
    start = head + 4
    at = lowered.find(_LENGTH)
    if at >= 0:
        line_end = lowered.find(b"\r\n", at)
        length = int(lowered[at + len(_LENGTH) : line_end if line_end >= 0 else None])
        end = start + length
        return (Answer(status, buffer[start:end]), end) if len(buffer) >= end else None
    if _CHUNKED in lowered:
        return _chunked(buffer, start, status)
    return Answer(status, b""), start


def _chunked(buffer: bytes, at: int, status: int) -> tuple[Answer, int] | None:
    body: list[bytes] = []
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(buffer[at:line_end].split(b";")[0], 16)
        at = line_end + 2
        if len(buffer) < at + size + 2:
            return None
        if size == 0:
            return Answer(status, b"".join(body)), at + 2
        body.append(buffer[at : at + size])
        at += size + 2


def post(host: str, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A POST of JSON as it goes over the wire."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def get(host: str, path: str) -> bytes:
    """A GET as it goes over the wire."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\naccept: application/json\r\n\r\n".encode()


class Pool:
    """So many connections to one server; a request waits for a free one. Use as a context manager."""

    def __init__(self, host: str, port: int, connections: int) -> None:
        self.host, self.port = host, port
        self._count = connections
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._all: list[Connection] = []

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            self._free.put_nowait(await self._connect())
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self._all:
            connection.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self.host, self.port)
        self._all.append(connection)
        return connection

    async def request(self, wire: bytes) -> Answer:
        """Send on a free connection. Raises `AnswerLost` (the request may or may not have been carried out)."""
        connection = await self._free.get()
        try:
            if not connection.is_open:
                self._all.remove(connection)
                connection = await self._connect()
            return await connection.send(wire)
        finally:
            self._free.put_nowait(connection)


class Paced(NamedTuple):
    """One request of an open loop: when it was due and when its answer came, in seconds of the wall clock."""

    due_s: float
    answered_s: float
    answer: Answer | None


async def closed_loop(
    workers: int, requests: int, one: Callable[[int], Awaitable[None]], seen: Callable[[int], None] = lambda _: None
) -> float:
    """Call `one(n)` for every n, so many at once; seconds from the first to the last."""
    numbers = iter(range(requests))
    done = 0

    async def work() -> None:
        nonlocal done
        for number in numbers:
            await one(number)
            done += 1
            if done % 500 == 0:
                seen(done)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    return time.perf_counter() - began


async def open_loop(rate: float, seconds: float, pool: Pool, wire: Callable[[int], bytes]) -> list[Paced]:
    """Send request n at n / rate after the start, whatever became of those before; every latency counts from there.

    A request that got no answer has `answer` None.
    """
    total = int(rate * seconds)
    found: list[Paced] = []
    began_s = time.time() + 0.05
    tasks: set[asyncio.Task[None]] = set()

    async def send(number: int, due_s: float) -> None:
        answer: Answer | None = None
        try:
            answer = await pool.request(wire(number))
        except OSError:
            answer = None
        found.append(Paced(due_s, time.time(), answer))

    number = 0
    while number < total:
        late_s = time.time() - began_s
        while number < total and number / rate <= late_s:
            task = asyncio.create_task(send(number, began_s + number / rate))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        # Waits shorter than a millisecond cost more than they give.
        await asyncio.sleep(max(0.001, began_s + number / rate - time.time()))
    await asyncio.gather(*tasks)
    return found
