"""Laws of streams of events without sockets: pages, resumption, and clients that take nothing."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.adapters.execution_reader import ExecutionReader
from app.adapters.execution_store import ExecutionStore
from app.http.execution_index import Watcher
from app.http.execution_stream import StreamRoutes
from config.http import ExecutionsSettings
from tests.helpers.executions import ended, run, scheduled, started


class Index:
    """The index without its process: what is told is told by the test."""

    def __init__(self, folder: Path) -> None:
        self.store = ExecutionStore(folder)
        self.reader = ExecutionReader(folder)
        self.watchers: set[Watcher] = set()
        self.reads = 0

    async def row(self, execution_id: str) -> Any:
        return self.reader.get(execution_id)

    async def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        self.reads += 1
        return question(*arguments)

    @asynccontextmanager
    async def watching(self, _: str) -> Any:
        watcher = Watcher()
        self.watchers.add(watcher)
        watcher.told()
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)

    def take(self, *runs: bytes) -> None:
        self.store.apply([], runs, [])
        for watcher in self.watchers:
            watcher.told()


class Client:
    """One request; `taking` unset makes it take nothing more after the head."""

    def __init__(self, app: StreamRoutes, last: str | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self.taking = asyncio.Event()
        self.taking.set()
        self.gone = asyncio.Event()
        headers = [] if last is None else [(b"last-event-id", last.encode())]
        scope = {"type": "http", "method": "GET", "path": "/api/v1/executions/a/stream", "headers": headers}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self.taking.wait()
        self.sent.append(message)

    @property
    def ids(self) -> list[int]:
        text = b"".join(message.get("body", b"") for message in self.sent).decode()
        return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]

    async def until(self, enough: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not enough():  # noqa: ASYNC110 - a condition on another object's state
                await asyncio.sleep(0)

    async def end(self) -> None:
        async with asyncio.timeout(20):
            await self.task


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path)
    yield made
    made.reader.close()
    made.store.close()


def _routes(index: Index, **settings: Any) -> StreamRoutes:
    async def nowhere(*_: Any) -> None:
        raise AssertionError("a stream is for the stream's routes")

    return StreamRoutes(nowhere, index, ExecutionsSettings(**settings))  # type: ignore[arg-type]


async def test_a_long_history_comes_in_pages_and_whole(index: Index) -> None:
    index.take(run("a", started(), *(scheduled(n, attempt=n) for n in range(1, 100)), ended(100)))
    client = Client(_routes(index, stream_page_events=7))
    await client.end()
    assert client.ids == list(range(101))
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}
    assert max(message.get("body", b"").count(b"id: ") for message in client.sent) == 7


async def test_what_happens_while_a_page_is_sent_is_not_missed(index: Index) -> None:
    index.take(run("a", started()))
    client = Client(_routes(index, stream_page_events=1))
    for seq in range(1, 30):
        index.take(run("a", scheduled(seq, attempt=seq)))
        await asyncio.sleep(0)
    index.take(run("a", ended(30)))
    await client.end()
    assert client.ids == list(range(31))


async def test_a_client_that_takes_nothing_is_let_go_and_nothing_is_read_for_it(index: Index) -> None:
    index.take(run("a", started(), *(scheduled(n, attempt=n) for n in range(1, 100))))
    routes = _routes(index, stream_page_events=1, stream_stalled_s=0.2)
    client = Client(routes)
    client.taking.clear()
    await client.end()
    assert (client.ids, index.reads, index.watchers, routes._streams) == ([], 1, set(), set())


async def test_a_client_that_leaves_is_forgotten(index: Index) -> None:
    index.take(run("a", started()))
    routes = _routes(index)
    client = Client(routes)
    await client.until(lambda: client.ids)
    client.gone.set()
    await client.end()
    assert (index.watchers, routes._streams) == (set(), set())


async def test_a_stop_ends_streams_whole(index: Index) -> None:
    index.take(run("a", started()))
    routes = _routes(index)
    client = Client(routes)
    await client.until(lambda: client.ids)
    routes.close()
    await client.end()
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 20, ""])
async def test_a_last_event_that_is_no_number_is_refused(index: Index, last: str) -> None:
    index.take(run("a", started()))
    client = Client(_routes(index), last)
    await client.end()
    assert client.sent[0]["status"] == 400
