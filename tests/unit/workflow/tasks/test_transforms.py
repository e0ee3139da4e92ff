"""transform.cel, transform.jmespath, transform.aggregate and transform.python."""

import asyncio
import functools
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.adapters.tasks.protocol import kind_of
from app.adapters.tasks.registry import Registry
from app.adapters.tasks.types.values import field_of
from app.domain.row_aggregates import aggregate, parse
from app.errors import TaskFailed
from tests.helpers.task_calls import Tasks, tasks

ROWS = [{"d": "a", "v": 1}, {"d": "b", "v": 5}, {"d": "a", "v": None}, {"d": "a", "v": 3.5}]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Tasks]:
    async with tasks(tmp_path, python_modules=["app.examples", "tests.unit.workflow.tasks"]) as types:
        yield types


# ---- cel


async def test_cel_filters_maps_and_folds(run: Tasks) -> None:
    rows = [{"t": 95, "d": "x"}, {"t": 20, "d": "y"}]
    context = {"input": {"limit": 90}, "needs": {"readings": rows}}
    assert await run.run("transform.cel", rows, filter="row.t > input.limit", context=context) == rows[:1]
    assert await run.run("transform.cel", rows, map="row.t + index") == [95, 21]
    mapped = await run.run("transform.cel", rows, filter="row.t < 50", map={"device": "row.d", "hot": "row.t > 90"})
    assert mapped == [{"device": "y", "hot": False}]
    assert await run.run("transform.cel", rows, value="size(rows) + size(readings)", context=context) == 4


async def test_an_expression_that_fails_names_its_row_or_drops_it(run: Tasks) -> None:
    rows = [{"t": 1}, {}, {"t": "x"}]
    failed = await run.failure("transform.cel", rows, filter="row.t > 0")
    assert (failed.type, failed.retryable, failed.detail) == ("ExpressionError", False, {"row": 1})
    assert await run.run("transform.cel", rows, filter="row.t > 0", on_error="drop") == rows[:1]
    assert (await run.failure("transform.cel", rows, filter="row")).type == "ExpressionError"
    assert (await run.failure("transform.cel", rows, filter="1 +")).type == "ExpressionError"
    with pytest.raises(ValidationError):
        await run.run("transform.cel", rows)


async def test_many_rows_let_the_loop_turn(run: Tasks) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    await run.run("transform.cel", [{"v": n} for n in range(2_000)], filter="row.v > 10")
    beside.cancel()
    assert turns >= 5


# ---- jmespath


async def test_jmespath_searches_rows_or_data(run: Tasks) -> None:
    assert await run.run("transform.jmespath", ROWS, query="[?v > `2`].d") == ["b", "a"]
    assert await run.run("transform.jmespath", ROWS, query="x.y", data={"x": {"y": 1}}) == 1
    assert await run.run("transform.jmespath", [], query="nothing") is None
    big = [{"v": n} for n in range(5_000)]
    assert await run.run("transform.jmespath", big, query="length([?v >= `100`])") == 4_900


async def test_a_query_that_is_none_or_fails_says_so(run: Tasks) -> None:
    for query in ("[", "no_such_function(@)", "(" * 3_000):
        try:
            failed = await run.failure("transform.jmespath", ROWS, query=query)
        except ValidationError:
            continue
        assert (failed.type, failed.retryable) == ("ExpressionError", False)
    assert (await run.failure("transform.jmespath", ROWS, query="sum([].d)")).type == "ExpressionError"


# ---- aggregate


async def test_rows_are_aggregated_by_group(run: Tasks) -> None:
    found = await run.run(
        "transform.aggregate",
        ROWS,
        group_by=["d"],
        aggregates={
            "n": "count()", "known": "count(v)", "sum": "sum(v)", "avg": "avg(v)", "low": "min(v)", "high": "max(v)",
            "first": "first(v)", "last": "last(v)", "mid": "p50(v)", "p99": "percentile(v, 99.9)",
            "kinds": "count_distinct(v)", "sd": "stddev(v)",
        },
    )  # fmt: skip
    assert found[0].items() >= {
        "d": "a", "n": 3, "known": 2, "sum": 4.5, "avg": 2.25, "low": 1, "high": 3.5, "first": 1, "last": 3.5,
        "mid": 2.25, "kinds": 2,
    }.items()  # fmt: skip
    assert math.isclose(found[0]["p99"], 3.4975)
    assert math.isclose(found[0]["sd"], 1.7677669529663689)
    assert found[1].items() >= {"d": "b", "n": 1, "sum": 5, "sd": None}.items()


async def test_no_rows_have_one_group_without_group_by_and_none_with_it(run: Tasks) -> None:
    wanted = {"n": "count()", "s": "sum(v)", "f": "first(v)", "p": "p95(v)"}
    assert await run.run("transform.aggregate", [], aggregates=wanted) == [{"n": 0, "s": None, "f": None, "p": None}]
    assert await run.run("transform.aggregate", [], group_by=["d"], aggregates=wanted) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sum",
        "sum()",
        "sum(v",
        "median(v)",
        "p101(v)",
        "percentile(v)",
        "percentile(v, 101)",
        "sum(v, 1)",
        "first()",
    ],
)
def test_what_is_no_aggregate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


@pytest.mark.parametrize("values", [[1, "x"], ["x", 1], [True], [[1]], [{}]])
async def test_a_value_that_does_not_fit_names_its_row(run: Tasks, values: list[Any]) -> None:
    rows = [{"v": value} for value in values]
    for function in ("sum", "max", "p95"):
        failed = await run.failure("transform.aggregate", rows, aggregates={"x": f"{function}(v)"})
        assert (failed.type, failed.retryable) == ("InvalidRow", False)


async def test_numbers_beyond_what_json_holds_are_a_failure(run: Tasks) -> None:
    rows = [{"v": 1e308}] * 300
    failed = await run.failure("transform.aggregate", rows, aggregates={"x": "sum(v)"})
    assert failed.type == "InvalidRow"
    found = await run.run("transform.aggregate", [{"v": 2**63}, {"v": 2**63}], aggregates={"x": "sum(v)"})
    assert found == [{"x": float(2**64)}]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)
)


@given(st.lists(st.tuples(JSON, st.none() | st.integers(-1000, 1000)), max_size=30))
def test_groups_part_the_rows_and_sums_add_up(pairs: list[tuple[Any, int | None]]) -> None:
    rows = [{"k": k, "v": v} for k, v in pairs]
    wanted = {
        "n": parse("count()"),
        "s": parse("sum(v)"),
        "lo": parse("min(v)"),
        "hi": parse("max(v)"),
        "m": parse("p50(v)"),
    }
    groups = aggregate(rows, ["k"], wanted, field_of)
    assert sum(group["n"] for group in groups) == len(rows)
    assert sum(group["s"] or 0 for group in groups) == sum(v or 0 for _, v in pairs)
    for group in groups:
        if group["s"] is not None:
            assert group["lo"] <= group["m"] <= group["hi"]
    assert len({repr(group["k"]) for group in groups}) == len(groups)


# ---- python


def double(rows: list[Any], factor: int = 2) -> list[Any]:
    """A plain function."""
    return [row * factor for row in rows]


async def gently(rows: list[Any], *, task: Any) -> Any:
    """An async function that asks for its task."""
    await asyncio.sleep(0)
    task.heartbeat()
    return [task.idempotency_key, task.attempt, rows]


def fails(rows: list[Any]) -> None:
    """Raises what it is told to."""
    raise TaskFailed("MachineOnFire", f"{len(rows)} rows", retryable=False)


HERE = "tests.unit.workflow.tasks.test_transforms"
thrice = functools.partial(double, factor=3)
dumped = functools.partial(json.dumps, indent=1)


@functools.wraps(double)
def decorated(*args: Any, **named: Any) -> Any:
    """What a decorator makes of a function."""
    return double(*args, **named)


async def test_functions_are_called_with_rows_and_args(run: Tasks) -> None:
    assert await run.run("transform.python", [1, 2], function=f"{HERE}:double", args={"factor": 3}) == [3, 6]
    assert await run.run("transform.python", [1], function=f"{HERE}:double", mode="thread") == [2]
    assert await run.run("transform.python", [1], function=f"{HERE}:gently", effect="e/t") == ["e/t", 1, [1]]
    assert await run.run("transform.python", [1], function=f"{HERE}:gently", mode="thread", effect="e/t") == [
        "e/t",
        1,
        [1],
    ]
    assert await run.run("transform.python", [1], function=f"{HERE}:thrice", mode="thread") == [3]
    assert await run.run("transform.python", [1], function=f"{HERE}:decorated", mode="thread") == [2]
    rows = [{"at": n, "value": 2 * n + 1} for n in range(5)]
    found = await run.run("transform.python", rows, function="app.examples.transforms:trend")
    assert found == {"slope": 2.0, "intercept": 1.0, "count": 5}


@pytest.mark.parametrize(
    ("function", "mode", "kind"),
    [
        (f"{HERE}:double", "auto", "process"),
        (f"{HERE}:gently", "auto", "async"),
        (f"{HERE}:double", "thread", "blocking"),
        (f"{HERE}:gently", "process", "process"),
        ("no.such.module:f", "auto", "process"),
        ("registered", "auto", "process"),
        ("app.examples.transforms:pause", "auto", "async"),
        ("json:dumps", "auto", "process"),
        ("time:sleep", "auto", "process"),
    ],
)
def test_a_function_runs_where_it_holds_nobody_up(function: str, mode: str, kind: str) -> None:
    task_type = Registry([]).get("transform.python")
    assert kind_of(task_type, task_type.params_model.model_validate({"function": function, "mode": mode})) == kind


@pytest.mark.parametrize(
    "function",
    [
        "os:system",
        "app.errors:UserError",
        "app.examples_too:f",
        "app.examples",
        "unregistered",
        "app.examples:",
        "../x:y",
        ":f",
    ],
)
async def test_only_allowed_modules_are_called(run: Tasks, function: str) -> None:
    failed = await run.failure("transform.python", [], function=function)
    assert (failed.type, failed.retryable) == ("FunctionRefused", False)


@pytest.mark.parametrize("mode", ["auto", "thread", "process", "async"])
@pytest.mark.parametrize("function", ["field_of", "Path", "given", "dumped"])
async def test_what_an_allowed_module_only_imports_is_not_called(run: Tasks, function: str, mode: str) -> None:
    failed = await run.failure("transform.python", [], function=f"{HERE}:{function}", mode=mode)
    assert (failed.type, failed.retryable) == ("FunctionRefused", False)
    assert "imports it" in failed.message


async def test_what_cannot_be_called_says_why(run: Tasks) -> None:
    cases = {
        ("app.examples.no_such:f", "thread"): "FunctionMissing",
        ("app.examples.transforms:no_such", "thread"): "FunctionMissing",
        (f"{HERE}:HERE", "thread"): "FunctionMissing",
        (f"{HERE}:double", "async"): "FunctionRefused",
        (f"{HERE}:fails", "thread"): "MachineOnFire",
    }
    for (function, mode), type_ in cases.items():
        assert (await run.failure("transform.python", [1], function=function, mode=mode)).type == type_
    failed = await run.failure("transform.python", [1], function=f"{HERE}:double", args={"facto": 1})
    assert (failed.type, failed.retryable) == ("InvalidArguments", False)
