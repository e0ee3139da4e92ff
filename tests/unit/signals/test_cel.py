"""Laws of expressions: what is bounded, what is refused, what is told."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.adapters.cel import MAX_SOURCE_CHARS, compile_cel
from app.domain.signal_rules import ExpressionFailed
from app.domain.signal_steps import EXAMPLE_READING


def test_an_expression_reads_only_what_it_names() -> None:
    expression = compile_cel("value > 90.0 && quality == 'GOOD'", EXAMPLE_READING)
    assert expression.variables == {"value", "quality"}
    assert expression({"value": 91.0, "quality": "GOOD"}) is True


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "mismatched input"),
        ("value >", "Syntax error"),
        ("valeu > 1.0", "valeu is not known here; known are"),
        ("value + 1 > 2.0", "does not coerce between types"),
        ("value > 1.0 || " * 100 + "true", f"the most is {MAX_SOURCE_CHARS}"),
        ("[1].map(x, [1].map(y, x))", "has 2 comprehensions"),
        ("nothing()", "Undefined variable or function: 'nothing'"),
    ],
)
def test_a_faulty_expression_is_refused_with_one_sentence(source: str, told: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        compile_cel(source, EXAMPLE_READING)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_comprehension_is_allowed_and_its_variable_is_known() -> None:
    expression = compile_cel("['press-', 'pump-'].exists(p, device_id.startsWith(p))", EXAMPLE_READING)
    assert expression.variables == {"device_id"}
    assert expression({"device_id": "pump-0001"}) is True


@pytest.mark.parametrize("value", [None, "text", 10**30])
def test_a_value_of_another_type_is_a_failure_not_a_crash(value: object) -> None:
    expression = compile_cel("1 / int(value) > 0 && value > 1.0", EXAMPLE_READING)
    with pytest.raises(ExpressionFailed):
        expression({"value": value})


@given(source=st.text(max_size=60) | st.text("()[]{}!-+*/&|?:.,'\"value0123456789 ", max_size=MAX_SOURCE_CHARS))
def test_any_text_is_compiled_or_refused(source: str) -> None:
    with contextlib.suppress(ValueError):
        assert compile_cel(source, EXAMPLE_READING).variables <= EXAMPLE_READING.keys()


@pytest.mark.parametrize("piece", ["(", "[", "{", "!", "-", "1+", "a.", "a[", "true?1:", "value>0.0&&"])
def test_deep_nesting_neither_hangs_nor_kills(piece: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        compile_cel((piece * MAX_SOURCE_CHARS)[: MAX_SOURCE_CHARS - 1] + "?", EXAMPLE_READING)
