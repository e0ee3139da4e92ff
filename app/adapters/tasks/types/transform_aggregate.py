"""The task type transform.aggregate: rows in groups, one row a group."""

import asyncio
from typing import Any, Final

from pydantic import Field, field_validator

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.types.params import Params
from app.adapters.tasks.types.values import field_of
from app.domain.row_aggregates import RowFault, aggregate, parse
from app.errors import TaskFailed

# More rows than this are aggregated in a thread: about a millisecond's worth.
_SMALL_ROWS: Final = 200


class AggregateParams(Params):
    """What transform.aggregate is told."""

    group_by: list[str] = Field(default_factory=list, max_length=32, description="Fields; dotted paths reach inside.")
    aggregates: dict[str, str] = Field(
        min_length=1,
        max_length=200,
        description="Name → count(), count(f), count_distinct(f), sum(f), avg(f), min(f), max(f), first(f), last(f),"
        " stddev(f), p95(f), percentile(f, 99.9).",
    )

    @field_validator("aggregates")
    @classmethod
    def _known(cls, aggregates: dict[str, str]) -> dict[str, str]:
        for text in aggregates.values():
            parse(text)
        return aggregates


class AggregateTransform:
    """Nulls are left out, as in SQL; the aggregate of no value is null, its count 0."""

    name = "transform.aggregate"
    params_model = AggregateParams
    kind: Kind = "async"
    pure = True

    async def run(self, call: TaskCall[AggregateParams]) -> list[dict[str, Any]]:
        """One row a group, in the order in which the groups first came."""
        if len(call.rows) > _SMALL_ROWS:
            return await asyncio.to_thread(_run, call)
        return _run(call)


def _run(call: TaskCall[AggregateParams]) -> list[dict[str, Any]]:
    params = call.params
    wanted = {name: parse(text) for name, text in params.aggregates.items()}
    try:
        return aggregate(call.rows, params.group_by, wanted, field_of)
    except RowFault as fault:
        raise TaskFailed("InvalidRow", str(fault), retryable=False, detail={"row": fault.row}) from fault
