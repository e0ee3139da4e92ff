"""Laws of the checker: silent on what is right, and each seeded fault is found."""

import random

import pytest

from app.domain.reading import Sample
from app.domain.recompute import Telemetry, compare, recompute, watermarks
from app.domain.rollup import DeviceState, Outcome, process_device
from tests.helpers.telemetry import START_MS, in_batches, run, sample, small_spec

SPEC = small_spec(2_000)


def fleet_samples() -> list[Sample]:
    """Three sessions' worth of one device, out of order, with duplicates, gaps, late and null readings."""
    rng = random.Random(3)
    samples = []
    for seq in range(1, 200):
        if seq % 17:
            value = None if seq % 13 == 0 else round(rng.gauss(70, 5), 3)
            samples.append(sample(seq, seq * 311, value, value, session_id=1 + seq // 70))
    arrivals = [(item.source_timestamp + rng.randint(0, 4_000), item) for item in samples]
    arrivals += rng.sample(arrivals, 20)
    return [item for _, item in sorted(arrivals, key=lambda arrival: arrival[0])]


SAMPLES = fleet_samples()
TELEMETRY = [Telemetry(0, offset, item) for offset, item in enumerate(SAMPLES)]
OUT = run(SAMPLES, SPEC, (7,))
LATE = {(0, late.offset) for late in OUT.late}
WANT = recompute(TELEMETRY, LATE, set(), SPEC)


def kinds(rollups) -> set[str]:
    return {difference.kind for difference in compare(WANT, rollups)}


def test_right_rollups_have_no_difference() -> None:
    assert LATE
    assert OUT.duplicates
    assert compare(WANT, OUT.rollups) == []
    assert compare(WANT, OUT.rollups * 2) == []


@pytest.mark.parametrize("at", range(0, len(SAMPLES), 9))
def test_a_lost_reading_is_found(at) -> None:
    if at in {late.offset for late in OUT.late} or SAMPLES.count(SAMPLES[at]) > 1:
        at = next(n for n in range(at, -1, -1) if SAMPLES.count(SAMPLES[n]) == 1 and (0, n) not in LATE)
    lost = run(SAMPLES[:at] + SAMPLES[at + 1 :], SPEC, (7,))
    assert kinds(lost.rollups) >= {"wrong_value"} or "missing_window" in kinds(lost.rollups)


def test_a_double_count_is_found() -> None:
    item = next(item for item in OUT.accepted if item.metrics[0].value is not None)
    at = SAMPLES.index(item)
    again = item._replace(session_id=99)
    doubled = run([*SAMPLES[: at + 1], again, *SAMPLES[at + 1 :]], SPEC, (7,))
    found = compare(WANT, doubled.rollups)
    assert any(difference.detail.startswith("count") for difference in found)


def test_a_double_count_of_a_batch_taken_twice_is_found() -> None:
    state, out = DeviceState("press-0001", SPEC), Outcome()
    for index, batch in enumerate(in_batches(SAMPLES, (7,))):
        process_device(state, batch, SPEC, START_MS, out)
        if index == 5:
            state.seen.sessions.clear()  # what a crash between state and offset would do
            state.seen.current = None
            process_device(state, batch, SPEC, START_MS, out)
    assert "wrong_value" in kinds(out.rollups)


def test_a_missing_window_is_found() -> None:
    key = next(iter(WANT))
    kept = [rollup for rollup in OUT.rollups if (rollup.metric, rollup.window_start, rollup.window_ms) != key[1:]]
    assert [(found.kind, found.key) for found in compare(WANT, kept)] == [("missing_window", key)]


def test_a_missing_final_revision_is_found() -> None:
    final = next(rollup for rollup in OUT.rollups if rollup.is_final and rollup.revision > 0)
    kept = [rollup for rollup in OUT.rollups if rollup is not final]
    assert [(found.kind, found.key[2]) for found in compare(WANT, kept)] == [("missing_final", final.window_start)]


def test_a_window_nothing_accounts_for_is_found() -> None:
    stray = OUT.rollups[0]._replace(metric="ghost")
    assert kinds([*OUT.rollups, stray]) == {"unexpected_window"}


def test_two_contents_of_one_revision_are_found() -> None:
    first = OUT.rollups[0]
    assert "conflicting_revision" in kinds([first._replace(sum=first.sum + 1), *OUT.rollups])


def test_a_revision_after_the_final_one_is_found() -> None:
    final = next(rollup for rollup in OUT.rollups if rollup.is_final)
    assert kinds([*OUT.rollups, final._replace(revision=final.revision + 1)]) == {"revision_after_final"}


@pytest.mark.parametrize(
    "field", ["open", "high", "low", "close", "sum", "mean", "variance", "m2", "good_count", "gaps", "unit", "seq_last"]
)
def test_every_wrong_field_is_found(field) -> None:
    at = next(n for n, rollup in enumerate(OUT.rollups) if rollup.is_final and rollup.count > 3)
    value = getattr(OUT.rollups[at], field)
    change = "X" if isinstance(value, str) else 1e-3 if isinstance(value, float) else 1
    wrong = OUT.rollups[at]._replace(**{field: value + change})
    found = compare(WANT, [*OUT.rollups[:at], wrong, *OUT.rollups[at + 1 :]])
    assert [difference.kind for difference in found] == ["wrong_value"]
    assert found[0].detail.startswith(field)


def test_windows_still_open_need_not_be_final() -> None:
    state, out = DeviceState("press-0001", SPEC), Outcome()
    for batch in in_batches(SAMPLES, (7,)):
        process_device(state, batch, SPEC, START_MS, out)
    assert kinds(out.rollups) >= {"missing_window"}
    settled = {device: ts - SPEC.grace_ms for device, ts in watermarks(TELEMETRY, set()).items()}
    assert compare(WANT, out.rollups, settled) == []


def test_dead_letters_and_what_cannot_be_read_are_left_out() -> None:
    bad = [Telemetry(0, 10_000, None), Telemetry(0, 10_001, sample(9_999, 900_000, 1.0))]
    assert recompute([*TELEMETRY, *bad], LATE, {(0, 10_001)}, SPEC) == WANT
