"""The task type sink.sql: rows as upserts by key, or as plain inserts that are made once for each effect."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
from pydantic import Field, model_validator

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.spans import call_span, sql_call
from app.adapters.tasks.types.params import Params
from app.domain.sink_rows import ColumnType
from app.errors import TaskFailed

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from app.adapters.tasks.types.sql_target import Target

_CACHED: Final = 1_000
_SWEEP_MS: Final = 3_600_000


class SqlSinkParams(Params):
    """What sink.sql is told."""

    url: str = Field(min_length=1, description="Database: sqlite:///file, postgresql://…, mysql://… or mariadb://….")
    table: str = Field(min_length=1, description="Table, or schema.table.")
    key: list[str] = Field(
        default_factory=list, description="Columns that tell rows apart: a row with the same values is replaced."
    )
    once: bool | None = Field(
        None, description="Note the effect in _headrace_effects and make it once; left out: when there is no `key`."
    )
    create: bool = Field(default=False, description="Make the table if there is none, with `key` as its primary key.")
    columns: dict[str, ColumnType] = Field(
        default_factory=dict, description="Types for `create`: text, integer, number, flag or json; else by the values."
    )
    unknown_columns: Literal["fail", "drop"] = Field(
        "fail", description="`drop`: fields that the table has no column for are left out."
    )
    timeout_s: float | None = Field(None, gt=0, description="Give the write up after this long.")

    @model_validator(mode="after")
    def _holds_together(self) -> "SqlSinkParams":
        if len(set(self.key)) < len(self.key):
            raise ValueError("a column is in `key` twice")
        if not self.key and self.once is False:
            raise ValueError("without `key` and `once` a repeated attempt would write the rows again")
        return self


class SqlSinkTask:
    """One transaction for all rows of a call.

    (1) the table is looked up, or made; (2) rows are checked and converted; (3) in one transaction: the effect is
    noted where `once` asks for it, and made before means that nothing more is done; (4) the rows are upserted.
    """

    name = "sink.sql"
    params_model = SqlSinkParams
    kind: Kind = "async"
    pure = False

    def __init__(self) -> None:
        self._targets: dict[tuple[str, str], Target] = {}
        self._with_effects: set[str] = set()
        self._swept_ms: dict[str, int] = {}

    async def run(self, call: TaskCall[SqlSinkParams]) -> dict[str, Any]:
        """{table, rows, repeated}: `repeated` when the effect had been made before."""
        from app.adapters.tasks.types.sql_errors import translated  # noqa: PLC0415 - a vendor in need

        params = call.params
        told = {"table": params.table, "rows": len(call.rows), "repeated": False}
        rows = _objects(call.rows, params.key)
        if not rows:
            return told
        limit_s = call.shared.settings.sql_statement_timeout_ms / 1000
        timeout_s = min(params.timeout_s or limit_s, limit_s)
        asked = call_span("client", lambda: sql_call(params.url, "INSERT", params.table))
        with asked as span, translated(timeout_s):
            if span is not None and len(rows) > 1:
                span.attributes["db.operation.batch.size"] = len(rows)
            try:
                async with asyncio.timeout(timeout_s):
                    told["repeated"] = not await self._write(call, rows, timeout_s)
            except BaseException:
                # The table may have been changed or dropped since it was looked up.
                self._targets.pop((params.url, params.table), None)
                self._with_effects.discard(params.url)
                raise
        return told

    async def _write(self, call: TaskCall[SqlSinkParams], rows: list[dict[str, Any]], timeout_s: float) -> bool:
        """Numbered as the class."""
        from app.adapters.tasks.types.sql_errors import bounded  # noqa: PLC0415 - a vendor in need

        params = call.params
        engine = await call.shared.engine(params.url)
        target = await self._target(engine, params, rows)  # (1)
        batches = _batches(target, rows, params)  # (2)
        once = params.once if params.once is not None else not params.key
        if once:
            await self._prepare_effects(engine, call)
        async with engine.connect() as connection:
            return await bounded(connection, _transact(connection, target, batches, call, once), timeout_s)

    async def _target(
        self, engine: "AsyncEngine", params: SqlSinkParams, rows: Sequence[Mapping[str, Any]]
    ) -> "Target":
        from app.adapters.tasks.types import sql_target  # noqa: PLC0415 - a vendor in need
        from app.adapters.tasks.types.sql_cells import inferred  # noqa: PLC0415 - a vendor in need

        place = (params.url, params.table)
        found = self._targets.get(place)
        if found is None:
            found = await sql_target.find(engine, params.table)
            if found is None and params.create:
                await sql_target.make(engine, params.table, inferred(rows, params.columns), params.key)
                found = await sql_target.find(engine, params.table)
            if found is None:
                raise TaskFailed(
                    "SqlStatement", f"there is no table {params.table}; `create: true` makes it", retryable=False
                )
            if len(self._targets) >= _CACHED:
                self._targets.clear()
            self._targets[place] = found
        return found

    async def _prepare_effects(self, engine: "AsyncEngine", call: TaskCall[SqlSinkParams]) -> None:
        from app.adapters.tasks.types import sql_target  # noqa: PLC0415 - a vendor in need

        url = call.params.url
        if url not in self._with_effects:
            await sql_target.make_effects(engine)
            if len(self._with_effects) >= _CACHED:
                self._with_effects.clear()
                self._swept_ms.clear()
            self._with_effects.add(url)
        now_ms = call.shared.clock.now_ms()
        if now_ms - self._swept_ms.get(url, 0) >= _SWEEP_MS:
            self._swept_ms[url] = now_ms
            await sql_target.forget(engine, now_ms - call.shared.settings.effects_retention_s * 1000)


async def _transact(
    connection: "AsyncConnection",
    target: "Target",
    batches: list[tuple[tuple[str, ...], list[dict[str, Any]]]],
    call: TaskCall[SqlSinkParams],
    once: bool,
) -> bool:
    """(3) and (4); False when the effect had been made before."""
    from app.adapters.tasks.types import sql_target  # noqa: PLC0415 - a vendor in need

    async with connection.begin():
        if once:
            effect = hashlib.sha256(call.idempotency_key.encode()).hexdigest()
            now_ms = call.shared.clock.now_ms()
            if not await sql_target.remember(connection, effect, call.idempotency_key, now_ms):
                return False
        for columns, rows in batches:
            await connection.execute(
                sql_target.upsert(connection.dialect, target.table, columns, call.params.key), rows
            )
    return True


def _objects(rows: Sequence[Any], key: Sequence[str]) -> list[dict[str, Any]]:
    """The rows, each an object with its key. Raises `TaskFailed` of type `InvalidRow`."""
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not row:
            raise _invalid(number, "is no object with fields")
        missing = [name for name in key if row.get(name) is None]
        if missing:
            raise _invalid(number, f"has no value for {', '.join(missing)}, which the key needs")
    return list(rows)


def _invalid(number: int, why: str) -> TaskFailed:
    return TaskFailed("InvalidRow", f"row {number} {why}", retryable=False, detail={"row": number})


def _batches(
    target: "Target", rows: list[dict[str, Any]], params: SqlSinkParams
) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """(2): the rows in runs of the same columns; by key, so that two writers lock rows in one order.

    Of rows with the same key the last stays the last.
    """
    from app.adapters.tasks.types.sql_cells import converted  # noqa: PLC0415 - a vendor in need

    if params.unknown_columns == "drop":
        rows = [{name: value for name, value in row.items() if name in target.convert} for row in rows]
    target.check(sorted({name for row in rows for name in row}), params.key)
    ready = [converted(row, target.convert, number) for number, row in enumerate(rows) if row]
    if params.key:
        order = {
            id(made): orjson.dumps([row[name] for name in params.key]) for made, row in zip(ready, rows, strict=True)
        }
        ready.sort(key=lambda made: order[id(made)])
    return [(columns, list(some)) for columns, some in groupby(ready, key=lambda row: tuple(sorted(row)))]
