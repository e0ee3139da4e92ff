"""source.sql and sink.sql on SQLite, PostgreSQL and MariaDB: the same laws on all three."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiomysql.connection import CLIENT

from app.adapters.sinks.sql import SqlLimits, engine_of, with_driver
from app.errors import TaskFailed
from tests.contract.test_http_sink import listening
from tests.helpers.databases import DatabaseServer, free_port, mariadb_server, postgresql_server
from tests.helpers.sinks import driver_url, sql_rows, sql_run
from tests.helpers.task_calls import Tasks, tasks

__all__ = ["mariadb_server", "postgresql_server"]

MANY = "select a.n + 10 * b.n as n from digits a, digits b"


@dataclass
class Database:
    """One database under test, and the task types."""

    url: str
    run: Tasks

    @property
    def name(self) -> str:
        return self.url.partition(":")[0]

    async def execute(self, *statements: str) -> None:
        await sql_run(driver_url(self.url), *statements)

    async def rows(self, table: str) -> list[dict[str, Any]]:
        return await sql_rows(driver_url(self.url), table)

    async def select(self, query: str, **more: Any) -> Any:
        return await self.run.run("source.sql", url=self.url, query=query, **more)

    async def refused(self, query: str, **more: Any) -> tuple[str, bool]:
        failed = await self.run.failure("source.sql", url=self.url, query=query, **more)
        return failed.type, failed.retryable


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'plant.db'}"
    else:
        server: DatabaseServer = request.getfixturevalue(f"{request.param}_server")
        url = server.url
    async with tasks(tmp_path, sql_statement_timeout_ms=20_000) as run:
        yield Database(url, run)


@pytest.fixture
async def plant(database: Database) -> AsyncIterator[Database]:
    """The database with readings of two devices and a table of ten digits."""
    tables = ("readings", "digits", "incidents", "notes", "events", "_headrace_effects")
    await database.execute(*(f"drop table if exists {table}" for table in tables))
    blob = {"postgresql": "bytea", "sqlite": "blob"}.get(database.name, "varbinary(20)")
    instant = "timestamptz" if database.name == "postgresql" else "datetime"
    await database.execute(
        f"create table readings (device varchar(50), at {instant}, value decimal(12,3), ok boolean, raw {blob})",
        "insert into readings values ('press-1', '2026-01-02 03:04:05', 91.125, true, null)",
        "insert into readings values ('press-1', '2026-01-02 03:05:05', 12.5, false, null)",
        "insert into readings values ('o''brien; drop table readings --', '2026-01-02 03:06:05', null, null, null)",
        "create table digits (n integer)",
        f"insert into digits values {', '.join(f'({n})' for n in range(10))}",
    )
    yield database
    await database.execute(*(f"drop table if exists {table}" for table in tables))


# ---- source.sql


async def test_parameters_are_bound_and_never_pasted(plant: Database) -> None:
    evil = "o'brien; drop table readings --"
    rows = await plant.select("select device from readings where device = :device", params={"device": evil})
    assert rows == [{"device": evil}]


async def test_parameters_come_from_the_input_unless_they_are_given(plant: Database) -> None:
    query = "select count(*) as n from readings where device = :device"
    context = {"input": {"device": "press-1", "unused": {"deep": []}}}
    assert await plant.select(query, context=context) == [{"n": 2}]
    assert await plant.select(query, context=context, params={"device": "nobody"}) == [{"n": 0}]


async def test_a_missing_parameter_is_named(plant: Database) -> None:
    failed = await plant.run.failure(
        "source.sql", url=plant.url, query="select 1 as x from digits where n in (:low, :high)", params={"low": 1}
    )
    assert (failed.type, failed.retryable, failed.detail) == ("MissingParameter", False, {"missing": ["high"]})


async def test_a_list_fills_an_in_clause(plant: Database) -> None:
    query = "select n from digits where n in :wanted order by n"
    assert await plant.select(query, params={"wanted": [3, 1, 99]}) == [{"n": 1}, {"n": 3}]
    assert await plant.select(query, params={"wanted": []}) == []


async def test_values_become_json(plant: Database) -> None:
    (row,) = await plant.select("select * from readings where value > :least", params={"least": 50})
    assert row["value"] == 91.125
    assert row["at"].startswith("2026-01-02")
    assert bool(row["ok"])
    assert row["raw"] is None
    (exact,) = await plant.select("select max(cast(value as decimal(12,3))) as v from readings", decimals="text")
    assert str(exact["v"]).startswith("91.125")


async def test_text_is_cast_where_the_database_wants_a_time(plant: Database) -> None:
    kind = {"postgresql": "timestamptz", "sqlite": "text"}.get(plant.name, "datetime")
    query = f"select count(*) as n from readings where at > cast(:since as {kind})"
    assert await plant.select(query, params={"since": "2026-01-02 03:04:30"}) == [{"n": 2}]


async def test_more_rows_than_allowed_fail_or_are_cut(plant: Database) -> None:
    assert await plant.refused(MANY, max_rows=99) == ("TooManyRows", False)
    assert len(await plant.select(MANY, max_rows=99, on_more="cut")) == 99
    assert len(await plant.select(MANY, max_rows=100)) == 100


async def test_more_bytes_than_allowed_fail(plant: Database, tmp_path: Path) -> None:
    async with tasks(tmp_path, source_bytes=2_000) as run:
        query = " union all ".join(f"select '{'x' * 500}' as t, {n} as n" for n in range(10))
        assert (await run.failure("source.sql", url=plant.url, query=query)).type == "TooLarge"


async def test_a_source_cannot_write(plant: Database) -> None:
    for statement in ("insert into digits values (10)", "delete from digits", "drop table digits"):
        kind, retryable = await plant.refused(statement)
        assert kind in {"SqlDenied", "SqlStatement"}
        assert not retryable
    assert len(await plant.rows("digits")) == 10


async def test_a_query_is_one_statement(plant: Database) -> None:
    for more in ("commit; delete from digits", "delete from digits"):
        failed = await plant.run.failure("source.sql", url=plant.url, query=f"select 1 as n; {more}")
        assert not failed.retryable
    assert len(await plant.rows("digits")) == 10


async def test_a_url_cannot_make_the_driver_send_files(mariadb_server: DatabaseServer) -> None:
    url = with_driver("", mariadb_server.url).update_query_dict(
        {"local_infile": "1", "read_default_file": "/nowhere/at-all.cnf"}
    )
    engine = engine_of(url, SqlLimits())
    try:
        async with engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            assert not raw.client_flag & (CLIENT.LOCAL_FILES | CLIENT.MULTI_STATEMENTS)
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    "query", ["selec 1", "select * from no_such_table", "select no_such_column from digits", "select n, n from digits"]
)
async def test_a_statement_that_is_wrong_is_not_tried_again(plant: Database, query: str) -> None:
    assert await plant.refused(query) == ("SqlStatement", False)


async def test_a_query_that_takes_too_long_is_given_up_and_leaves_the_database_usable(plant: Database) -> None:
    slow = {
        "sqlite": "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) as n from t",
        "postgresql": "select pg_sleep(60)",
        "mysql": "select sleep(60) as s",
    }[plant.name]
    assert await plant.refused(slow, timeout_s=0.2) == ("SqlTimeout", True)
    assert await plant.select("select max(n) as n from digits") == [{"n": 9}]


async def test_an_error_in_the_midst_of_a_result_is_a_failure(plant: Database) -> None:
    if plant.name == "postgresql":  # the others divide by zero without a word
        assert await plant.refused("select 1 / (n - 5) as x from digits order by n") == ("SqlData", False)


async def test_a_cancelled_query_leaves_the_database_usable(plant: Database) -> None:
    slow = {
        "sqlite": "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) as n from t",
        "postgresql": "select pg_sleep(60)",
        "mysql": "select sleep(60) as s",
    }[plant.name]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await plant.select(slow)
    assert await plant.select("select max(n) as n from digits") == [{"n": 9}]


async def test_a_database_that_is_not_there_is_worth_another_attempt(tmp_path: Path) -> None:
    async with tasks(tmp_path, sql_connect_timeout_ms=2_000) as run:
        urls = [f"{kind}://nobody:s3cret@127.0.0.1:{free_port()}/x" for kind in ("postgresql", "mysql")]
        for url in (*urls, f"sqlite:///{tmp_path}/missing/no.db"):
            failed = await run.failure("source.sql", url=url, query="select 1 as x")
            assert (failed.type, failed.retryable) == ("SqlUnavailable", True), failed
            assert "s3cret" not in str(failed)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
async def test_a_server_that_was_started_anew_costs_no_attempt(
    request: pytest.FixtureRequest, name: str, tmp_path: Path
) -> None:
    server: DatabaseServer = request.getfixturevalue(f"{name}_server")
    async with tasks(tmp_path) as run:
        query: dict[str, Any] = {"url": server.url, "query": "select 1 as x"}
        await asyncio.gather(*(run.run("source.sql", **query) for _ in range(3)))
        await asyncio.to_thread(server.stop)
        failed = await run.failure("source.sql", **query)
        assert (failed.type, failed.retryable) == ("SqlUnavailable", True)
        await asyncio.to_thread(server.start)
        assert await asyncio.gather(*(run.run("source.sql", **query) for _ in range(3))) == [[{"x": 1}]] * 3


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
@pytest.mark.parametrize(("type_", "asked"), [("source.sql", {"query": "select 1 as x"}), ("sink.sql", {"table": "t"})])
async def test_a_server_that_falls_silent_is_given_up_and_one_that_speaks_nonsense_is_told(
    tmp_path: Path, kind: str, type_: str, asked: dict[str, str]
) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await reader.read(1)
        writer.close()

    async with tasks(tmp_path) as run:
        for talk, wanted in ((silent, {"SqlTimeout"}), (nonsense, {"SqlUnavailable", "SqlFailed"})):
            async with listening(talk) as address:
                url = f"{kind}://nobody:s3cret@{address.removeprefix('http://').rstrip('/')}/x"
                failed = await run.failure(type_, [{"a": 1}], url=url, timeout_s=0.5 if talk is silent else 20, **asked)
                ended.set()
            assert failed.type in wanted
            assert failed.retryable
            assert "s3cret" not in str(failed)


async def test_a_wrong_password_is_not_worth_another_attempt(
    postgresql_server: DatabaseServer, mariadb_server: DatabaseServer, tmp_path: Path
) -> None:
    async with tasks(tmp_path) as run:
        for server in (postgresql_server, mariadb_server):
            url = server.url.replace("s3cret-of-the-test", "wr0ng")
            failed = await run.failure("source.sql", url=url, query="select 1 as x")
            assert (failed.type, failed.retryable) == ("SqlDenied", False), failed


async def test_a_url_of_no_database_is_refused(tmp_path: Path) -> None:
    async with tasks(tmp_path) as run:
        for url in ("oracle://x", "no url at all", "postgresql", "mysql://h:port/x", "postgresql://h:99999/x"):
            failed = await run.failure("source.sql", url=url, query="select 1 as x")
            assert (failed.type, failed.retryable) == ("InvalidUrl", False)


async def test_only_allowed_sqlite_files_are_opened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        await sql_run(driver_url(f"sqlite:///{folder}/x.db"), "create table t (n integer)", "insert into t values (1)")
    (inside / "link.db").symlink_to(outside / "x.db")
    async with tasks(inside) as run:
        assert await run.run("source.sql", url=f"sqlite:///{inside}/x.db", query="select n from t") == [{"n": 1}]
        for name in (
            f"{outside}/x.db",
            f"{inside}/../out/x.db",
            f"{inside}/link.db",
            f"file:{outside}/x.db?uri=true",
            f"{inside}/x.db?vfs=unix-none",
            f"{outside}/new.db",
        ):
            for failed in (
                await run.failure("source.sql", url=f"sqlite:///{name}", query="select n from t"),
                await run.failure("sink.sql", [{"n": 2}], url=f"sqlite:///{name}", table="t", create=True),
            ):
                assert (failed.type, failed.retryable) == ("PathRefused", False), name
                assert str(tmp_path) not in failed.message
        attach = f"attach database '{outside}/x.db' as other"
        failed = await run.failure("source.sql", url=f"sqlite:///{inside}/x.db", query=attach)
        assert not failed.retryable
        assert "too many attached" in failed.message
    assert not (outside / "new.db").exists()


# ---- sink.sql

ROWS = [
    {"device": "press-1", "at": 1, "value": 91.5, "note": "heiß 🔥", "tags": ["a", {"b": 1}]},
    {"device": "press-2", "at": 1, "value": 12, "note": None, "tags": None},
]


async def test_a_table_is_made_for_its_rows_and_filled(plant: Database) -> None:
    told = await write(plant, "e/t", ROWS, url=plant.url, table="incidents", key=["device", "at"], create=True)
    assert told == {"table": "incidents", "rows": 2, "repeated": False}
    found = {row["device"]: row for row in await plant.rows("incidents")}
    assert found["press-1"]["value"] == 91.5
    assert found["press-1"]["note"] == "heiß 🔥"
    assert found["press-1"]["tags"] == '["a",{"b":1}]'
    assert found["press-2"]["value"] == 12.0


async def test_a_row_of_the_same_key_is_replaced_and_columns_it_does_not_name_stay(plant: Database) -> None:
    into = {"url": plant.url, "table": "incidents", "key": ["device", "at"]}
    await write(plant, "e/t", ROWS, create=True, **into)
    changed = [{"device": "press-1", "at": 1, "value": 1}, {"device": "press-1", "at": 1, "value": 2}]
    await write(plant, "e/t", changed, **into)
    found = {row["device"]: row for row in await plant.rows("incidents")}
    assert len(found) == 2
    assert (found["press-1"]["value"], found["press-1"]["note"]) == (2.0, "heiß 🔥")


async def test_without_a_key_an_effect_is_made_once_and_another_again(plant: Database) -> None:
    await plant.execute("create table notes (note varchar(50))")
    sink = {"url": plant.url, "table": "notes"}
    first = await write(plant, "execution-1/store", [{"note": "x"}, {"note": "x"}], **sink)
    again = await write(plant, "execution-1/store", [{"note": "x"}, {"note": "x"}], **sink)
    other = await write(plant, "execution-2/store", [{"note": "x"}], **sink)
    assert [told["repeated"] for told in (first, again, other)] == [False, True, False]
    assert len(await plant.rows("notes")) == 3


async def write(plant: Database, effect: str, rows: list[Any], **params: Any) -> Any:
    return await plant.run.run("sink.sql", rows, effect=effect, **params)


async def test_attempts_at_the_same_time_make_one_effect(plant: Database) -> None:
    await plant.execute("create table notes (note varchar(50))")
    effects = [f"execution-{number % 3}/store" for number in range(12)]
    told = await asyncio.gather(
        *(write(plant, effect, [{"note": effect}], url=plant.url, table="notes") for effect in effects)
    )
    assert sum(not one["repeated"] for one in told) == 3
    assert sorted(row["note"] for row in await plant.rows("notes")) == sorted(set(effects))


async def test_an_effect_that_failed_leaves_nothing_and_can_be_made_again(plant: Database) -> None:
    await plant.execute("create table notes (note varchar(5) not null)")
    sink = {"url": plant.url, "table": "notes"}
    if plant.name != "sqlite":  # which knows no lengths
        failed = await failure(plant, [{"note": "ok"}, {"note": "much too long"}], **sink)
        assert (failed.type, failed.retryable) == ("SqlData", False)
    failed = await failure(plant, [{"note": "ok"}, {"note": None}], **sink)
    assert (failed.type, failed.retryable) == ("SqlData", False)
    assert await plant.rows("notes") == []
    assert (await write(plant, "e/t", [{"note": "ok"}], **sink))["repeated"] is False
    assert len(await plant.rows("notes")) == 1


async def failure(plant: Database, rows: list[Any], **params: Any) -> TaskFailed:
    return await plant.run.failure("sink.sql", rows, effect="e/t", **params)


async def test_what_does_not_fit_the_table_is_named(plant: Database) -> None:
    await plant.execute("create table events (id integer primary key, at date, n integer, note varchar(20))")
    sink = {"url": plant.url, "table": "events", "key": ["id"]}
    failed = await failure(plant, [{"id": 1, "colour": "red", "weight": 1}], **sink)
    assert (failed.type, failed.detail["unknown"]) == ("UnknownColumn", ["colour", "weight"])
    assert (await write(plant, "e/t", [{"id": 1, "colour": "red"}], unknown_columns="drop", **sink))["rows"] == 1
    failed = await failure(plant, [{"id": 1}, {"id": 2, "n": "many"}], **sink)
    assert (failed.type, failed.detail) == ("SqlData", {"row": 1, "column": "n"})
    assert (await failure(plant, [{"id": 1, "at": "yesterday"}], **sink)).type == "SqlData"
    assert (await failure(plant, [{"id": None}], **sink)).type == "InvalidRow"
    assert (await failure(plant, [42], **sink)).type == "InvalidRow"
    assert (
        await failure(plant, [{"n": 1, "note": "x"}], url=plant.url, table="events", key=["n"])
    ).type == "NoUniqueKey"
    assert (await failure(plant, [{"n": 1}], url=plant.url, table="nowhere", key=["n"])).type == "SqlStatement"
    assert (await failure(plant, [{"n": 1}], url=plant.url, table="a.b.c.d\0", key=["n"])).type == "InvalidParams"


async def test_json_values_fit_typed_columns(plant: Database) -> None:
    instant = "timestamptz" if plant.name == "postgresql" else "datetime"
    await plant.execute(
        f"create table events (id integer primary key, at {instant}, d date, n numeric(10,2), f boolean)"
    )
    rows = [
        {"id": 1, "at": "2026-01-02T03:04:05+01:00", "d": "2026-01-02", "n": "12.30", "f": True},
        {"id": 2, "at": 1_767_323_045_000, "d": None, "n": 7, "f": 0},
    ]
    await write(plant, "e/t", rows, url=plant.url, table="events", key=["id"])
    found = await plant.select("select * from events order by id")
    assert found[0]["at"].startswith("2026-01-02T02:04:05") or found[0]["at"].startswith("2026-01-02 02:04:05")
    assert (found[0]["d"], found[0]["n"], bool(found[0]["f"])) == ("2026-01-02", 12.3, True)
    assert "2026-01-02" in found[1]["at"]
    assert (found[1]["d"], found[1]["n"], bool(found[1]["f"])) == (None, 7, False)


async def test_names_from_rows_are_quoted(plant: Database) -> None:
    table = f"t{uuid4().hex[:8]}"
    evil = 'a"b; drop table digits --'
    await write(plant, "e/t", [{"id": 1, evil: 2, "select": 3}], url=plant.url, table=table, key=["id"], create=True)
    (row,) = await plant.rows(table)
    assert (row[evil], row["select"]) == (2, 3)
    assert len(await plant.rows("digits")) == 10
    await plant.execute(f"drop table {table}")


async def test_many_rows_of_many_columns_fit_one_call(plant: Database) -> None:
    rows = [{"id": number, **{f"c{column}": column for column in range(40)}} for number in range(2_000)]
    await write(plant, "e/t", rows, url=plant.url, table="events", key=["id"], create=True)
    assert await plant.select("select count(*) as n from events") == [{"n": 2_000}]


async def test_a_table_that_changed_is_looked_up_again(plant: Database) -> None:
    sink = {"url": plant.url, "table": "events", "key": ["id"]}
    await plant.execute("create table events (id integer primary key)")
    await write(plant, "e/t", [{"id": 1}], **sink)
    await plant.execute("alter table events add column note varchar(20)")
    assert (await failure(plant, [{"id": 1, "note": "x"}], **sink)).type == "UnknownColumn"
    assert (await write(plant, "e/t", [{"id": 1, "note": "x"}], **sink))["rows"] == 1
