"""Laws of the estimate of a value's size as JSON."""

from typing import Any

import msgspec
import pytest
from hypothesis import given

from app.domain.workflow.weight import weight
from tests.unit.workflow.core.test_wire import values

LARGE = 1 << 30


@given(values)
def test_estimate_is_close_to_what_is_written(value: Any) -> None:
    written = len(msgspec.json.encode(value))
    assert written * 0.9 - 8 <= weight(value, LARGE) <= written * 1.25 + 16


@pytest.mark.parametrize("value", ["\x00" * 1_000, "é" * 1_000, '\n"' * 1_000, ["x" * 100] * 50, {"key": [1.5] * 400}])
def test_escapes_and_letters_beyond_ascii_count_as_they_are_written(value: Any) -> None:
    written = len(msgspec.json.encode(value))
    assert weight(value, LARGE) == pytest.approx(written, rel=0.1)


def test_counting_stops_beyond_the_limit() -> None:
    assert 1_000 < weight(["x" * 100] * 1_000_000, 1_000) < 2_000_000


def test_depth_is_no_problem() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert weight(value, LARGE) > 200_000
