"""Comprehensions and sizes that are carried out here come to what the library itself makes of them."""

from typing import Any

import cel
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.cel_plan import compiled
from app.adapters.expressions import CelExpressions
from app.domain.workflow.expressions import ExpressionError

NAMES: dict[str, Any] = {
    "l": [3, 1, 2],
    "m": [],
    "o": {"a": {"b": [1, 2]}, "n": 5, "rows": [{"t": 1, "u": [1]}, {"t": 2, "u": []}]},
    "n": 2,
}
REFUSED = "refused"
NUMBERS = st.sampled_from(
    ["1", "2", "n", "o.n", "o['n']", "l[0]", "l.size()", "size(l)", "size(o.a.b)", "o.rows.size()"]
)
LISTS = ("l", "m", "[1, 2]", "o.a.b", 'o["a"].b', "o.rows[0].u", "(l + m)", "[[1], [2]][0]", "{'k': l}.k")


def numbers(variables: tuple[str, ...]) -> st.SearchStrategy[str]:
    leaf = NUMBERS if not variables else NUMBERS | st.sampled_from(variables)
    return st.one_of(leaf, st.builds("({} + {})".format, leaf, leaf), st.builds("{} * {}".format, leaf, leaf))


def booleans(variables: tuple[str, ...]) -> st.SearchStrategy[str]:
    number = numbers(variables)
    sign = st.sampled_from(["<", ">", "==", "!="])
    return st.one_of(
        st.builds("{} {} {}".format, number, sign, number),
        st.builds("({0} > 1 && has(o.a)) || {0} in l".format, number),
        st.just("has(o.zzz)"),
    )


@st.composite
def lists(draw: st.DrawFn, depth: int = 2, variables: tuple[str, ...] = ()) -> str:
    leaf = st.sampled_from(LISTS)
    if depth == 0:
        return draw(leaf)
    kind = draw(st.integers(0, 5))
    inner = draw(lists(depth - 1, variables))
    new = f"x{len(variables)}"
    if kind == 0:
        return f"{inner}.map({new}, {draw(numbers((*variables, new)))})"
    if kind == 1:
        return f"{inner}.filter({new}, {draw(booleans((*variables, new)))})"
    if kind == 2:
        return f"({inner} + {draw(leaf)})"
    if kind == 3:
        return f"({draw(booleans(variables))} ? {inner} : {draw(lists(depth - 1, variables))})"
    if kind == 4:
        body = draw(booleans((*variables, new)))
        return f"{inner}.map({new}, {body}, {draw(numbers((*variables, new)))})"
    return draw(leaf)


@st.composite
def expressions(draw: st.DrawFn) -> str:
    one = draw(lists())
    macro = draw(st.sampled_from(["all", "exists", "exists_one"]))
    nested = draw(lists(1, ("x0",)))
    return draw(
        st.sampled_from(
            [
                one,
                f"{one}.size() > 1",
                f"size({one})",
                f"{one}.{macro}(x0, {draw(booleans(('x0',)))})",
                f"{one}.{macro}(x0, {nested}.exists(y, y == x0))",
                f"o.rows.filter(r, r.t > 1 || {one}.size() == r.u.size()).map(r, r.t)",
                f"{{'a': {one}, 'b': [{draw(numbers(()))}]}}.a",
                f"{draw(booleans(()))} && {one}.{macro}(x0, x0 > 1)",
                f"'it says [1].map(x, y)' + string({draw(numbers(()))})",
            ]
        )
    )


def natively(source: str) -> Any:
    try:
        return cel.compile(source).execute(NAMES)
    except Exception:  # noqa: BLE001 - the library raises six unrelated builtin types
        return REFUSED


def here(source: str) -> Any:
    try:
        return CelExpressions().evaluate(source, NAMES)
    except ExpressionError:
        return REFUSED


@settings(max_examples=150, deadline=None)
@given(expressions())
def test_an_expression_comes_to_what_the_library_makes_of_it(source: str) -> None:
    if len(source) <= 1024 and "nested more than" not in _why_not(source):
        assert here(source) == natively(source), source


def _why_not(source: str) -> str:
    try:
        compiled(source)
    except ValueError as error:
        return str(error)
    return ""
