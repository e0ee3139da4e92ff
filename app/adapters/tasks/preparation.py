"""From an order to what a task type is given: rendered params, secrets in place, rows, large results read.

(1) the type is looked up; (2) references to secrets are taken out of the params as the definition wrote them;
(3) expressions are rendered; (4) the secrets are put in, so that no input can name one; (5) the params are validated.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import BaseModel

from app.adapters.tasks.payload import Payloads, is_reference
from app.adapters.tasks.protocol import Kind, TaskType, fixed_params, kind_of
from app.adapters.tasks.secrets import REFERENCE, Resolution, Secrets
from app.domain.workflow.expressions import Expressions
from app.domain.workflow.orders import TaskOrder
from app.errors import TaskFailed
from config.redact import redact_text

FROM: Final = "from"
# What every context has; the rest are results of earlier tasks that the params mention, and the item of a map, which
# may be a large result itself.
_ALWAYS: Final = 4
_NO_RESULTS: Final = frozenset({"input", "trigger", "execution", "needs", "index", "error"})
_HOLE: Final = re.compile(r"(?<!\$)\$\{")
SHAPES: Final = 10_000


class Types(Protocol):
    """Task types by name (`app.adapters.tasks.registry`)."""

    def get(self, name: str) -> TaskType:
        """Raises `TaskFailed`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is the same for every attempt of a task of one version.

    `written` is `with` as the definition has it, `given` the same without `from`. `params` is there when nothing in
    them depends on the attempt: attempts share it.
    """

    task_type: TaskType
    written: Mapping[str, Any]
    given: Mapping[str, Any]
    source: Any
    renders: bool
    has_secrets: bool
    params: BaseModel | None
    kind: Kind | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """One attempt, ready to run. `given` is `with` as it is after (4), for a process that validates it again."""

    task_type: TaskType
    kind: Kind
    params: BaseModel
    given: Mapping[str, Any]
    rows: Sequence[Any]
    context: Mapping[str, Any]


class Preparation:
    """Prepares attempts; remembers what the definitions' tasks look like."""

    def __init__(self, types: Types, expressions: Expressions, secrets: Secrets, payloads: Payloads | None) -> None:
        self._types = types
        self._expressions = expressions
        self._secrets = secrets
        self._payloads = payloads
        self._shapes: OrderedDict[tuple[str, str, str, str], Shape] = OrderedDict()

    def kind(self, order: TaskOrder) -> Kind | None:
        """Where it will run, as far as that is known before it is prepared."""
        shape = self._shapes.get((order.workflow, order.version, order.task, order.type))
        return _place(order, shape.task_type, shape.kind) if shape is not None and shape.kind is not None else None

    def takes_turns(self, order: TaskOrder) -> bool:
        """Whether its type waits for a turn at something shared, as far as that is known before it is prepared."""
        shape = self._shapes.get((order.workflow, order.version, order.task, order.type))
        return shape is not None and getattr(shape.task_type, "takes_turns", False)

    async def prepare(self, order: TaskOrder) -> tuple[Prepared, Callable[[str], str]]:
        """(1) to (5), and what hides this attempt's secrets. Raises what the steps raise."""
        shape = self._shape(order)
        context = order.context
        needs = context.get("needs") or {}
        if any(map(holds_reference, needs.values())):
            needs = await self._read_large(needs)
            context = {**context, "needs": needs}
        if len(context) > _ALWAYS:
            further = {name: value for name, value in context.items() if name not in _NO_RESULTS}
            if any(map(holds_reference, further.values())):
                context = {**context, **await self._read_large(further)}
        names = _names(context, needs) if shape.renders or shape.source is not None else {}
        rows = self._rows(shape, needs, names)
        if shape.params is not None:
            kind = shape.kind
            assert kind is not None
            kind = _place(order, shape.task_type, kind)
            return Prepared(shape.task_type, kind, shape.params, shape.given, rows, context), redact_text
        given: Any = shape.given
        redact: Callable[[str], str] = redact_text
        resolution = Resolution(self._secrets) if shape.has_secrets else None
        if resolution is not None:
            given = resolution.take_out(given)  # (2)
        if shape.renders:
            given = self._expressions.render(given, names)  # (3)
        if resolution is not None:
            given = resolution.put_back(given)  # (4)
            redact = resolution.redact
        try:
            params = shape.task_type.params_model.model_validate(given)  # (5)
        except Exception as error:
            raise Unprepared(error, redact) from error
        kind = _place(order, shape.task_type, kind_of(shape.task_type, params))
        return Prepared(shape.task_type, kind, params, given, rows, context), redact

    # ---- parts ----

    def _shape(self, order: TaskOrder) -> Shape:
        key = (order.workflow, order.version, order.task, order.type)
        shape = self._shapes.get(key)
        if shape is None or shape.written != order.params:
            shape = self._shapes[key] = self._new_shape(order)
            if len(self._shapes) > SHAPES:
                self._shapes.popitem(last=False)
        return shape

    def _new_shape(self, order: TaskOrder) -> Shape:
        task_type = self._types.get(order.type)  # (1)
        given = {key: value for key, value in order.params.items() if key != FROM}
        for name in fixed_params(task_type.params_model):
            if _any_string(given.get(name), lambda text: _HOLE.search(text) is not None):
                raise TaskFailed(
                    "InvalidParams",
                    f"`with` is not valid: {name}: takes no ${{…}}; bind values by name",
                    retryable=False,
                )
        source = order.params.get(FROM)
        has_secrets = _any_string(given, lambda text: REFERENCE.search(text) is not None)
        renders = _any_string(given, lambda text: "${" in REFERENCE.sub("", text))
        if has_secrets or renders:
            chooses = hasattr(task_type, "kind_of")
            return Shape(
                task_type, order.params, given, source, renders, has_secrets, None, None if chooses else task_type.kind
            )
        params = task_type.params_model.model_validate(given)
        return Shape(task_type, order.params, given, source, renders, has_secrets, params, kind_of(task_type, params))

    def _rows(self, shape: Shape, needs: Mapping[str, Any], names: Mapping[str, Any]) -> Sequence[Any]:
        source = shape.source
        if source is None:
            if len(needs) == 1:
                (found,) = needs.values()
            else:
                found = dict(needs) or None
        elif isinstance(source, str) and "${" not in source:
            found = self._expressions.evaluate(source, names)
        else:
            found = self._expressions.render(source, names)
        if found is None:
            return ()
        return found if isinstance(found, list) else (found,)

    async def _read_large(self, needs: Mapping[str, Any]) -> dict[str, Any]:
        """`needs` with the large results themselves, and those in the results of maps."""
        found: dict[str, Any] = {}
        for name, result in needs.items():
            if is_reference(result):
                found[name] = await self._load(result)
            elif holds_reference(result):
                found[name] = [await self._load(item) if is_reference(item) else item for item in result]
            else:
                found[name] = result
        return found

    async def _load(self, reference: Mapping[str, Any]) -> Any:
        if self._payloads is None:
            return reference
        return await asyncio.to_thread(self._payloads.load, reference)


class Unprepared(Exception):
    """Carries an error together with what hides its secrets."""

    def __init__(self, error: Exception, redact: Callable[[str], str]) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.redact = redact


def holds_reference(result: Any) -> bool:
    """Whether a result is a reference to a large one, or the list of a map with some."""
    if type(result) is list:
        return any(map(is_reference, result))
    return is_reference(result)


def _place(order: TaskOrder, task_type: TaskType, kind: Kind) -> Kind:
    """Where an attempt runs: in a task process when it may have ended the process that it was in before."""
    return "process" if order.isolated and getattr(task_type, "runs_strangers", False) else kind


def _names(context: Mapping[str, Any], needs: Mapping[str, Any]) -> dict[str, Any]:
    """All that the context has: also earlier tasks that the params mention, and the error in `on_failure`."""
    return {**needs, **context, "needs": needs}


def _any_string(value: Any, wanted: Callable[[str], bool]) -> bool:
    if isinstance(value, str):
        return wanted(value)
    if isinstance(value, Mapping):
        return any(_any_string(item, wanted) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_any_string(item, wanted) for item in value)
    return False
