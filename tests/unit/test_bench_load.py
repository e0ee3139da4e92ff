"""Laws of the load client: answers are cut from the stream exactly, and an open loop counts from the due instant."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.load import Answer, AnswerLost, Pool, closed_loop, get, open_loop, parse, post

WHOLE = b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n"


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, len(CHUNKED) - 1))
def test_a_part_of_an_answer_is_no_answer(whole, chunked):
    assert parse(WHOLE[:whole]) is None
    assert parse(CHUNKED[:chunked]) is None


def test_what_follows_an_answer_is_left():
    assert parse(WHOLE + b"HTTP") == (Answer(202, b"hello"), len(WHOLE))
    assert parse(CHUNKED + b"HTTP") == (Answer(200, b"abcde"), len(CHUNKED))


def test_an_answer_may_have_no_body():
    assert parse(b"HTTP/1.1 204 No Content\r\n\r\n") == (Answer(204, b""), 27)


def test_a_request_says_how_long_its_body_is():
    assert post("h:1", "/p", b"{}", [("idempotency-key", "k")]).endswith(
        b"content-length: 2\r\nidempotency-key: k\r\n\r\n{}"
    )
    assert get("h:1", "/p").startswith(b"GET /p HTTP/1.1\r\n")


@asynccontextmanager
async def _answering(answers: list[bytes]) -> AsyncIterator[int]:
    """Serve raw connections at the port given; leave when each of them is closed."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            with suppress(asyncio.IncompleteReadError):  # the client has left
                for answer in answers:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(answer)
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*connections)


async def test_a_closed_connection_is_replaced_and_its_request_is_told_lost():
    async with _answering([WHOLE]) as port, Pool("127.0.0.1", port, 1) as pool:
        assert (await pool.request(get("h", "/"))).status == 202
        with pytest.raises(AnswerLost):
            await pool.request(get("h", "/"))
        assert (await pool.request(get("h", "/"))).status == 202


async def test_loops_ask_as_often_as_they_were_told():
    asked: list[int] = []

    async def one(number: int) -> None:
        asked.append(number)
        assert (await pool.request(get("h", "/"))).body == b"hello"

    async with _answering([WHOLE] * 50) as port, Pool("127.0.0.1", port, 2) as pool:
        assert await closed_loop(2, 20, one) > 0
        paced = await open_loop(200, 0.1, pool, lambda _: get("h", "/"))
    assert sorted(asked) == list(range(20))
    assert [one.answer for one in paced] == [Answer(202, b"hello")] * 20
    assert all(one.answered_s > one.due_s for one in paced)
