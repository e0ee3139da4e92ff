"""Laws of the proxy: clear weather changes no byte, and what it does otherwise is done and counted."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chaos.proxy import CLEAR, HOST, Counts, Link, Weather
from tests.helpers.kafka import until

SEVERITY = ["open", "hole", "down"]
WEATHERS = st.builds(
    Weather,
    st.sampled_from(SEVERITY),
    st.sampled_from((0.0, 0.05, 1.0)),
    st.sampled_from((0.0, 0.05)),
    st.sampled_from((0.0, 10.0, 64_000.0)),
)
# Each number begins when it comes first and ends when it comes again.
ORDERS_OF_THREE = st.permutations([0, 0, 1, 1, 2, 2])
ORDERS_OF_TWO = [(0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0)]
HOLE, DOWN, SLOW = Weather("hole"), Weather("down"), Weather(latency_s=0.01)


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
        with link.cutting(1) as cuts:
            with pytest.raises(ConnectionError):
                await say(link, b"hello\n")
            assert echo.asked[0] == b"hello\n"
            assert (link.counts.cuts, cuts.done) == (1, 1)
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


def steps(link: Link, weathers: Sequence[Weather], order: Sequence[int]) -> Iterator[list[Weather]]:
    """Begin and end them in that order; what is active after each step."""
    active: dict[int, AbstractContextManager[Counts]] = {}
    for one in order:
        if one in active:
            active.pop(one).__exit__(None, None, None)
        else:
            active[one] = link.under(weathers[one])
            active[one].__enter__()
        yield [weathers[each] for each in active]


@given(st.lists(WEATHERS, min_size=3, max_size=3), ORDERS_OF_THREE)
def test_the_worst_of_what_is_active_is_in_force_and_nothing_stays_behind(
    weathers: list[Weather], order: list[int]
) -> None:
    link = Link(0, 1, random.Random(1))
    for active in steps(link, weathers, order):
        now = link.weather
        assert SEVERITY.index(now.state) == max([SEVERITY.index(each.state) for each in active], default=0)
        assert now.latency_s == max([each.latency_s for each in active], default=0.0)
        assert now.jitter_s == max([each.jitter_s for each in active], default=0.0)
        assert now.bytes_per_s == min([each.bytes_per_s for each in active if each.bytes_per_s], default=0.0)
        assert link.is_clear == (not active)
    assert link.weather == CLEAR
    assert link.is_clear


@pytest.mark.parametrize("other", [HOLE, DOWN, SLOW], ids=["hole", "down", "slow"])
@pytest.mark.parametrize("order", ORDERS_OF_TWO, ids=str)
async def test_while_a_hole_is_active_nothing_passes_whatever_else_begins_and_ends(
    order: tuple[int, ...], other: Weather
) -> None:
    async with linked() as (echo, link), AsyncExitStack() as ours:
        open_lines = [b"before\n"]
        _, swallowed, writer = await say(link, b"before\n")
        ours.callback(writer.close)
        for number, active in enumerate(steps(link, [HOLE, other], order)):
            line = b"%d\n" % number
            if DOWN in active:
                assert await is_refused(link)
            elif HOLE in active:
                blocked = link.counts.blocked_bytes
                _, writer = await asyncio.open_connection(HOST, link.port)
                ours.callback(writer.close)
                writer.write(line)
                await until(lambda: link.counts.blocked_bytes == blocked + len(line), "it is taken")  # noqa: B023
            else:
                answer, _, writer = await say(link, line)
                assert answer == line
                open_lines.append(line)
                ours.callback(writer.close)
        with pytest.raises(ConnectionError):
            await swallowed.read()
        assert [line for line in echo.asked if line != b"reset"] == open_lines


async def test_what_is_on_its_way_when_a_hole_begins_does_not_pass() -> None:
    async with linked() as (echo, link):
        with link.under(Weather(latency_s=1.0)):
            _, writer = await asyncio.open_connection(HOST, link.port)
            writer.write(b"late\n")
            await until(lambda: link.counts.delayed_chunks == 1, "it is on its way")
            with link.under(HOLE):
                await until(lambda: link.counts.blocked_bytes == 5, "it is lost")
        writer.close()
        assert b"late\n" not in echo.asked


async def test_who_cuts_no_longer_takes_no_cut_from_another() -> None:
    async with linked() as (_, link):
        first, second = link.cutting(1), link.cutting(2)
        cuts = first.__enter__(), second.__enter__()
        assert not link.is_clear
        first.__exit__(None, None, None)
        with pytest.raises(ConnectionError):
            await say(link, b"cut\n")
        assert [(each.done, each.left) for each in cuts] == [(0, 1), (1, 1)]
        second.__exit__(None, None, None)
        assert (link.is_cutting, link.is_clear) == (False, True)
        answer, _, writer = await say(link, b"passes\n")
        assert answer == b"passes\n"
        writer.close()
