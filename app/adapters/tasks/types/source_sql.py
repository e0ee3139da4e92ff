"""The task type source.sql: the rows of a query on SQLite, PostgreSQL, MySQL or MariaDB."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import Field

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.spans import call_span, first_word, sql_call
from app.adapters.tasks.types.params import Params
from app.adapters.tasks.types.values import Budget, Decimals, plain
from app.errors import TaskFailed

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncResult

_PARTITION: Final = 500


class SqlSourceParams(Params):
    """What source.sql is told."""

    # A value within the text of a statement would be part of the statement.
    fixed: ClassVar[frozenset[str]] = frozenset({"query"})

    url: str = Field(min_length=1, description="Database: sqlite:///file, postgresql://…, mysql://… or mariadb://….")
    query: str = Field(min_length=1, description="One SELECT; `:name` is bound to a value, never pasted.")
    params: dict[str, Any] | None = Field(
        None, description="Values by name; left out: the fields of the execution's input. A list fills `in :names`."
    )
    max_rows: int = Field(1_000, ge=1, description="More rows than this are an error.")
    on_more: Literal["fail", "cut"] = Field("fail", description="`cut`: take the first max_rows instead of failing.")
    decimals: Decimals = Field("number", description="DECIMAL columns as JSON numbers, or exactly, as text.")
    timeout_s: float | None = Field(None, gt=0, description="Give the query up after this long.")


class SqlSource:
    """Reads in a session that cannot write: SQLite opens the file read-only, the others a read-only transaction."""

    name = "source.sql"
    params_model = SqlSourceParams
    kind: Kind = "async"
    pure = False

    async def run(self, call: TaskCall[SqlSourceParams]) -> list[dict[str, Any]]:
        """The rows as objects by column name."""
        from app.adapters.tasks.types.sql_errors import bounded, translated  # noqa: PLC0415 - a vendor in need

        params = call.params
        statement = _bound(params, call.context)
        settings = call.shared.settings
        budget = Budget(min(params.max_rows, settings.source_rows), settings.source_bytes)
        limit_s = settings.sql_statement_timeout_ms / 1000
        timeout_s = min(params.timeout_s or limit_s, limit_s)
        asked = call_span("client", lambda: sql_call(params.url, first_word(params.query), text=params.query))
        with asked as span, translated(timeout_s):
            engine = await call.shared.engine(params.url, read_only=True)
            _look_for_file(params.url)
            # The way to the server is part of the time, and the login, at which a server may fall silent.
            async with asyncio.timeout(timeout_s), engine.connect() as connection:
                rows = await bounded(connection, _rows(connection, statement, params, budget), timeout_s)
            if span is not None:
                span.attributes["db.response.returned_rows"] = len(rows)
            return rows


def _look_for_file(url: str) -> None:
    """Raises FileNotFoundError for a SQLite file that is not there: the driver would start a thread to find out."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - a vendor in need

    found = make_url(url)
    if found.get_backend_name() == "sqlite" and found.database and found.database != ":memory:":
        file = Path(found.database).expanduser()
        if not file.exists():
            raise FileNotFoundError(f"there is no file {file}")


async def _rows(
    connection: "AsyncConnection", statement: "sa.TextClause", params: SqlSourceParams, budget: Budget
) -> list[dict[str, Any]]:
    result = await connection.stream(statement)
    rows: list[dict[str, Any]] = []
    try:
        names = _names(list(result.keys()))
        async for some in result.partitions(_PARTITION):
            for one in some:
                if budget.full and params.on_more == "cut":
                    await _leave(connection, result)
                    return rows
                row = {name: plain(value, params.decimals) for name, value in zip(names, one, strict=True)}
                budget.add(row)
                rows.append(row)
    except TaskFailed:
        await _leave(connection, result)
        raise
    return rows


async def _leave(connection: "AsyncConnection", result: "AsyncResult[Any]") -> None:
    """Read no further: the drivers of servers would read a result to its end before they close it."""
    if connection.dialect.name == "sqlite":
        await result.close()
    else:
        await connection.invalidate()


def _names(columns: list[str]) -> list[str]:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise TaskFailed(
            "SqlStatement",
            f"two columns have the same name: {', '.join(twice)}; rename them with `as`",
            retryable=False,
        )
    return columns


def _bound(params: SqlSourceParams, context: Mapping[str, Any]) -> "sa.TextClause":
    """The statement with its values. Raises `TaskFailed` of type `MissingParameter`."""
    import sqlalchemy as sa  # noqa: PLC0415 - a vendor in need

    statement = sa.text(params.query)
    wanted = list(statement.compile().params)
    given = params.params if params.params is not None else context.get("input")
    values = given if isinstance(given, Mapping) else {}
    missing = [name for name in wanted if name not in values]
    if missing:
        where = "params" if params.params is not None else "the execution's input"
        raise TaskFailed(
            "MissingParameter",
            f"the query needs {', '.join(f':{name}' for name in missing)}, and {where} has no such field"
            r" (a colon that is no parameter is written \:)",
            retryable=False,
            detail={"missing": missing},
        )
    return statement.bindparams(*(_parameter(name, values[name]) for name in wanted))


def _parameter(name: str, value: Any) -> "sa.BindParameter[Any]":
    """A typed parameter: PostgreSQL then takes text where text is meant, and `cast(:at as timestamptz)` works."""
    import orjson  # noqa: PLC0415 - a vendor in need
    import sqlalchemy as sa  # noqa: PLC0415 - a vendor in need

    if isinstance(value, list | tuple):
        sample = next((item for item in value if item is not None), None)
        return sa.bindparam(name, list(value), type_=_type(sample), expanding=True)
    if isinstance(value, Mapping):
        return sa.bindparam(name, orjson.dumps(value).decode(), type_=sa.Text())
    return sa.bindparam(name, value, type_=_type(value))


def _type(value: Any) -> "sa.types.TypeEngine[Any]":
    import sqlalchemy as sa  # noqa: PLC0415 - a vendor in need

    if isinstance(value, bool):
        return sa.Boolean()
    if isinstance(value, int):
        return sa.BigInteger()
    if isinstance(value, float):
        return sa.Double()
    return sa.Text() if isinstance(value, str) else sa.types.NullType()
