"""The task type transform.python: a function of an installed module, on the loop, in a thread or in a process.

It is called as `function(rows, **args)`; one with a parameter `task` gets the `TaskCall` there: heartbeat, cancelled,
idempotency_key, attempt, context. Whether it is async is read from its source, since importing a stranger's module
could hold up the loop: a function that does not show `async def` at the top of its module runs in a process.
"""

import ast
import asyncio
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Coroutine
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import Field

from app.adapters.tasks.protocol import Kind, Resources, TaskCall
from app.adapters.tasks.types.params import Params
from app.errors import TaskFailed
from config.tasks import TasksSettings

GROUP: Final = "headrace.functions"
FITTING: Final = 32
_PLACE: Final = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
_KINDS: Final[dict[str, Kind]] = {"async": "async", "thread": "blocking", "process": "process"}


class PythonParams(Params):
    """What transform.python is told."""

    function: str = Field(
        min_length=1, description="`module:function`, the module allowed by tasks.python_modules; or a registered name."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Arguments by name, besides the rows.")
    mode: Literal["auto", "async", "thread", "process"] = Field(
        "auto", description="Where it runs; auto: `async def` on the event loop, any other function in a process."
    )


class PythonTransform:
    """Calls a function; what it raises is the failure, by its class name, and retryable unless it is `TaskFailed`."""

    name = "transform.python"
    params_model = PythonParams
    kind: Kind = "process"
    pure = False
    runs_strangers = True

    def kind_of(self, params: PythonParams) -> Kind:
        """By `mode`; auto looks at the source."""
        if params.mode != "auto":
            return _KINDS[params.mode]
        found = _PLACE.fullmatch(_place(params.function) or "")
        return "async" if found is not None and _is_async(found[1], found[2]) else "process"

    def check(self, params: PythonParams, resources: Resources | None) -> None:
        """Refuse what is not allowed. Raises `TaskFailed` of type `FunctionRefused`."""
        if ":" not in params.function:
            if params.function not in _registered():
                raise _refused(params.function, f"no function of that name is registered ({GROUP})")
            return
        found = _PLACE.fullmatch(params.function)
        if found is None:
            raise _refused(params.function, "it is not `module:function`")
        allowed = (resources.settings if resources is not None else TasksSettings()).python_modules
        if not any(found[1] == prefix or found[1].startswith(f"{prefix}.") for prefix in allowed):
            raise _refused(params.function, "tasks.python_modules does not allow its module")

    async def run(self, call: TaskCall[PythonParams]) -> Any:
        """An async function on the loop; its module is imported in a thread, the first time."""
        name = call.params.function
        found = _found.get(name)
        if found is None:
            found = await asyncio.to_thread(_find, name)
        if not found.is_async:
            raise _refused(name, "mode async takes an `async def`")
        running: Coroutine[Any, Any, Any] = _called(found, call)
        return await running

    def run_sync(self, call: TaskCall[PythonParams]) -> Any:
        """Any function in a thread or a process; an async one gets a loop of its own."""
        name = call.params.function
        found = _found.get(name)
        result = _called(_find(name) if found is None else found, call)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


class _Function(NamedTuple):
    """An imported function and what is asked of it at every call: looking costs 20 µs."""

    call: Callable[..., Any]
    signature: inspect.Signature
    takes_task: bool
    is_async: bool
    fitting: set[frozenset[str]]  # names of arguments that it was found to take: binding costs 4 µs


# As many as the modules that tasks.python_modules allows have functions: a module is imported once, as ever.
_found: Final[dict[str, _Function]] = {}


def _find(name: str) -> _Function:
    """Import it. Raises `TaskFailed` of type `FunctionMissing` or `InvalidArguments`."""
    function = _function(name)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise _uncallable(name, error) from error
    found = _Function(function, signature, "task" in signature.parameters, inspect.iscoroutinefunction(function), set())
    _found[name] = found
    return found


def _called(function: _Function, call: TaskCall[PythonParams]) -> Any:
    arguments = dict(call.params.args)
    if function.takes_task:
        arguments["task"] = call
    rows = list(call.rows)
    names = frozenset(arguments)
    if names not in function.fitting:
        try:
            function.signature.bind(rows, **arguments)
        except TypeError as error:
            raise _uncallable(call.params.function, error) from error
        if len(function.fitting) < FITTING:
            function.fitting.add(names)
    return function.call(rows, **arguments)


def _uncallable(name: str, error: Exception) -> TaskFailed:
    return TaskFailed("InvalidArguments", f"{name} cannot be called so: {error}", retryable=False)


def _function(name: str) -> Callable[..., Any]:
    """Import it. Raises `TaskFailed` of type `FunctionMissing`."""
    place = _place(name) or name
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise TaskFailed(
            "FunctionMissing", f"{place} cannot be imported: {type(error).__name__}: {error}", retryable=False
        ) from error
    if not callable(found):
        raise TaskFailed("FunctionMissing", f"{place} is no function", retryable=False)
    if ":" in name and not _is_of(module, found):
        raise _refused(name, "its module only imports it from another distribution")
    function: Callable[..., Any] = found
    return function


def _is_of(module: str, found: Callable[..., Any]) -> bool:
    """Whether a module or one beside it in its package made the function: `acme.tools:run` must not be subprocess.run.

    An allowed module lends what it does, not what it happens to import.
    """
    while isinstance(found, functools.partial):
        found = found.func
    made_in = getattr(inspect.unwrap(found), "__module__", None)
    return isinstance(made_in, str) and made_in.partition(".")[0] == module.partition(".")[0]


def _place(name: str) -> str | None:
    """`module:function` of a registered name or of itself."""
    return name if ":" in name else _registered().get(name)


@functools.lru_cache(maxsize=1)
def _registered() -> dict[str, str]:
    return {entry.name: entry.value.partition("[")[0].strip() for entry in entry_points(group=GROUP)}


@functools.lru_cache(maxsize=1_024)
def _is_async(module: str, function: str) -> bool:
    """Whether the module's source says `async def` at its top; nothing is imported."""
    source = _source(module)
    if source is None:
        return False
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    found = [
        one for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == function
    ]
    # With a decorator it may be anything.
    return bool(found) and isinstance(found[-1], ast.AsyncFunctionDef) and not found[-1].decorator_list


def _source(module: str) -> Path | None:
    """Where a module's source is, found part by part: `importlib.util.find_spec` would import its packages."""
    path: list[str] | None = None
    spec = None
    for part in module.split("."):
        name = part if spec is None else f"{spec.name}.{part}"
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _refused(function: str, why: str) -> TaskFailed:
    return TaskFailed(
        "FunctionRefused",
        f"{function!r:.200} cannot be called: {why}",
        retryable=False,
        detail={"function": function[:200]},
    )
