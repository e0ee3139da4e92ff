"""Laws of the rollup stage of one device."""

import math

from hypothesis import given
from hypothesis import strategies as st

from app.domain.dedupe import DedupeSpec
from app.domain.reading import Sample
from app.domain.recompute import Telemetry, compare, recompute
from app.domain.rollup import DeviceState, Outcome, Rollup, advance_idle, close_all, process_device
from app.domain.window import RollupSpec
from tables.telemetry import device_key, encode_changes, load_device
from tests.helpers.telemetry import START_MS, disorders, finals, in_batches, run, sample, sequences, small_spec

GRACE_MS = 3_000
POLICIES = st.sampled_from(("on_close", "on_final"))
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=5)
WIDE = DedupeSpec(sessions=64, missing_ranges=1_000)  # forgets nothing
ARRIVAL_FIELDS = ("revision", "late_count")


def steady(out: Outcome) -> dict[tuple[str, str, int, int], Rollup]:
    """The final rollups without the number of emissions, which depends on the batches."""
    return {key: rollup._replace(revision=0) for key, rollup in finals(out.rollups).items()}


def approximately(found: Rollup, want: Rollup) -> None:
    for name, one, other in zip(Rollup._fields, found, want, strict=True):
        if name in {"sum", "mean", "variance", "m2"} and one is not None:
            assert math.isclose(float(one), float(other or 0.0), rel_tol=1e-6, abs_tol=1e-3), name
        elif name not in ARRIVAL_FIELDS:
            assert one == other, name


@given(disorders(6_000), SIZES, POLICIES)
def test_any_batching_gives_the_same_final_rollups(samples, sizes, emit) -> None:
    spec = small_spec(GRACE_MS, emit=emit)
    whole, cut = run(samples, spec, (1_000,)), run(samples, spec, sizes)
    assert steady(whole) == steady(cut)
    assert (whole.late, whole.accepted) == (cut.late, cut.accepted)
    assert (whole.duplicates, whole.gaps) == (cut.duplicates, cut.gaps)


@given(disorders(GRACE_MS - 1_000), POLICIES)
def test_disorder_within_the_grace_gives_the_same_final_aggregates(samples, emit) -> None:
    spec = small_spec(GRACE_MS, emit=emit, dedupe=WIDE)
    ordered = sorted(set(samples), key=lambda item: (item.source_timestamp, item.session_id, item.seq))
    want, out = finals(run(ordered, spec).rollups), run(samples, spec)
    found = finals(out.rollups)
    assert not out.late
    assert found.keys() == want.keys()
    for key, rollup in found.items():
        approximately(rollup, want[key])


@given(disorders(6_000), st.data())
def test_duplicates_change_nothing_but_their_count(samples, data) -> None:
    spec = small_spec(GRACE_MS, dedupe=WIDE)
    distinct = list(dict.fromkeys(samples))
    repeated: list[Sample] = []
    for item in distinct:
        repeated.append(item)
        if data.draw(st.booleans()):
            repeated.append(data.draw(st.sampled_from(repeated)))
    once, twice = run(distinct, spec, (1_000,)), run(repeated, spec, (1_000,))
    assert once.rollups == twice.rollups
    assert once.gaps == twice.gaps
    assert twice.duplicates == len(repeated) - len(distinct)


@given(disorders(9_000), SIZES)
def test_every_sample_is_accepted_late_or_a_duplicate(samples, sizes) -> None:
    out = run(samples, small_spec(1_000), sizes)
    assert len(out.accepted) + len(out.late) + out.duplicates == len(samples)
    readings = sum(len(item.metrics) for item in out.accepted)
    counted = [rollup for rollup in finals(out.rollups).values() if rollup.window_ms == 1_000]
    assert sum(rollup.good_count + rollup.bad_count for rollup in counted) == readings
    assert all(late.late_by_ms > 0 for late in out.late)


@given(disorders(9_000), SIZES, POLICIES)
def test_each_rung_equals_the_direct_computation_from_the_readings(samples, sizes, emit) -> None:
    spec = small_spec(1_000, emit=emit)
    out = run(samples, spec, sizes)
    late = {(0, item.offset) for item in out.late}
    telemetry = [Telemetry(0, offset, item) for offset, item in enumerate(samples)]
    assert compare(recompute(telemetry, late, set(), spec), out.rollups) == []


@given(disorders(9_000), SIZES, POLICIES)
def test_the_state_may_be_stored_and_loaded_between_any_two_batches(samples, sizes, emit) -> None:
    spec = small_spec(1_000, emit=emit)
    live, stored = Outcome(), Outcome()
    state = DeviceState("press-0001", spec)
    table: dict[bytes, bytes] = {}
    for batch in in_batches(samples, sizes):
        process_device(state, batch, spec, START_MS, live)
        loaded = load_device("press-0001", table.get, spec)
        step = Outcome()
        process_device(loaded, batch, spec, START_MS, step)
        for changed, windows in step.changed:
            table.update(encode_changes(changed, windows, spec))
        stored.rollups += step.rollups
        stored.late += step.late
        stored.duplicates += step.duplicates
        stored.gaps += step.gaps
    close_all(state, spec, live)
    close_all(load_device("press-0001", table.get, spec), spec, stored)
    assert live.rollups == stored.rollups
    assert (live.late, live.duplicates, live.gaps) == (stored.late, stored.duplicates, stored.gaps)


@given(disorders(9_000), SIZES)
def test_the_keys_of_a_device_are_bounded(samples, sizes) -> None:
    spec = small_spec(1_000)
    state = DeviceState("press-0001", spec)
    table: dict[bytes, bytes] = {}
    for batch in in_batches(samples, sizes):
        out = Outcome()
        process_device(state, batch, spec, START_MS, out)
        for changed, windows in out.changed:
            table.update(encode_changes(changed, windows, spec))
    finest = spec.grace_ms // spec.base_ms + 2
    coarser = sum(-(-rung.size_ms // rung.step_ms) for rung in spec.rungs[1:])
    assert len(table) <= 1 + max(finest, *sizes) + coarser + max(sizes)
    assert device_key("press-0001") in table


@given(disorders(9_000), SIZES, POLICIES)
def test_revisions_grow_by_one_and_end_with_the_only_final(samples, sizes, emit) -> None:
    revisions: dict[tuple[str, int, int], int] = {}
    ended = set()
    for rollup in run(samples, small_spec(1_000, emit=emit), sizes).rollups:
        key = (rollup.metric, rollup.window_start, rollup.window_ms)
        assert key not in ended
        if key in revisions:
            assert rollup.revision == revisions[key] + 1
        revisions[key] = rollup.revision
        if rollup.is_final:
            ended.add(key)
    assert ended == revisions.keys()
    if emit == "on_final":
        assert set(revisions.values()) <= {0}


@given(sequences(), POLICIES, st.integers(200, 5_000))
def test_windows_always_close_while_the_device_is_silent(samples, emit, tick_ms) -> None:
    spec = small_spec(GRACE_MS, emit=emit)
    state, out = DeviceState("press-0001", spec), Outcome()
    process_device(state, list(enumerate(samples)), spec, START_MS, out)
    longest = spec.rungs[-1].size_ms + spec.grace_ms + spec.idle_timeout_ms
    for now_ms in range(START_MS, START_MS + longest + 2 * tick_ms, tick_ms):
        advance_idle(state, spec, now_ms, 0, out)
    assert not any(state.open)
    assert steady(out) == steady(run(samples, spec, (1_000,)))
    assert out.gaps == run(samples, spec, (1_000,)).gaps


def test_a_silent_device_closes_nothing_before_the_time_out_or_while_the_partition_is_behind() -> None:
    spec = small_spec()
    state, out = DeviceState("press-0001", spec), Outcome()
    process_device(state, [(0, sample(1, 0))], spec, START_MS, out)
    assert not advance_idle(state, spec, START_MS + spec.idle_timeout_ms - 1, 0, out)
    later_ms = START_MS + 3_600_000
    assert not advance_idle(state, spec, later_ms, later_ms - 1, out)
    assert not out.rollups
    assert advance_idle(state, spec, START_MS + spec.idle_timeout_ms, 0, out)
    assert [rollup.window_ms for rollup in out.rollups if rollup.is_final] == [1_000, 5_000, 10_000]


def test_what_comes_after_a_silence_is_late_only_for_windows_that_had_closed() -> None:
    spec = small_spec(0)
    state, out = DeviceState("press-0001", spec), Outcome()
    process_device(state, [(0, sample(1, 500))], spec, START_MS, out)
    advance_idle(state, spec, START_MS + spec.idle_timeout_ms, 0, out)
    later = [(1, sample(2, 900)), (2, sample(3, 12_000)), (3, sample(4, 21_000))]
    process_device(state, later, spec, START_MS + 60_000, out)
    assert [(late.offset, late.reason) for late in out.late] == [(1, "beyond_grace")]
    assert [item.seq for item in out.accepted] == [1, 3, 4]


def test_a_window_includes_its_start_and_excludes_its_end() -> None:
    out = run([sample(1, 0, 1.0), sample(2, 999, 2.0), sample(3, 1_000, 4.0)], small_spec())
    finest = [rollup for rollup in finals(out.rollups).values() if rollup.window_ms == 1_000]
    assert [(rollup.window_start - START_MS, rollup.sum) for rollup in finest] == [(0, 3.0), (1_000, 4.0)]


def test_a_late_reading_within_the_grace_revises_and_beyond_it_is_late() -> None:
    spec = small_spec(2_000)
    state, out = DeviceState("press-0001", spec), Outcome()
    for offset, item in enumerate([sample(1, 100), sample(3, 1_100), sample(2, 200), sample(5, 3_000), sample(4, 900)]):
        process_device(state, [(offset, item)], spec, START_MS, out)
    first = [rollup for rollup in out.rollups if rollup.window_start == START_MS and rollup.window_ms == 1_000]
    assert [(item.revision, item.count, item.late_count, item.is_final) for item in first] == [
        (0, 1, 0, False),
        (1, 2, 1, False),
        (2, 2, 1, True),
    ]
    assert [(late.offset, late.late_by_ms, late.reason) for late in out.late] == [(4, 2_100, "beyond_grace")]


def test_a_batch_emits_a_window_at_most_once() -> None:
    spec = small_spec(2_000)
    state, out = DeviceState("press-0001", spec), Outcome()
    process_device(state, [(0, sample(1, 0)), (1, sample(9, 1_500))], spec, START_MS, out)
    process_device(state, [(2 + n, sample(2 + n, 10 * n)) for n in range(5)], spec, START_MS, out)
    assert [rollup.revision for rollup in out.rollups] == [0, 1]


def test_one_device_with_a_clock_ahead_touches_no_other() -> None:
    spec, out = small_spec(), Outcome()
    ahead, right = DeviceState("ahead", spec), DeviceState("right", spec)
    process_device(ahead, [(0, sample(1, 600_000, device_id="ahead"))], spec, START_MS, out)
    process_device(right, [(1, sample(1, 0, device_id="right"))], spec, START_MS, out)
    assert len(out.accepted) == 2
    assert not out.rollups


def test_null_and_bad_values_are_counted_and_do_not_enter() -> None:
    out = run(
        [sample(1, 0, None), sample(2, 1, 5.0, quality="BAD"), sample(3, 2, 7.0, quality="UNCERTAIN")], small_spec()
    )
    rollup = next(iter(finals(out.rollups).values()))
    assert (rollup.count, rollup.sum, rollup.good_count, rollup.bad_count) == (1, 7.0, 0, 3)
    empty = next(iter(finals(run([sample(1, 0, None)], small_spec()).rollups).values()))
    assert (empty.count, empty.open, empty.mean, empty.variance, empty.bad_count) == (0, None, None, None, 1)


def test_a_seq_older_than_the_memory_is_late_and_never_lost() -> None:
    spec = small_spec(dedupe=DedupeSpec(missing_ranges=1, horizon_seqs=100))
    out = run([sample(1, 0), sample(3, 1), sample(5, 2), sample(2, 3), sample(4, 4)], spec, (1_000,))
    assert [(late.sample.seq, late.reason) for late in out.late] == [(2, "forgotten")]


def test_gaps_of_a_window_are_the_seqs_missing_between_its_first_and_last() -> None:
    out = run([sample(1, 0), sample(4, 500), sample(9, 1_200), sample(1, 1_500, session_id=2)], small_spec())
    found = {key[2:]: value for key, value in finals(out.rollups).items()}
    assert found[START_MS, 1_000].gaps == 2
    assert found[START_MS + 1_000, 1_000].gaps == 0
    whole = found[START_MS, 20_000]
    assert (whole.gaps, whole.seq_first, whole.seq_last) == (6, 1, 1)
    assert out.gaps == 6


def test_a_rung_that_is_not_emitted_still_feeds_the_next() -> None:
    spec = small_spec()
    silent = RollupSpec(
        rungs=(spec.rungs[0]._replace(emit=False), *spec.rungs[1:]),
        grace_ms=spec.grace_ms,
        idle_timeout_ms=spec.idle_timeout_ms,
    )
    samples = [sample(n, 700 * n) for n in range(1, 40)]
    want = [rollup for rollup in run(samples, spec).rollups if rollup.window_ms != 1_000]
    assert run(samples, silent).rollups == want


def test_the_same_input_gives_the_same_bytes() -> None:
    samples = [sample(n, 700 * n, n * 0.1, None) for n in range(1, 60)]
    assert run(samples, small_spec(), (7,)).rollups == run(samples, small_spec(), (7,)).rollups
