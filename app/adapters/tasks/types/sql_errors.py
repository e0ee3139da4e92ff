"""What a database says against a statement, as a failure of a task: which of it is worth another attempt."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

import aiomysql
import asyncpg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.adapters.sinks.sql import is_data_fault, said
from app.errors import TaskFailed, UserError

T = TypeVar("T")

# SQLSTATE by its beginning, the longest first.
_STATES: Final = (
    ("22", "SqlData"),
    ("23", "SqlData"),
    ("54", "SqlData"),
    ("40", "SqlConflict"),
    ("55P03", "SqlConflict"),
    ("57014", "SqlTimeout"),
    ("25006", "SqlDenied"),
    ("42501", "SqlDenied"),
    ("28", "SqlDenied"),
    ("42", "SqlStatement"),
    ("0A", "SqlStatement"),
    ("26", "SqlStatement"),
    ("08", "SqlUnavailable"),
    ("53", "SqlUnavailable"),
    ("57", "SqlUnavailable"),
    ("3D", "SqlUnavailable"),
)
# Error numbers of MySQL and MariaDB.
_NUMBERS: Final = {
    **dict.fromkeys((1205, 1213, 1020), "SqlConflict"),
    **dict.fromkeys((1317, 1969, 3024), "SqlTimeout"),
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1290, 1370, 1792), "SqlDenied"),
    **dict.fromkeys((1054, 1060, 1064, 1109, 1136, 1146, 1149, 1305, 1327, 1364, 1582, 1630), "SqlStatement"),
    **dict.fromkeys((1040, 1049, 1053, 1129, 1130, 1203, 2002, 2003, 2006, 2013, 2055), "SqlUnavailable"),
}
_SQLITE: Final = {
    sqlite3.SQLITE_BUSY: "SqlConflict",
    sqlite3.SQLITE_LOCKED: "SqlConflict",
    sqlite3.SQLITE_INTERRUPT: "SqlTimeout",
    sqlite3.SQLITE_READONLY: "SqlDenied",
    sqlite3.SQLITE_AUTH: "SqlDenied",
    sqlite3.SQLITE_PERM: "SqlDenied",
    sqlite3.SQLITE_ERROR: "SqlStatement",
    sqlite3.SQLITE_RANGE: "SqlStatement",
    sqlite3.SQLITE_MISMATCH: "SqlData",
    sqlite3.SQLITE_CONSTRAINT: "SqlData",
    sqlite3.SQLITE_TOOBIG: "SqlData",
    sqlite3.SQLITE_CANTOPEN: "SqlUnavailable",
    sqlite3.SQLITE_NOTADB: "SqlUnavailable",
}
# SQLAlchemy wraps what executing raises, but not what reading on from a cursor does.
_DRIVERS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, aiomysql.MySQLError, sqlite3.Error)
RETRYABLE: Final = frozenset({"SqlConflict", "SqlTimeout", "SqlUnavailable", "SqlFailed"})


@contextlib.contextmanager
def translated(timeout_s: float) -> Iterator[None]:
    """Turn what SQLAlchemy and the drivers raise into `TaskFailed`, without the statement's values."""
    try:
        yield
    except UserError as error:
        raise TaskFailed("InvalidUrl", str(error), retryable=False) from error
    except TimeoutError as error:
        raise TaskFailed("SqlTimeout", f"the database did not answer within {timeout_s:g} s") from error
    except (SQLAlchemyError, OSError, EOFError, *_DRIVERS) as error:
        raise _failure(error) from error


def _failure(error: BaseException) -> TaskFailed:
    kind = _kind(error)
    origin = getattr(error, "orig", None) or error
    code = getattr(origin, "sqlstate", None) or getattr(origin, "sqlite_errorname", None)
    if code is None and origin.args and isinstance(origin.args[0], int):
        code = origin.args[0]
    detail = {} if code is None else {"code": code}
    return TaskFailed(kind, said(error), retryable=kind in RETRYABLE, detail=detail)


def _kind(error: BaseException) -> str:
    if not isinstance(error, (DBAPIError, *_DRIVERS)):
        # A statement that SQLAlchemy itself refuses; or no way to the server at all.
        return "SqlStatement" if isinstance(error, SQLAlchemyError) and not _is_pool(error) else "SqlUnavailable"
    origin = getattr(error, "orig", None) or error
    state = getattr(origin, "sqlstate", None)
    if isinstance(state, str):
        known = next((kind for begin, kind in _STATES if state.startswith(begin)), None)
        if known is not None:
            return known
    code = getattr(origin, "sqlite_errorcode", None)
    if isinstance(code, int):
        # The extended codes hold the primary one in their lowest byte.
        return _SQLITE.get(code & 0xFF, "SqlFailed")
    number = origin.args[0] if origin.args else None
    if isinstance(number, int) and number in _NUMBERS:
        return _NUMBERS[number]
    if is_data_fault(error):
        return "SqlData"
    if isinstance(error, sa.exc.ProgrammingError):
        return "SqlStatement"
    return "SqlUnavailable" if getattr(error, "connection_invalidated", False) else "SqlFailed"


def _is_pool(error: SQLAlchemyError) -> bool:
    return isinstance(error, sa.exc.TimeoutError | sa.exc.DisconnectionError)


async def bounded(connection: AsyncConnection, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """The result of `work` on the connection, or TimeoutError.

    SQLite works in a thread that no cancellation reaches: its statement is interrupted first, since whatever
    came after it on the connection would wait for its end.
    """
    if connection.dialect.name != "sqlite":
        async with asyncio.timeout(timeout_s):
            return await work
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None, "a connection that was just opened"
    running = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({running}, timeout=timeout_s)
    except asyncio.CancelledError:
        await driver.interrupt()
        await asyncio.wait({running})
        raise
    if not done:
        await driver.interrupt()
        await asyncio.wait({running})
        if running.cancelled() or running.exception() is not None:
            raise TimeoutError
    return running.result()
