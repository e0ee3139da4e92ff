"""The seam through which decisions evaluate expressions: pure, bounded, and blind to everything but its arguments."""

from collections.abc import Mapping
from typing import Any, Protocol


class ExpressionError(ValueError):
    """An expression gave no answer; the message is one sentence."""


class Expressions(Protocol):
    """Evaluates CEL."""

    def evaluate(self, source: str, names: Mapping[str, Any]) -> Any:
        """The value of `source`, which may read `names`. Raises `ExpressionError`."""

    def render(self, params: Any, names: Mapping[str, Any]) -> Any:
        """`params` with every `${expression}` in its strings replaced, deep; a string that is one expression
        becomes its value. `${secret:NAME}` is left as it is. Raises `ExpressionError`.
        """
