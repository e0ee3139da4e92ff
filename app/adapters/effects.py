"""Reads what effects of tasks are named by, out of a SQL table or a topic: the proof reads what the tasks wrote."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from app.adapters.sinks.sql import SqlLimits, engine_of, with_driver
from app.adapters.topic_reader import TopicReader
from app.errors import UserError
from app.ports import InRecord
from config.redact import redact_text

BATCH_KEYS = 5_000
KEY_HEADER = "idempotency-key"


async def sql_keys(url: str, table: str, column: str) -> AsyncIterator[Sequence[str]]:
    """Values of one column, row by row, in batches. Raises `UserError` when the table cannot be read."""
    where = sa.table(table, sa.column(column))
    engine = engine_of(with_driver("effects", url), SqlLimits(), read_only=True)
    try:
        async with engine.connect() as connection:
            found = await connection.stream(sa.select(where.c[column]).execution_options(yield_per=BATCH_KEYS))
            async for rows in found.partitions(BATCH_KEYS):
                yield [str(value) for (value,) in rows]
    except (SQLAlchemyError, OSError) as error:
        reason = redact_text(str(error).splitlines()[0])
        raise UserError(f"The effects cannot be read from {table}.{column}: {reason}") from error
    finally:
        await engine.dispose()


async def topic_keys(reader: TopicReader, topic: str, field: str | None) -> AsyncIterator[Sequence[str]]:
    """A field of each record's JSON; without one its `idempotency-key` header, or else its key."""
    start, end = await reader.begins(topic), await reader.ends(topic)
    async with aclosing(reader.read(topic, start, end)) as batches:
        async for batch in batches:
            yield [_named(record, field) for record in batch]


def _named(record: InRecord, field: str | None) -> str:
    if field is not None:
        try:
            value = orjson.loads(record.value or b"null")
            return str(value[field])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            where = f"{record.topic} {record.partition}:{record.offset}"
            raise UserError(f"{where} has no field {field} that names an effect.") from error
    named = next((value for name, value in record.headers if name.lower() == KEY_HEADER), record.key)
    return (named or b"").decode(errors="replace")
