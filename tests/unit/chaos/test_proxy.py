"""Laws of the proxy: clear weather changes no byte, and what it does otherwise is done and counted."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.chaos.proxy import HOST, Link, Weather
from tests.helpers.kafka import until


class Echo:
    """A server that answers each line with itself, and knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Echo"]:
        server = await asyncio.start_server(self._answer, HOST, 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.asked.append(line)
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            self.asked.append(b"reset")
        finally:
            writer.close()


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Echo, Link]]:
    async with Echo().serving() as echo, Link(0, echo.port, random.Random(1)) as link:
        yield echo, link


async def say(link: Link, line: bytes) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(HOST, link.port)
    writer.write(line)
    async with asyncio.timeout(20):
        return await reader.readline(), reader, writer


async def is_refused(link: Link) -> bool:
    """By a reset or by the end of the stream, as the reset meets the request."""
    try:
        answer, _, _ = await say(link, b"refused\n")
    except ConnectionError:
        return True
    return answer == b""


async def test_clear_weather_passes_every_byte_and_the_end_of_the_stream() -> None:
    async with linked() as (echo, link):
        line = b"x" * 300_000 + b"\n"
        reader, writer = await asyncio.open_connection(HOST, link.port, limit=1 << 20)
        writer.write(line)
        assert await reader.readline() == line
        writer.write_eof()
        assert await reader.read() == b""
        assert echo.asked == [line]
        assert (link.counts.up_bytes, link.counts.down_bytes) == (len(line), len(line))
        writer.close()


async def test_a_cut_lets_the_request_through_and_loses_the_answer() -> None:
    async with linked() as (echo, link):
        link.cut_answers(1)
        with pytest.raises(ConnectionError):
            await say(link, b"hello\n")
        assert echo.asked[0] == b"hello\n"
        assert link.counts.cuts == 1
        assert not link.is_cutting
        answer, _, writer = await say(link, b"again\n")
        assert answer == b"again\n"
        writer.close()


async def test_a_hole_takes_what_is_sent_and_ends_with_a_reset() -> None:
    async with linked() as (echo, link):
        _, reader, writer = await say(link, b"before\n")
        with link.under(Weather("hole")):
            writer.write(b"lost\n")
            await until(lambda: link.counts.blocked_bytes == 5, "the hole has taken it")
        with pytest.raises(ConnectionError):
            await reader.read()
        assert b"lost\n" not in echo.asked


async def test_a_link_that_is_down_resets_and_refuses_and_comes_back() -> None:
    async with linked() as (_, link):
        _, reader, writer = await say(link, b"before\n")
        with link.under(Weather("down")):
            with pytest.raises(ConnectionError):
                await reader.read()
            assert await is_refused(link)
            await until(lambda: link.counts.refused == 1, "it is refused")
        answer, _, writer = await say(link, b"after\n")
        assert answer == b"after\n"
        writer.close()


async def test_latency_delays_both_ways_and_keeps_the_order() -> None:
    async with linked() as (echo, link):
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with link.under(Weather(latency_s=0.05, jitter_s=0.05)):
            reader, writer = await asyncio.open_connection(HOST, link.port)
            lines = [b"%d\n" % number for number in range(10)]
            for line in lines:
                writer.write(line)
                await writer.drain()
            assert [await reader.readline() for _ in lines] == lines
        assert echo.asked == lines
        assert link.counts.delayed_chunks >= 2
        assert loop.time() > began_s
        writer.close()


async def test_a_narrow_way_takes_its_time_and_counts_what_it_held_back() -> None:
    async with linked() as (_, link):
        with link.under(Weather(bytes_per_s=10_000)):
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            _, _, writer = await say(link, b"y" * 999 + b"\n")
            assert loop.time() - began_s >= 0.2
        assert link.counts.narrowed_chunks >= 2
        writer.close()


async def test_every_connection_is_reset_at_once() -> None:
    async with linked() as (_, link):
        said = [await say(link, b"hello\n") for _ in range(3)]
        assert link.reset() == 3
        for _, reader, _ in said:
            with pytest.raises(ConnectionError):
                await reader.read()
