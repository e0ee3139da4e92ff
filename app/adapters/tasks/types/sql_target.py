"""The table that sink.sql writes to: looked up or made, and its upsert in each database's own words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.adapters.sinks.sql_tables import column_type
from app.adapters.tasks.types.sql_cells import Convert, converter
from app.domain.sink_rows import ColumnType
from app.errors import TaskFailed

EFFECTS: Final = "_headrace_effects"
_NAME_CHARS: Final = 63


@dataclass(frozen=True, slots=True)
class Target:
    """A table as it is; `unique` are the sets of columns that tell its rows apart."""

    table: sa.Table
    convert: Mapping[str, Convert]
    unique: frozenset[frozenset[str]]

    def check(self, columns: Sequence[str], key: Sequence[str]) -> None:
        """Raises `TaskFailed` of type `UnknownColumn` or `NoUniqueKey`."""
        unknown = [name for name in columns if name not in self.convert]
        if unknown:
            raise TaskFailed(
                "UnknownColumn",
                f"the table {self.table.name} has no column {', '.join(unknown[:20])}",
                retryable=False,
                detail={"unknown": unknown[:50]},
            )
        if key and frozenset(key) not in self.unique:
            # Without one, every repeat would be a row more.
            raise TaskFailed(
                "NoUniqueKey",
                f"the table {self.table.name} has no primary key or unique index of exactly {', '.join(key)}",
                retryable=False,
            )


def split_name(name: str) -> tuple[str | None, str]:
    """Schema and table. Raises `TaskFailed` of type `InvalidParams`."""
    schema, dot, table = name.rpartition(".")
    parts = [table, *([schema] if dot else [])]
    if any(not part or len(part) > _NAME_CHARS or "\0" in part for part in parts):
        raise TaskFailed("InvalidParams", f"{name!r:.200} is no name of a table", retryable=False)
    return (schema if dot else None), table


async def find(engine: AsyncEngine, name: str) -> Target | None:
    """The table in the database; None when there is none."""
    schema, table_name = split_name(name)

    def look(connection: sa.Connection) -> Target | None:
        inspector = sa.inspect(connection)
        if not inspector.has_table(table_name, schema=schema):
            return None
        table = sa.Table(table_name, sa.MetaData(), schema=schema, autoload_with=connection, resolve_fks=False)
        for column in table.columns:
            if isinstance(column.type, sa.JSON):
                column.type.none_as_null = True
        unique = {frozenset(one["column_names"]) for one in inspector.get_unique_constraints(table_name, schema=schema)}
        unique |= {
            frozenset(filter(None, one["column_names"]))
            for one in inspector.get_indexes(table_name, schema=schema)
            if one["unique"] and None not in one["column_names"]
        }
        unique.add(frozenset(column.name for column in table.primary_key.columns))
        convert = {column.name: converter(column) for column in table.columns}
        return Target(table, convert, frozenset(one for one in unique if one and None not in one))

    async with engine.connect() as connection:
        return await connection.run_sync(look)


async def make(engine: AsyncEngine, name: str, columns: Mapping[str, ColumnType], key: Sequence[str]) -> None:
    """Create a table if there is none; its primary key is `key`."""
    schema, table_name = split_name(name)
    async with engine.connect() as connection:
        # The dialect knows MariaDB from MySQL only once it is connected.
        made = [
            sa.Column(
                column,
                # A long text cannot be a key everywhere.
                column_type("json" if kind == "text" and column not in key else kind, connection.dialect),
                primary_key=column in key,
                nullable=column not in key,
                autoincrement=False,
            )
            for column, kind in columns.items()
        ]
        table = sa.Table(table_name, sa.MetaData(), *made, schema=schema)
        await _create(connection, table)


def upsert(dialect: sa.Dialect, table: sa.Table, columns: Sequence[str], key: Sequence[str]) -> Any:
    """An INSERT of `columns` that replaces the row with the same `key`; without a key a plain one."""
    rest = [name for name in columns if name not in key]
    if not key:
        return sa.insert(table)
    if dialect.name in {"mysql", "mariadb"}:
        insert = mysql.insert(table)
        # With nothing to replace, one key column is set to what it is: IGNORE would hide other errors too.
        names = rest or list(key[:1])
        return insert.on_duplicate_key_update({name: insert.inserted[name] for name in names})
    insert_as: Any = sqlite.insert(table) if dialect.name == "sqlite" else postgresql.insert(table)
    if not rest:
        return insert_as.on_conflict_do_nothing(index_elements=list(key))
    return insert_as.on_conflict_do_update(
        index_elements=list(key), set_={name: insert_as.excluded[name] for name in rest}
    )


def effects_table(dialect: sa.Dialect) -> sa.Table:
    """Where made effects are remembered: one row each, in the transaction that made it."""
    return sa.Table(
        EFFECTS,
        sa.MetaData(),
        # A digest: an idempotency key may be longer than a key of a table.
        sa.Column("effect", sa.CHAR(64), primary_key=True),
        sa.Column("idempotency_key", column_type("json", dialect), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False, index=True),
    )


async def make_effects(engine: AsyncEngine) -> None:
    """Create the table of effects if there is none."""
    async with engine.connect() as connection:
        await _create(connection, effects_table(connection.dialect))


async def _create(connection: AsyncConnection, table: sa.Table) -> None:
    try:
        await connection.run_sync(table.create, checkfirst=True)
        await connection.commit()
    except SQLAlchemyError:
        # Two processes that create the same table at once: one of them is told so, in many ways.
        await connection.rollback()
        if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table(table.name, schema=table.schema)):
            raise


async def remember(connection: AsyncConnection, effect: str, idempotency_key: str, now_ms: int) -> bool:
    """Note an effect in the running transaction; False when it was made before.

    Of two attempts at once the second waits here until the first has committed or failed.
    """
    dialect = connection.dialect
    table = effects_table(dialect)
    values = {"effect": effect, "idempotency_key": idempotency_key, "made_at": now_ms}
    if dialect.name in {"mysql", "mariadb"}:
        statement: Any = mysql.insert(table).values(values).prefix_with("IGNORE")
    elif dialect.name == "sqlite":
        statement = sqlite.insert(table).values(values).on_conflict_do_nothing()
    else:
        statement = postgresql.insert(table).values(values).on_conflict_do_nothing()
    return (await connection.execute(statement)).rowcount == 1


async def forget(engine: AsyncEngine, before_ms: int) -> None:
    """Delete effects made before an instant."""
    async with engine.begin() as connection:
        table = effects_table(connection.dialect)
        await connection.execute(sa.delete(table).where(table.c.made_at < before_ms))
