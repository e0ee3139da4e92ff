"""Laws of the HTTP clients of tasks over real connections: who waits, who replaces, who closes."""

import asyncio
import contextlib
from pathlib import Path

import httpx
import pytest

from app.adapters.tasks import http_clients
from app.adapters.tasks.http_clients import HttpClients
from app.errors import TaskFailed
from tests.contract.test_http_sink import listening
from tests.helpers.kafka import until
from tests.helpers.task_calls import tasks

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n7"


class Server:
    """Answers each request once it is told to; counts the connections that are open."""

    def __init__(self) -> None:
        self.open = 0
        self.asked = 0
        self.answers = asyncio.Event()
        self.takes_s = 0.0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await reader.readuntil(b"\r\n\r\n"):
                    self.asked += 1
                    await self.answers.wait()
                    await asyncio.sleep(self.takes_s)
                    writer.write(ANSWER)
        finally:
            self.open -= 1
            writer.close()


async def get(clients: HttpClients, url: str) -> bytes:
    async with clients.turn() as client:
        return (await client.get(url)).content


async def test_a_client_is_replaced_after_many_that_were_broken_off_and_closed_by_nobody_who_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_clients, "REPLACED_AFTER", 3)
    built: list[httpx.AsyncClient] = []

    def build() -> httpx.AsyncClient:
        built.append(httpx.AsyncClient(timeout=None))
        return built[-1]

    server, clients = Server(), HttpClients(build, 10)
    async with listening(server.talk) as url:
        lasting = asyncio.create_task(get(clients, url))
        given_up = [asyncio.create_task(get(clients, url)) for _ in range(3)]
        await until(lambda: server.asked == 4, "all are under way")
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        later = asyncio.create_task(get(clients, url))
        await until(lambda: server.asked == 5, "the next one has been sent")
        assert len(built) == 2
        assert not built[0].is_closed, "one still uses it"
        server.answers.set()
        assert await lasting == await later == b"7"
        await until(lambda: built[0].is_closed, "the old one is closed")
        assert not built[1].is_closed
        await clients.close()
        await until(lambda: server.open == 0, "no connection is left")


async def test_requests_that_end_by_their_time_out_count_as_broken_off(tmp_path: Path) -> None:
    server = Server()
    async with listening(server.talk) as url, tasks(tmp_path) as run:
        for _ in range(3):
            assert (await run.failure("source.http", url=url, timeout_s=0.05)).type == "HttpTimeout"
        shared = run.resources.http._shared
        assert shared is not None
        assert shared.broken_off == 3
        server.answers.set()


async def test_closing_ends_those_under_way_and_those_that_wait() -> None:
    server, clients = Server(), HttpClients(httpx.AsyncClient, 1)
    async with listening(server.talk) as url:
        under_way, waiting = (asyncio.create_task(get(clients, url)) for _ in range(2))
        await until(lambda: server.asked == 1, "one is under way")
        await clients.close()
        with pytest.raises(httpx.HTTPError):
            await under_way
        with pytest.raises(TaskFailed, match="the process stops"):
            await waiting
        server.answers.set()
        await until(lambda: server.open == 0, "no connection is left")


async def test_what_a_request_waits_for_a_connection_is_no_part_of_its_time_out(tmp_path: Path) -> None:
    """300 requests through 2 connections to a server that takes 10 ms: all wait longer than they may take."""
    server = Server()
    server.answers.set()
    server.takes_s = 0.01
    async with listening(server.talk) as url, tasks(tmp_path, http_connections=2) as run:
        calls = [run.run("source.http", url=url, timeout_s=1.0) for _ in range(300)]
        assert await asyncio.gather(*calls) == [7] * 300
    assert server.asked == 300, "none was given up and came again"
