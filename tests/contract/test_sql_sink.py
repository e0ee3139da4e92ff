"""What only databases do: restarts, locks, refusals of their own, wrong passwords."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from agents.sink import Gathering, SinkState, sink
from app.adapters.sinks.rows import rows_of
from app.adapters.sinks.sql import SqlLimits, SqlSink
from app.domain.backoff import BackoffPolicy
from app.errors import SinkRejected, SinkUnavailable, UserError
from tests.helpers.databases import PASSWORD, DatabaseServer, free_port, mariadb_server, postgresql_server
from tests.helpers.sinks import (
    FixedClock,
    MemorySink,
    a_rollup,
    driver_url,
    from_columns,
    sql_rows,
    sql_run,
)
from tests.helpers.streams import Batch, Outbox, a_record

__all__ = ["mariadb_server", "postgresql_server"]

SERVERS = ("postgresql", "mariadb")


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest) -> DatabaseServer:
    """Give a server without our tables."""
    running: DatabaseServer = request.getfixturevalue(f"{request.param}_server")
    drops = [f"DROP TABLE IF EXISTS {kind}" for kind in ("rollups", "signals", "readings")]
    await sql_run(driver_url(running.url), *drops)
    return running


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_a_restart_of_the_database_loses_and_doubles_nothing(server: DatabaseServer, *, kill: bool) -> None:
    """The server goes away after the third batch and comes back at the fourth failed attempt."""
    batches = [Batch([a_record(a_rollup(i), offset=i) for i in range(n * 50, n * 50 + 50)]) for n in range(8)]
    states: list[SinkState] = []
    pauses: list[float] = []

    async def stream() -> AsyncIterator[Batch]:
        for number, batch in enumerate(batches):
            if number == 3:
                await asyncio.to_thread(server.stop, kill=kill)
            yield batch

    async def pause(wait_s: float) -> None:
        pauses.append(wait_s)
        if len(pauses) == 4:
            await asyncio.to_thread(server.start)

    target = SqlSink("t", server.url, SqlLimits(connect_timeout_s=5, write_timeout_s=10))
    try:
        await sink(
            stream(),
            sink=target,
            publisher=Outbox(),
            to_rows=rows_of(["device.rollups"]),
            policy=BackoffPolicy(first_ms=10, jitter=0.0),
            clock=FixedClock(),
            on_state=states.append,
            gathering=Gathering(rows=50, wait_ms=0),
            pause=pause,
        )
    finally:
        await target.close()
        if server.process is None:
            server.start()
    assert pauses[:4] == [0.01, 0.02, 0.04, 0.08]
    assert [batch.acks for batch in batches] == [1] * 8
    records = await sql_rows(driver_url(server.url), "rollups")
    assert sorted(record["source_offset"] for record in records) == list(range(400))
    assert [s.pending_records for s in states if s.phase == "retrying"] == [50] * len(pauses)


async def test_what_the_database_alone_refuses_is_found_by_halving(server: DatabaseServer) -> None:
    target = SqlSink("t", server.url)
    await target.open()
    narrow = "ALTER COLUMN unit TYPE varchar(8)" if server.name == "postgresql" else "MODIFY unit VARCHAR(8)"
    await sql_run(driver_url(server.url), f"ALTER TABLE rollups {narrow}")
    rows = [a_rollup(i, unit="x" * 20 if i in {0, 17, 99} else "CEL") for i in range(100)]
    with pytest.raises(SinkRejected) as caught:
        await target.write(rows)
    await target.close()
    assert sorted(caught.value.reasons) == [0, 17, 99]
    assert all("too long" in reason for reason in caught.value.reasons.values())
    records = await sql_rows(driver_url(server.url), "rollups")
    assert {record["unit"] for record in records} == {"CEL"}
    assert len(records) == 97


async def test_where_the_newest_version_is_refused_the_one_before_is_kept(server: DatabaseServer) -> None:
    target = SqlSink("t", server.url)
    await target.open()
    narrow = "ALTER COLUMN unit TYPE varchar(8)" if server.name == "postgresql" else "MODIFY unit VARCHAR(8)"
    await sql_run(driver_url(server.url), f"ALTER TABLE rollups {narrow}")
    with pytest.raises(SinkRejected) as caught:
        await target.write([a_rollup(0, 1), a_rollup(0, 2), a_rollup(0, 3, unit="x" * 20)])
    await target.close()
    assert list(caught.value.reasons) == [2]
    assert [record["revision"] for record in await sql_rows(driver_url(server.url), "rollups")] == [2]


async def test_a_locked_table_is_waited_for_and_then_retried(server: DatabaseServer) -> None:
    target = SqlSink("t", server.url, SqlLimits(connect_timeout_s=5, write_timeout_s=0.3))
    await target.open()
    await target.write([a_rollup(0, 0)])
    engine = create_async_engine(driver_url(server.url))
    async with engine.begin() as holder:
        await holder.execute(text("UPDATE rollups SET gaps = 1"))
        with pytest.raises(SinkUnavailable):
            await target.write([a_rollup(0, 1)])
    await engine.dispose()
    await target.write([a_rollup(0, 1)])
    await target.close()
    assert [record["revision"] for record in await sql_rows(driver_url(server.url), "rollups")] == [1]


async def test_two_writers_of_the_same_rows_leave_the_highest_versions(server: DatabaseServer) -> None:
    targets = [SqlSink(f"t{n}", server.url) for n in range(2)]
    for target in targets:
        await target.open()
    ways = (1, -1)

    async def insist(target: SqlSink, revision: int, way: int) -> None:
        rows = [a_rollup(i, revision) for i in range(200)][::way]
        while True:
            try:
                await target.write(rows)
            except SinkUnavailable:
                continue
            return

    for revision in range(0, 10, 2):
        await asyncio.gather(
            *(insist(target, revision + n, way) for n, (target, way) in enumerate(zip(targets, ways, strict=True)))
        )
    for target in targets:
        await target.close()
    assert {record["revision"] for record in await sql_rows(driver_url(server.url), "rollups")} == {9}


async def test_a_table_that_was_dropped_is_created_again(server: DatabaseServer) -> None:
    target = SqlSink("t", server.url)
    await target.write([a_rollup(0)])
    await sql_run(driver_url(server.url), "DROP TABLE rollups")
    with pytest.raises(SinkUnavailable):
        await target.write([a_rollup(1)])
    await target.write([a_rollup(1)])
    await target.close()
    assert len(await sql_rows(driver_url(server.url), "rollups")) == 1


async def test_a_wrong_password_is_told_without_telling_a_password(server: DatabaseServer) -> None:
    target = SqlSink("t", server.url.replace(PASSWORD, "not-the-pass-word"))
    with pytest.raises(SinkUnavailable) as caught:
        await target.open()
    await target.close()
    assert "not-the-pass-word" not in str(caught.value)
    assert "headrace" in str(caught.value)


async def test_nobody_at_the_address_is_unavailable() -> None:
    for scheme in SERVERS:
        url = f"{scheme}://user:top-secret@127.0.0.1:{free_port()}/database"
        target = SqlSink("t", url, SqlLimits(connect_timeout_s=2))
        with pytest.raises(SinkUnavailable) as caught:
            await target.write([a_rollup(0)])
        await target.close()
        assert "top-secret" not in str(caught.value)


async def test_values_are_not_in_the_message_of_a_failure(server: DatabaseServer) -> None:
    target = SqlSink("t", server.url)
    await target.open()
    await sql_run(driver_url(server.url), "DROP TABLE rollups")
    with pytest.raises(SinkUnavailable) as caught:
        await target.write([a_rollup(0, unit="SECRET-VALUE")])
    await target.close()
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "SECRET-VALUE" not in str(chain)
        chain = chain.__cause__


@pytest.mark.parametrize("url", ["", "not a url", "oracle://host/x", "http://host/"])
def test_a_url_of_no_database_we_know_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError):
        SqlSink("t", url)


async def test_a_locked_sqlite_file_is_unavailable_and_then_written(tmp_path: Path) -> None:
    file = tmp_path / "headrace.db"
    target = SqlSink("t", f"sqlite:///{file}", SqlLimits(connect_timeout_s=0.05))
    await target.open()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SinkUnavailable, match="locked"):
        await target.write([a_rollup(0)])
    other.execute("ROLLBACK")
    other.close()
    await target.write([a_rollup(0)])
    await target.close()
    assert len(await sql_rows(driver_url(f"sqlite:///{file}"), "rollups")) == 1


async def test_sqlite_syncs_each_batch_and_lets_readers_read(tmp_path: Path) -> None:
    target = SqlSink("t", f"sqlite:///{tmp_path}/headrace.db")
    await target.open()
    assert target._engine is not None
    pragmas = ("PRAGMA journal_mode", "PRAGMA synchronous")
    async with target._engine.connect() as connection:
        found = [(await connection.exec_driver_sql(pragma)).scalar() for pragma in pragmas]
    await target.close()
    assert found == ["wal", 2]


async def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    target = SqlSink("t", f"sqlite:///{tmp_path}/file/headrace.db")
    with pytest.raises(SinkUnavailable):
        await target.open()
    await target.close()


batches = st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=8), max_size=6)


@settings(max_examples=25, deadline=None)
@given(batches)
def test_any_order_of_versions_leaves_what_the_double_holds(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]]
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/headrace.db"

    async def both() -> tuple[Any, Any]:
        real, double = SqlSink("t", url, SqlLimits(sqlite_synchronous="NORMAL")), MemorySink()
        await real.open()
        for batch in batches:
            rows = [a_rollup(index, revision) for index, revision in batch]
            await real.write(rows)
            await double.write(rows)
        await real.close()
        records = await sql_rows(driver_url(url), "rollups")
        return dict(from_columns("rollups", record) for record in records), double.stored

    stored, expected = asyncio.run(both())
    assert stored == expected
