"""The task type transform.jmespath: a JMESPath query over rows or any value."""

import asyncio
import functools
from typing import Any, Final

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import Field, field_validator

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.types.params import Params
from app.adapters.tasks.types.values import size_of
from app.errors import TaskFailed

# More than this is searched in a thread: about a millisecond's worth.
_SMALL_BYTES: Final = 8_192
_QUERY_CHARS: Final = 4_096


class JmespathParams(Params):
    """What transform.jmespath is told."""

    query: str = Field(min_length=1, max_length=_QUERY_CHARS, description="JMESPath expression.")
    data: Any = Field(None, description="What is searched; left out: the list of the rows.")

    @field_validator("query")
    @classmethod
    def _compiles(cls, query: str) -> str:
        try:
            _compiled(query)
        except (JMESPathError, RecursionError) as error:
            raise ValueError(" ".join(str(error).split())[:300] or "nested too deep") from error
        return query


class JmespathTransform:
    """Gives what the query finds; null when it finds nothing."""

    name = "transform.jmespath"
    params_model = JmespathParams
    kind: Kind = "async"
    pure = True

    async def run(self, call: TaskCall[JmespathParams]) -> Any:
        """The value found."""
        data = list(call.rows) if call.params.data is None else call.params.data
        if size_of(data) > _SMALL_BYTES:
            return await asyncio.to_thread(_search, call.params.query, data)
        return _search(call.params.query, data)


@functools.lru_cache(maxsize=1_024)
def _compiled(query: str) -> Any:
    return jmespath.compile(query)


def _search(query: str, data: Any) -> Any:
    try:
        return _compiled(query).search(data)
    except (JMESPathError, ArithmeticError, RecursionError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:500] or type(error).__name__
        raise TaskFailed("ExpressionError", f"the query fails: {said}", retryable=False) from error
