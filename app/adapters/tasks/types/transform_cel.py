"""The task type transform.cel: rows filtered and made anew by expressions."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.types.params import Params
from app.domain.workflow.expressions import ExpressionError, Expressions
from app.errors import TaskFailed

# Rows between two turns of the loop: about a millisecond.
_TURN: Final = 200


class CelParams(Params):
    """What transform.cel is told."""

    filter: str | None = Field(None, description="Expression over `row` and `index`; only rows for which it is true.")
    map: str | dict[str, str] | None = Field(
        None, description="Expression that makes the row anew, or an object of them by field; after `filter`."
    )
    value: str | None = Field(
        None, description="Expression over `rows` (filtered and mapped): its value is the result."
    )
    on_error: Literal["fail", "drop"] = Field(
        "fail", description="`drop`: a row that an expression fails for is left out."
    )

    @model_validator(mode="after")
    def _does_something(self) -> "CelParams":
        if self.filter is None and self.map is None and self.value is None:
            raise ValueError("one of filter, map and value is needed")
        return self


class CelTransform:
    """Expressions see `row`, `index`, and what the task's other params see: input, needs, trigger, tasks by name."""

    name = "transform.cel"
    params_model = CelParams
    kind: Kind = "async"
    pure = True

    async def run(self, call: TaskCall[CelParams]) -> Any:
        """The rows, or the value."""
        params, expressions = call.params, call.shared.expressions
        names = {**(call.context.get("needs") or {}), **call.context}
        rows: list[Any] = []
        for index, row in enumerate(call.rows):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            names["row"], names["index"] = row, index
            try:
                if params.filter is None or _holds(expressions, params.filter, names):
                    rows.append(row if params.map is None else _mapped(expressions, params.map, names))
            except ExpressionError as error:
                if params.on_error == "fail":
                    raise TaskFailed(
                        "ExpressionError", f"row {index}: {error}", retryable=False, detail={"row": index}
                    ) from error
        if params.value is None:
            return rows
        try:
            return expressions.evaluate(params.value, {**names, "row": None, "index": None, "rows": rows})
        except ExpressionError as error:
            raise TaskFailed("ExpressionError", str(error), retryable=False) from error


def _holds(expressions: Expressions, source: str, names: Mapping[str, Any]) -> bool:
    answer = expressions.evaluate(source, names)
    if not isinstance(answer, bool):
        raise ExpressionError(f"the filter gave {type(answer).__name__}, not true or false")
    return answer


def _mapped(expressions: Expressions, source: str | dict[str, str], names: Mapping[str, Any]) -> Any:
    if isinstance(source, str):
        return expressions.evaluate(source, names)
    return {field: expressions.evaluate(one, names) for field, one in source.items()}
