"""The SQL sink: batches of rows as upserts into SQLite, PostgreSQL, MySQL or MariaDB."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.adapters.sinks.sql_tables import Upsert, tables_for, upsert_for
from app.domain.sink_rows import SHAPES, refusal
from app.errors import SinkRejected, SinkUnavailable, UserError
from app.ports import SinkRow
from config.redact import redact_text

log = logging.getLogger(__name__)

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "mysql": "mysql+aiomysql",
    "mariadb": "mysql+aiomysql",
}
# SQLSTATE classes that blame the values: data exception, integrity violation, program limit (a key too long).
DATA_FAULT_CLASSES = ("22", "23", "54")
# MariaDB and MySQL drop a connection that sends more than max_allowed_packet; a smaller part may pass.
MYSQL_PACKET_TOO_LARGE = 1153


@dataclass(frozen=True, slots=True)
class SqlLimits:
    """Time limits, and how hard SQLite syncs (`synchronous`: FULL loses nothing at a power cut)."""

    connect_timeout_s: float = 5.0
    write_timeout_s: float = 30.0
    sqlite_synchronous: str = "FULL"


class _DataFault(Exception):
    """The database refuses a value of the batch."""


class SqlSink:
    """Upserts rows by their identity, one transaction a batch; a row of a lower version changes nothing.

    A batch that holds a row the database refuses is halved until that row stands alone: the others
    become durable, that one comes back in `SinkRejected`. Only what the database says about values
    is a refusal; all else (a lock, a missing right, a full disk, no connection) is `SinkUnavailable`.
    """

    def __init__(self, name: str, url: str, limits: SqlLimits | None = None) -> None:
        self.name = name
        self._url = with_driver(name, url)
        self._limits = limits or SqlLimits()
        self._engine: AsyncEngine | None = None
        self._upserts: dict[str, Upsert] | None = None

    async def open(self) -> None:
        """Connect and create the tables that are missing. Raises `SinkUnavailable`."""
        if self._upserts is not None:
            return
        try:
            with self._translated("cannot be opened"):
                engine = self._engine = self._engine or engine_of(self._url, self._limits)
                async with (
                    asyncio.timeout(self._limits.connect_timeout_s + self._limits.write_timeout_s),
                    engine.begin() as connection,
                ):
                    # The dialect knows MariaDB from MySQL only once it is connected.
                    tables = tables_for(connection.dialect)
                    await connection.run_sync(next(iter(tables.values())).metadata.create_all)
        except _DataFault as error:
            # Two processes that create the same table at once: one of them breaks a unique index of the catalogue.
            raise SinkUnavailable(f"sink {self.name}: {error}") from error
        self._upserts = {kind: upsert_for(engine.dialect, table, SHAPES[kind]) for kind, table in tables.items()}

    async def write(self, rows: Sequence[SinkRow]) -> None:
        """Upsert `rows`; see `app.ports.Sink`.

        (1) rows whose values do not fit their columns are refused;
        (2) of rows with one identity the highest version is taken (PostgreSQL touches a row once a statement);
        (3) they are written in one transaction, halved while the database refuses a value;
        (4) where the highest version was refused, the next one gets its turn.
        """
        if self._upserts is None:
            await self.open()
        reasons = {index: reason for index, row in enumerate(rows) if (reason := _misfit(row)) is not None}
        waiting = [(index, row) for index, row in enumerate(rows) if index not in reasons]
        while waiting:
            chosen = _newest(waiting)
            refused = await self._put(chosen)
            reasons.update(refused)
            taken = {index for index, _ in chosen}
            again = {_identity(rows[index]) for index in refused}
            waiting = [pair for pair in waiting if pair[0] not in taken and _identity(pair[1]) in again]
        if reasons:
            raise SinkRejected(reasons)

    async def close(self) -> None:
        """Give back the connections."""
        engine, self._engine, self._upserts = self._engine, None, None
        if engine is not None:
            await engine.dispose()

    async def _put(self, rows: list[tuple[int, SinkRow]]) -> dict[int, str]:
        """Write rows of different identities; return the refused ones with their reasons."""
        try:
            await self._transact([row for _, row in rows])
        except _DataFault as fault:
            if len(rows) == 1:
                return {rows[0][0]: str(fault)}
        else:
            return {}
        half = len(rows) // 2
        return {**await self._put(rows[:half]), **await self._put(rows[half:])}

    async def _transact(self, rows: list[SinkRow]) -> None:
        assert self._engine is not None
        assert self._upserts is not None
        by_kind: dict[str, list[SinkRow]] = {}
        for row in rows:
            by_kind.setdefault(row.kind, []).append(row)
        with self._translated("does not take rows"):
            async with asyncio.timeout(self._limits.write_timeout_s), self._engine.begin() as connection:
                await self._upsert_all(connection, by_kind)

    async def _upsert_all(self, connection: AsyncConnection, by_kind: dict[str, list[SinkRow]]) -> None:
        assert self._upserts is not None
        for kind in sorted(by_kind):
            # Writers that lock rows in one order do not deadlock each other.
            await self._upserts[kind](connection, sorted(by_kind[kind], key=lambda row: row.key))

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn the vendors' errors into ours, without the URL's password and without the rows' values."""
        try:
            yield
        except TimeoutError as error:
            self._upserts = None
            raise SinkUnavailable(f"sink {self.name}: {self._where} {what}: no answer in time") from error
        except (SQLAlchemyError, OSError, EOFError) as error:
            text = redact_text(said(error))
            if is_data_fault(error):
                raise _DataFault(text) from error
            # The next write opens anew: the server may come back without our tables.
            self._upserts = None
            raise SinkUnavailable(f"sink {self.name}: {self._where} {what}: {text}") from error

    @property
    def _where(self) -> str:
        return self._url.set(drivername=self._url.get_backend_name()).render_as_string(hide_password=True)


def with_driver(name: str, text: str) -> URL:
    """Parse the URL and choose the asynchronous driver. Raises `UserError`; without a name it names no sink."""
    try:
        url = make_url(text)
        driver = DRIVERS[url.get_backend_name()]
        if url.port is not None and not 0 < url.port < 65_536:
            raise ValueError("no port has this number")
    except (SQLAlchemyError, KeyError, ValueError) as error:
        known = ", ".join(sorted(DRIVERS))
        where = f"sink {name}: its url" if name else "the url"
        raise UserError(f"{where} is not one of a database we know ({known})") from error
    return url.set(drivername=driver)


def engine_of(
    url: URL,
    limits: SqlLimits,
    *,
    connections: int = 1,
    read_only: bool = False,
    ask_first: bool = False,
    attach: bool = True,
) -> AsyncEngine:
    """Make the engine; a sink needs one connection, since it writes one batch at a time.

    `read_only`: every statement that would write is refused by the database. `ask_first`: a connection that has died
    is noticed before it is used, for one more round trip. Without `attach` no statement opens a further SQLite file.
    """
    backend = url.get_backend_name()
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": connections, "max_overflow": 0}
    if ask_first and backend != "sqlite":
        options["pool_pre_ping"] = True
    connect_s = limits.connect_timeout_s
    if backend == "sqlite":
        if read_only:
            url = _sqlite_read_only(url)
        elif url.database and url.database != ":memory:":
            Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        options["connect_args"] = {"timeout": connect_s}
    elif backend == "postgresql":
        options["isolation_level"] = "READ COMMITTED"
        options["connect_args"] = {
            "timeout": connect_s,
            "server_settings": {
                "application_name": "headrace",
                "statement_timeout": str(round(limits.write_timeout_s * 1000)),
                "default_transaction_read_only": "on" if read_only else "off",
            },
        }
    else:
        options["isolation_level"] = "READ COMMITTED"
        options["connect_args"] = {
            "connect_timeout": connect_s,
            "charset": "utf8mb4",
            # Strict for all tables: otherwise MySQL cuts what is too long and says nothing.
            "sql_mode": "TRADITIONAL",
            "async_creator_fn": _connect_mysql,
        }
        if read_only:
            options["connect_args"]["init_command"] = "SET SESSION TRANSACTION READ ONLY"
    engine = create_async_engine(url, **options)
    if backend == "sqlite" and not attach:
        sa.event.listen(engine.sync_engine, "connect", _attach_nothing)
    if backend == "sqlite" and not read_only:
        sa.event.listen(engine.sync_engine, "connect", _sqlite_pragmas(limits.sqlite_synchronous))
    return engine


async def _connect_mysql(**given: Any) -> Any:
    """A connection on which a statement is one statement, and which gives no file of ours away.

    aiomysql 0.3 asks for multi-statements in any case; without the flag the server refuses `select 1; commit; …`, by
    which a query would leave its read-only transaction. What a URL says of local files and option files is not heeded:
    a server could ask for any file that this process may read.
    """
    from aiomysql.connection import CLIENT, Connection  # noqa: PLC0415 - a vendor in need

    for name in ("local_infile", "read_default_file", "read_default_group"):
        given.pop(name, None)
    connection = Connection(**given)
    connection.client_flag &= ~(CLIENT.MULTI_STATEMENTS | CLIENT.LOCAL_FILES)
    await connection._connect()  # noqa: SLF001 - what aiomysql.connect does
    return connection


def _sqlite_read_only(url: URL) -> URL:
    """The same file, opened so that it is neither created nor changed."""
    if not url.database or url.database == ":memory:":
        return url
    path = quote(str(Path(url.database).expanduser().absolute()))
    return url.set(database=f"file:{path}").update_query_dict({"mode": "ro", "uri": "true"})


def _attach_nothing(connection: Any, _record: Any) -> None:
    # The limit is set in the thread that the driver gave the connection; neither library has a call for it.
    connection.run_async(
        lambda driver: driver._execute(driver._conn.setlimit, sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # noqa: SLF001
    )


def _sqlite_pragmas(synchronous: str) -> Any:
    def set_pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        # Readers never wait for the writer, and a batch costs one sync.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.close()

    return set_pragmas


def _misfit(row: SinkRow) -> str | None:
    shape = SHAPES.get(row.kind)
    if shape is None:
        return f"there is no table for {row.kind}"
    return refusal(shape, row.row)


def _identity(row: SinkRow) -> tuple[str, tuple[str | int, ...]]:
    return row.kind, row.key


def _newest(rows: list[tuple[int, SinkRow]]) -> list[tuple[int, SinkRow]]:
    """Of the rows of each identity take the one with the highest version; the later one of equals."""
    newest: dict[tuple[str, tuple[str | int, ...]], tuple[int, SinkRow]] = {}
    for pair in rows:
        held = newest.get(_identity(pair[1]))
        if held is None or pair[1].version >= held[1].version:
            newest[_identity(pair[1])] = pair
    return list(newest.values())


def is_data_fault(error: BaseException) -> bool:
    """Tell what blames the values of a row from everything that may pass with time."""
    if isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    origin = error.orig
    if origin is not None and origin.args[:1] == (MYSQL_PACKET_TOO_LARGE,):
        return True
    state = getattr(origin, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(DATA_FAULT_CLASSES)
    # asyncpg refuses a value that it cannot encode before the server sees it: a ValueError without SQLSTATE.
    return origin is not None and isinstance(origin.__cause__, ValueError)


def said(error: BaseException) -> str:
    """Return what the driver said, on one line, without SQLAlchemy's statement around it."""
    origin = getattr(error, "orig", None) or error
    text = str(origin).strip() or type(origin).__name__
    return " ".join(text.removeprefix("<class '").split())
