"""Laws of the benchmarks' input and of the work that every side must give."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.golden import same_window, window_count
from app.bench.payload import WINDOW_MS, Plan, converted, expected_rollups, flush_samples, plan_until, samples

START_MS = 1_763_689_000_000


@given(st.integers(1, 300), st.integers(1, 12))
def test_samples_are_json_keyed_by_their_device_in_order_of_time(records: int, devices: int) -> None:
    plan = Plan(records, START_MS, devices)
    made = list(samples(plan))
    assert len(made) == records
    assert [r.timestamp_ms for r in made] == sorted(r.timestamp_ms for r in made)
    seqs: dict[str, int] = {}
    for record in made:
        value = json.loads(record.value)
        assert value["device_id"].encode() == record.key
        assert value["source_timestamp"] == record.timestamp_ms
        assert value["seq"] == seqs.get(value["device_id"], 0) + 1
        seqs[value["device_id"]] = value["seq"]


def test_a_payload_has_the_stated_size() -> None:
    assert {len(record.value) for record in samples(Plan(2000, START_MS))} <= set(range(246, 250))


@given(st.integers(1, 60), st.integers(1, 7))
def test_expected_rollups_are_what_the_json_adds_up_to(instants: int, devices: int) -> None:
    plan = Plan(instants * devices, START_MS, devices)
    rows: dict[tuple[str, int], list[float]] = {}
    for record in samples(plan):
        value = json.loads(record.value)
        start = record.timestamp_ms - record.timestamp_ms % WINDOW_MS
        rows.setdefault((value["device_id"], start), []).append(value["metrics"][0]["value"])
    expected = expected_rollups(plan)
    assert expected.keys() == rows.keys()
    for key, found in rows.items():
        window = {
            "metric": "temperature",
            "window_ms": WINDOW_MS,
            "open": found[0],
            "high": max(found),
            "low": min(found),
            "close": found[-1],
            "count": len(found),
            "sum": sum(found),
        }
        assert same_window(window, expected[key])
        assert not same_window({**window, "high": max(found) + 1}, expected[key])
        assert not same_window({**window, "count": len(found) + 1}, expected[key])


@given(st.integers(1, 20), st.integers(1, 7))
def test_whole_windows_are_counted_and_the_flush_comes_after_all_of_them(windows: int, devices: int) -> None:
    plan = Plan(windows * WINDOW_MS // 1000 * devices, START_MS, devices)
    assert window_count(plan) == len(expected_rollups(plan))
    assert all(record.timestamp_ms >= plan.end_ms + WINDOW_MS for record in flush_samples(plan))
    assert len({record.key for record in flush_samples(plan)}) == devices


@given(st.integers(10**12, 2 * 10**12), st.integers(1, 10**6))
def test_a_plan_lies_in_the_past_and_starts_with_a_window(now_ms: int, records: int) -> None:
    plan = plan_until(now_ms, records)
    assert plan.start_ms % WINDOW_MS == 0
    assert plan.flush_ms < now_ms


def test_conversion_changes_value_and_unit_and_adds_the_site() -> None:
    before = json.loads(next(samples(Plan(1, START_MS))).value)
    after = converted(before)
    assert after["metrics"][0]["value"] == pytest.approx(before["metrics"][0]["value"] * 1.8 + 32)
    assert after["metrics"][0]["unit"] == "FAH"
    assert {**after, "metrics": before["metrics"]} == {**before, "site": "north"}
