"""Tables of the SQL sink and its upsert in each database's own words.

Every upsert keeps the row with the highest `version`: a lower one changes nothing, an equal one
writes the same again. Values are always bound, never put into the text of a statement.

| database | how a batch travels |
|---|---|
| SQLite | one prepared statement run for each row inside the transaction (no network to save) |
| PostgreSQL | one statement for the batch with an array for each column (`unnest`): no limit of 32,767 parameters |
| MySQL, MariaDB | statements of `MYSQL_ROWS` rows, below the limit of 65,535 parameters |
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.sink_rows import SHAPES, TEXT_MAX_CHARS, ColumnType, Shape
from app.ports import SinkRow

# 500 rows of at most 30 columns are 15,000 parameters.
MYSQL_ROWS = 500

Upsert = Callable[[AsyncConnection, Sequence[SinkRow]], Any]


def tables_for(dialect: Dialect) -> dict[str, sa.Table]:
    """Return one table for each kind of row, as this database has to declare it."""
    metadata = sa.MetaData()
    return {kind: _table(metadata, shape, dialect) for kind, shape in SHAPES.items()}


def _table(metadata: sa.MetaData, shape: Shape, dialect: Dialect) -> sa.Table:
    columns = [
        sa.Column(
            column.name,
            column_type(column.type, dialect),
            primary_key=column.name in shape.key_fields,
            nullable=not column.required,
            autoincrement=False,
        )
        for column in shape.columns
    ]
    columns += [
        sa.Column("extra", column_type("json", dialect)),
        sa.Column("source_topic", column_type("text", dialect), nullable=False),
        sa.Column("source_partition", column_type("integer", dialect), nullable=False),
        sa.Column("source_offset", column_type("integer", dialect), nullable=False),
        # Last, because MySQL assigns from left to right and each assignment compares the version.
        sa.Column("version", column_type("integer", dialect), nullable=False),
    ]
    # STRICT makes SQLite check types, as the others do.
    return sa.Table(shape.kind, metadata, *columns, sqlite_strict=True)


def column_type(kind: ColumnType, dialect: Dialect) -> sa.types.TypeEngine[Any]:
    """Return the column's type; a STRICT SQLite table knows only INTEGER, REAL and TEXT."""
    if dialect.name == "sqlite":
        plain: dict[ColumnType, sa.types.TypeEngine[Any]] = {"number": sa.REAL(), "text": sa.TEXT(), "json": sa.TEXT()}
        return plain.get(kind, sa.INTEGER())
    if kind == "text":
        if dialect.name in {"mysql", "mariadb"}:
            # The default collation holds 'A' and 'a', and 'a' and 'a ', to be the same key.
            collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
            return mysql.VARCHAR(TEXT_MAX_CHARS, charset="utf8mb4", collation=collation)
        return sa.String(TEXT_MAX_CHARS)
    if kind == "json":
        return mysql.LONGTEXT(charset="utf8mb4") if dialect.name in {"mysql", "mariadb"} else sa.Text()
    if kind == "integer":
        return sa.BigInteger()
    return sa.Double() if kind == "number" else sa.Boolean()


def record_of(shape: Shape) -> Callable[[SinkRow], tuple[Any, ...]]:
    """Return a function that gives a row's values in the order of its table's columns."""
    names = tuple(column.name for column in shape.columns)
    json_at = tuple(index for index, column in enumerate(shape.columns) if column.type == "json")
    number_at = tuple(index for index, column in enumerate(shape.columns) if column.type == "number")
    known = frozenset(names)

    def record(row: SinkRow) -> tuple[Any, ...]:
        fields = row.row
        values: list[Any] = [fields.get(name) for name in names]
        for index in json_at:
            if values[index] is not None:
                values[index] = orjson.dumps(values[index]).decode()
        for index in number_at:
            if values[index] is not None:
                values[index] = float(values[index])
        more = {name: value for name, value in fields.items() if name not in known}
        values.append(orjson.dumps(more).decode() if more else None)
        return (*values, *row.source, row.version)

    return record


def upsert_for(dialect: Dialect, table: sa.Table, shape: Shape) -> Upsert:
    """Return the function that upserts rows of one kind inside the caller's transaction."""
    record = record_of(shape)
    if dialect.name == "postgresql":
        return _postgresql(table, record)
    if dialect.name == "sqlite":
        return _sqlite(table, record)
    return _mysql(table, record, dialect)


def _sqlite(table: sa.Table, record: Callable[[SinkRow], tuple[Any, ...]]) -> Upsert:
    insert = sqlite.insert(table)
    statement = insert.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key},
        where=insert.excluded.version >= table.c.version,
    )
    text = str(statement.compile(dialect=sqlite.dialect(paramstyle="qmark")))

    async def upsert(connection: AsyncConnection, rows: Sequence[SinkRow]) -> None:
        await connection.exec_driver_sql(text, [record(row) for row in rows])

    return upsert


def _postgresql(table: sa.Table, record: Callable[[SinkRow], tuple[Any, ...]]) -> Upsert:
    names = [column.name for column in table.columns]
    # Arrays of TEXT, not VARCHAR(255): PostgreSQL cuts a value that is cast to a shorter VARCHAR without a word.
    arrays = [
        sa.func.unnest(
            sa.bindparam(f"a_{column.name}", type_=postgresql.ARRAY(sa.Text() if _is_text(column) else column.type))
        )
        for column in table.columns
    ]
    insert = postgresql.insert(table).from_select(names, sa.select(*arrays))
    statement = insert.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key},
        where=insert.excluded.version >= table.c.version,
    )

    async def upsert(connection: AsyncConnection, rows: Sequence[SinkRow]) -> None:
        by_column = zip(*(record(row) for row in rows), strict=True)
        await connection.execute(
            statement, {f"a_{name}": list(values) for name, values in zip(names, by_column, strict=True)}
        )

    return upsert


def _is_text(column: sa.Column[Any]) -> bool:
    return isinstance(column.type, sa.String)


def _mysql(table: sa.Table, record: Callable[[SinkRow], tuple[Any, ...]], dialect: Dialect) -> Upsert:
    insert = mysql.insert(table)
    newer = insert.inserted.version >= table.c.version
    statement = insert.on_duplicate_key_update(
        [
            (column.name, sa.func.if_(newer, insert.inserted[column.name], column))
            for column in table.columns
            if not column.primary_key
        ]
    )
    # One row's text comes from SQLAlchemy; more rows repeat its VALUES group. Composing the statement
    # for every batch anew would cost more than the database takes to run it.
    row_text = "(" + ", ".join(["%s"] * len(table.columns)) + ")"
    before, group, after = str(statement.compile(dialect=dialect)).partition(row_text)
    assert group, "the compiled INSERT has one VALUES group"

    async def upsert(connection: AsyncConnection, rows: Sequence[SinkRow]) -> None:
        for start in range(0, len(rows), MYSQL_ROWS):
            chunk = rows[start : start + MYSQL_ROWS]
            text = before + ", ".join([group] * len(chunk)) + after
            await connection.exec_driver_sql(text, tuple(value for row in chunk for value in record(row)))

    return upsert
