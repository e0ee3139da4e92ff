"""Laws of reading rows for sinks."""

from types import SimpleNamespace
from typing import Any

import orjson

from app.adapters.sinks.rows import rows_of
from app.codec import encode_rollup
from app.domain.rollup import DeviceState, Outcome, close_all, process_device
from app.domain.window import RollupSpec, Rung
from tests.helpers.telemetry import START_MS, sample


def rollup_records() -> list[Any]:
    """A device's rollups of windows of 1 s and 10 s, as they are on Kafka."""
    spec = RollupSpec(rungs=(Rung(1_000), Rung(10_000)), grace_ms=0)
    state, out = DeviceState("press-0001", spec), Outcome()
    process_device(state, [(0, sample(1, START_MS)), (1, sample(2, START_MS + 2_000))], spec, START_MS, out)
    close_all(state, spec, out)
    return [
        SimpleNamespace(topic="device.rollups", partition=0, offset=number, value=encode_rollup(rollup))
        for number, rollup in enumerate(out.rollups)
    ]


def test_rollups_of_short_windows_are_left_out_and_refused_by_nobody() -> None:
    records = rollup_records()
    sizes = {orjson.loads(record.value)["window_ms"] for record in records}
    assert sizes == {1_000, 10_000}
    to_rows = rows_of(["device.rollups"], min_window_ms=10_000)
    kept = [row for record in records for row in to_rows(record)]
    assert {row.row["window_ms"] for row in kept if not isinstance(row, str)} == {10_000}
    assert all(to_rows(record) == () for record in records if b'"window_ms":1000,' in record.value)


def test_what_could_not_be_written_again_is_no_row_but_has_a_reason() -> None:
    record = rollup_records()[0]
    for depth in (101, 300, 1000):
        deep = record.value[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
        odd = SimpleNamespace(topic="device.rollups", partition=0, offset=9, value=deep)
        assert "levels deep" in str(rows_of(["device.rollups"])(odd))
