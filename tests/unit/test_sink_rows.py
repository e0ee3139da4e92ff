"""The laws of turning decoded records into rows."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec import encode_rollup, encode_signal
from app.domain.rollup import Rollup
from app.domain.signal_record import Signal
from app.domain.sink_rows import (
    ROLLUPS,
    SHAPES,
    SIGNALS,
    IdentifiedRow,
    reading_rows,
    refusal,
    rollup_row,
    signal_row,
)
from app.ports import SinkRow

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(sorted({c.name for s in SHAPES.values() for c in s.columns} | {"metrics", "odd"}))
objects = st.dictionaries(field_names, json_values, max_size=12)


@given(objects | json_values)
def test_any_decoded_value_gives_a_row_or_a_reason(value: Any) -> None:
    for read in (rollup_row, signal_row):
        row = read(value)
        assert isinstance(row, str) or (row.key == tuple(row.row[name] for name in row.key_fields))
    rows = reading_rows(value)
    assert isinstance(rows, str | tuple)


@given(objects)
def test_a_row_that_fits_its_columns_has_only_their_types(row: dict[str, Any]) -> None:
    types: dict[str, tuple[type, ...]] = {
        "text": (str,), "integer": (int,), "number": (int, float), "flag": (bool,), "json": (object,)
    }  # fmt: skip
    for shape in SHAPES.values():
        if refusal(shape, row) is None:
            for name, kind, required in shape.columns:
                value = row.get(name)
                assert (value is None and not required) or isinstance(value, types[kind])


def rollup(**changes: Any) -> dict[str, Any]:
    return {
        "device_id": "p", "metric": "m", "window_start": 0, "window_end": 10, "window_ms": 10, "revision": 3, **changes
    }  # fmt: skip


def test_a_rollup_is_known_by_device_metric_and_window_and_ordered_by_revision() -> None:
    row = rollup_row(rollup())
    assert isinstance(row, IdentifiedRow)
    assert (row.key, row.version) == (("p", "m", 0, 10), 3)


def test_a_window_size_follows_from_its_ends() -> None:
    value = rollup()
    del value["window_ms"]
    row = rollup_row(value)
    assert isinstance(row, IdentifiedRow)
    assert row.key == ("p", "m", 0, 10)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device_id": None}, "device_id is missing"),
        ({"device_id": ""}, "device_id is missing"),
        ({"device_id": 7}, "device_id is not text but int"),
        ({"device_id": "x" * 256}, "device_id is 256 characters long, more than 255"),
        ({"window_start": "0"}, "window_start is not a whole number but str"),
        ({"window_start": True}, "window_start is not a whole number but bool"),
        ({"window_start": 1 << 63}, "window_start needs more than 64 bits"),
        ({"revision": -1}, "revision is not a whole number from 0"),
        ({"revision": 1.0}, "revision is not a whole number from 0"),
    ],
)
def test_a_rollup_without_identity_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    assert rollup_row(rollup(**changes)) == reason


def test_a_cleared_signal_has_the_higher_version() -> None:
    versions = [signal_row({"signal_id": "s", "state": state}) for state in ("raised", "cleared")]
    assert [row.version for row in versions if isinstance(row, IdentifiedRow)] == [0, 1]
    assert signal_row({"signal_id": "s", "state": "odd"}) == "state is neither raised nor cleared"


def test_a_sample_gives_a_row_for_each_metric() -> None:
    rows = reading_rows({"device_id": "p", "session_id": 1, "seq": 2, "metrics": [{"metric": "a"}, {"metric": "b"}]})
    assert isinstance(rows, tuple)
    assert [row.key for row in rows] == [("p", 1, 2, "a"), ("p", 1, 2, "b")]


def test_one_bad_metric_refuses_the_whole_sample() -> None:
    value = {"device_id": "p", "session_id": 1, "seq": 2, "metrics": [{"metric": "a"}, {"metric": None}]}
    assert reading_rows(value) == "metrics[1]: metric is missing"


def test_not_finite_numbers_fit_no_column() -> None:
    for value in (float("nan"), float("inf"), "1.0", True):
        assert refusal(ROLLUPS, rollup(mean=value)) is not None


def test_an_identified_row_is_the_beginning_of_a_sink_row() -> None:
    assert SinkRow._fields == (*IdentifiedRow._fields, "source")


def test_every_field_of_a_rollup_has_its_column() -> None:
    assert {column.name for column in ROLLUPS.columns} == set(Rollup._fields)
    values = dict.fromkeys(Rollup._fields, 1) | {"device_id": "p", "metric": "m", "unit": "CEL", "is_final": True}
    row = rollup_row(json.loads(encode_rollup(Rollup(**values))))  # type: ignore[arg-type]
    assert isinstance(row, IdentifiedRow)
    assert refusal(ROLLUPS, row.row) is None


def test_every_field_of_a_signal_has_its_column() -> None:
    signal = Signal("id", "rule", "threshold", "warning", "p", None, "cleared", 2, 1, 1.5, None, "CEL", {"mean": 1.5})
    value = json.loads(encode_signal(signal))
    assert {column.name for column in SIGNALS.columns} == set(value)
    row = signal_row(value)
    assert isinstance(row, IdentifiedRow)
    assert refusal(SIGNALS, row.row) is None
