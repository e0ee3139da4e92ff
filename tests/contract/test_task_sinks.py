"""The laws that every sink of tasks obeys: an effect is made once, whoever asks for it and however often."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from app.errors import TaskFailed
from tests.helpers.databases import mariadb_server, postgresql_server
from tests.helpers.kafka import read_topic
from tests.helpers.sinks import driver_url, sql_rows, sql_run
from tests.helpers.task_calls import NOBODY, Tasks, tasks

__all__ = ["mariadb_server", "postgresql_server"]

KINDS = [
    "sqlite",
    "postgresql",
    "mariadb",
    "sqlite-key",
    "postgresql-key",
    "mariadb-key",
    "jsonl",
    "json",
    "parquet",
    "http",
    "kafka",
]


@dataclass
class Destination:
    """A sink under test: how it is called, and the notes of all effects that lie there."""

    type_: str
    params: dict[str, Any]
    notes: Callable[[], Awaitable[list[str]]]
    new: Callable[[], Awaitable[Tasks]]
    refused: list[Any] = field(default_factory=lambda: [object()])

    async def write(self, run: Tasks, effect: str, *notes: str) -> Any:
        rows = [{"id": f"{effect}/{note}", "note": note} for note in notes]
        return await run.run(self.type_, rows, effect=effect, **self.params)


class Receiver:
    """A webhook that makes an effect once for each Idempotency-Key, as sink.http asks of it."""

    def __init__(self) -> None:
        self.effects: dict[str, list[Any]] = {}
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(fields["content-length"]))
            self.effects.setdefault(fields["idempotency-key"], json.loads(body))
            writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.fixture(params=KINDS)
async def destination(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Destination]:
    kind = request.param
    bootstrap = request.getfixturevalue("broker") if kind == "kafka" else NOBODY
    async with AsyncExitStack() as stack:

        async def new() -> Tasks:
            return await stack.enter_async_context(tasks(tmp_path, bootstrap))

        if kind == "http":
            receiver = Receiver()
            server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
            await stack.enter_async_context(server)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

            async def told() -> list[str]:
                return sorted(row["note"] for rows in receiver.effects.values() for row in rows)

            yield Destination("sink.http", {"url": url}, told, new)
        elif kind == "kafka":
            topic = request.getfixturevalue("new_topic")(partitions=2)

            async def recorded() -> list[str]:
                found = [one for some in (await read_topic(bootstrap, topic)).values() for one in some]
                once = {dict(one.headers)["idempotency-key"]: json.loads(one.value)["note"] for one in found}
                return sorted(once.values())

            yield Destination("sink.kafka", {"topic": topic}, recorded, new)
        elif kind in {"jsonl", "json", "parquet"}:
            path = "out.jsonl" if kind == "jsonl" else "out"

            async def filed() -> list[str]:
                return await asyncio.to_thread(_filed, tmp_path / path, kind)

            yield Destination("sink.file", {"path": path, "format": kind}, filed, new)
        else:
            async for one in _database(request, kind, tmp_path, new):
                yield one


async def _database(
    request: pytest.FixtureRequest, kind: str, folder: Path, new: Callable[[], Awaitable[Tasks]]
) -> AsyncIterator[Destination]:
    name, _, keyed = kind.partition("-")
    url = f"sqlite:///{folder}/x.db" if name == "sqlite" else request.getfixturevalue(f"{name}_server").url
    await sql_run(driver_url(url), "drop table if exists effects_here", "drop table if exists _headrace_effects")

    async def stored() -> list[str]:
        try:
            return sorted(row["note"] for row in await sql_rows(driver_url(url), "effects_here"))
        except Exception as error:
            if "effects_here" in str(error):  # no table yet, no effect
                return []
            raise

    params = {"url": url, "table": "effects_here", "create": True, "key": ["id"] if keyed else []}
    yield Destination("sink.sql", params, stored, new, refused=[{"id": None}] if keyed else [1])


def _filed(path: Path, kind: str) -> list[str]:
    if not path.exists():
        return []
    if kind == "jsonl":
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    elif kind == "json":
        rows = [row for file in path.iterdir() for row in json.loads(file.read_bytes())]
    else:
        rows = [row for file in path.iterdir() for row in pq.ParquetFile(file).read().to_pylist()]
    return sorted(row["note"] for row in rows)


async def test_the_same_call_twice_is_one_effect(destination: Destination) -> None:
    run = await destination.new()
    first = await destination.write(run, "e1/t", "a", "b")
    again = await destination.write(run, "e1/t", "a", "b")
    assert await destination.notes() == ["a", "b"]
    assert first["rows"] == again["rows"] == 2


async def test_another_process_repeats_nothing(destination: Destination) -> None:
    await destination.write(await destination.new(), "e1/t", "a")
    await destination.write(await destination.new(), "e1/t", "a")
    assert await destination.notes() == ["a"]


async def test_effects_of_other_keys_are_all_made(destination: Destination) -> None:
    run = await destination.new()
    for effect in ("e1/t", "e2/t", "e1/t/0", "e1/t/1"):
        await destination.write(run, effect, "a")
    assert await destination.notes() == ["a"] * 4


async def test_attempts_at_once_are_one_effect(destination: Destination) -> None:
    runs = [await destination.new() for _ in range(2)]
    outcomes = await asyncio.gather(
        *(destination.write(runs[n % 2], f"e{n % 4}/t", f"note {n % 4}") for n in range(12)), return_exceptions=True
    )
    # Of two that make the table or write at once, one may be told to come again.
    assert all(
        not isinstance(one, BaseException) or (isinstance(one, TaskFailed) and one.retryable) for one in outcomes
    )
    for n in range(4):
        await destination.write(runs[0], f"e{n}/t", f"note {n}")
    assert await destination.notes() == [f"note {n}" for n in range(4)]


async def test_no_rows_are_no_effect(destination: Destination) -> None:
    run = await destination.new()
    assert (await destination.write(run, "e1/t"))["rows"] == 0
    assert await destination.notes() == []


async def test_rows_that_are_refused_leave_nothing_behind(destination: Destination) -> None:
    run = await destination.new()
    rows = [{"id": "1", "note": "good"}, *destination.refused]
    failed = await run.failure(destination.type_, rows, effect="e1/t", **destination.params)
    assert not failed.retryable
    assert await destination.notes() == []
    await destination.write(run, "e1/t", "good")
    assert await destination.notes() == ["good"]
