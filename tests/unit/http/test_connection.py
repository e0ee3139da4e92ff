"""Laws of connections over real sockets: who stalls is let go, and those who do not are served meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
from starlette.types import Receive, Scope, Send

from app.http.server import HttpServer, bind

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
LARGE = 32 << 20
WITHIN_S = 30.0
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def answering(body: bytes) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


@asynccontextmanager
async def serving(app: App, **limits: float) -> AsyncIterator[HttpServer]:
    server = HttpServer(app, bind("127.0.0.1", 0, "a test", "http.port"), **limits)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(server: HttpServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head, _, body = (await asyncio.wait_for(reader.read(), WITHIN_S)).partition(b"\r\n\r\n")
    return head, body


async def test_a_connection_that_does_not_send_a_whole_head_is_closed() -> None:
    async with serving(answering(b"ok"), head_timeout_s=0.05) as server:
        for begun in (b"", GET):
            async with connected(server) as (reader, writer):
                writer.write(begun)
                assert await answered(reader) == (b"", b"")


async def test_the_time_of_a_head_does_not_run_while_an_answer_is_made() -> None:
    made = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await made.wait()
        await answering(b"ok")(scope, receive, send)

    async with serving(app, head_timeout_s=0.05) as server, connected(server) as (reader, writer):
        writer.write(GET + b"Connection: close\r\n\r\n")
        asyncio.get_running_loop().call_later(0.2, made.set)
        assert (await answered(reader))[1] == b"ok"


async def test_a_client_that_takes_nothing_of_its_answer_is_let_go() -> None:
    for kept in (b"", b"Connection: close\r\n"):
        async with serving(answering(b"x" * LARGE), stalled_s=0.05) as server, connected(server) as (reader, writer):
            writer.write(GET + kept + b"\r\n")
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(WITHIN_S):
                while not server._server.server_state.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while server._server.server_state.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it() -> None:
    async with serving(answering(b"x" * LARGE), stalled_s=2.0) as server, connected(server) as (reader, writer):
        writer.write(GET + b"Connection: close\r\n\r\n")
        taken = 0
        while part := await asyncio.wait_for(reader.read(1 << 20), WITHIN_S):
            taken += len(part)
            await asyncio.sleep(0)
        assert taken > LARGE


async def test_a_connection_too_many_is_told_to_come_again() -> None:
    async with serving(answering(b"ok"), connections_max=1) as server, connected(server) as (first, asking):
        asking.write(GET + b"\r\n")
        assert (await first.readline()).startswith(b"HTTP/1.1 200")
        async with connected(server) as (reader, writer):
            writer.write(GET + b"\r\n")
            head, body = await answered(reader)
        assert b"503" in head
        assert b"retry-after: 1" in head.lower()
        assert orjson.loads(body)["status"] == 503


async def test_what_is_no_http_is_answered_with_a_problem_document() -> None:
    async with serving(answering(b"ok")) as server, connected(server) as (reader, writer):
        writer.write(b"what is this\r\n\r\n")
        head, body = await answered(reader)
        assert (b"400" in head, orjson.loads(body)["status"]) == (True, 400)
