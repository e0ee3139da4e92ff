"""Samples, sequences of samples and folds of outcomes for the tests of the rollup stage."""

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from app.domain.dedupe import DedupeSpec
from app.domain.reading import Reading, Sample
from app.domain.rollup import DeviceState, Outcome, Rollup, close_all, process_device
from app.domain.window import RollupSpec, Rung

START_MS = 1_763_689_000_000 // 3_600_000 * 3_600_000
SMALL_LADDER = (Rung(1_000), Rung(5_000), Rung(10_000, 5_000), Rung(20_000))


def small_spec(grace_ms: int = 3_000, **changes: object) -> RollupSpec:
    settings: dict[str, object] = {
        "rungs": SMALL_LADDER,
        "grace_ms": grace_ms,
        "idle_timeout_ms": 10_000,
        "emit": "on_close",
        "dedupe": DedupeSpec(sessions=4, missing_ranges=64, horizon_seqs=16),
    }
    return RollupSpec(**{**settings, **changes})  # type: ignore[arg-type]


def sample(
    seq: int,
    at_ms: int,
    *values: float | None,
    session_id: int = 1,
    device_id: str = "press-0001",
    quality: str | None = None,
) -> Sample:
    """A sample `at_ms` after START_MS with one metric (m0, m1, …) a value; None is BAD."""
    metrics = tuple(
        Reading(f"m{index}", value, "CEL", quality or ("BAD" if value is None else "GOOD"), 0)
        for index, value in enumerate(values or (1.0,))
    )
    ts = START_MS + at_ms
    return Sample(device_id, session_id, seq, ts, ts + 1, False, metrics)


@st.composite
def sequences(draw: st.DrawFn, /, max_size: int = 25, max_step_ms: int = 2_500) -> list[Sample]:
    """A device's samples as it sent them: ascending in time and seq, some seqs never sent, some values null."""
    samples = []
    seq = at_ms = 0
    session_id = 1
    for _ in range(draw(st.integers(1, max_size))):
        if draw(st.integers(0, 19)) == 0:
            session_id, seq = session_id + 1, 0
        seq += draw(st.sampled_from((1, 1, 1, 1, 2, 4)))
        at_ms += draw(st.integers(0, max_step_ms))
        values = draw(st.lists(st.none() | st.sampled_from((0.1, -3.0, 7.25, 7.25, 1e6)), min_size=1, max_size=2))
        quality = draw(st.sampled_from((None, None, None, "UNCERTAIN", "STALE")))
        samples.append(sample(seq, at_ms, *values, session_id=session_id, quality=quality))
    return samples


@st.composite
def disorders(draw: st.DrawFn, /, max_delay_ms: int, **bounds: int) -> list[Sample]:
    """A sequence as it arrives: each sample delayed at random, some sent twice."""
    arrivals: list[tuple[int, int, Sample]] = []
    for item in draw(sequences(**bounds)):
        for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
            arrivals.append((item.source_timestamp + draw(st.integers(0, max_delay_ms)), len(arrivals), item))
    return [item for _, _, item in sorted(arrivals, key=lambda arrival: arrival[:2])]


def in_batches(samples: Sequence[Sample], sizes: Sequence[int]) -> list[list[tuple[int, Sample]]]:
    """The samples with their offsets, cut into batches of the given sizes, repeated as needed."""
    batches = []
    offset = index = 0
    while offset < len(samples):
        size = sizes[index % len(sizes)]
        batches.append(list(enumerate(samples[offset : offset + size], start=offset)))
        offset += size
        index += 1
    return batches


def run(samples: Sequence[Sample], spec: RollupSpec, sizes: Sequence[int] = (10,)) -> Outcome:
    """The outcome of one device's samples, everything closed at the end."""
    out = Outcome()
    state = DeviceState(samples[0].device_id, spec)
    for batch in in_batches(samples, sizes):
        process_device(state, batch, spec, START_MS, out)
    close_all(state, spec, out)
    return out


def finals(rollups: Iterable[Rollup]) -> dict[tuple[str, str, int, int], Rollup]:
    """The final rollups by key, each of which there must be only once."""
    found: dict[tuple[str, str, int, int], Rollup] = {}
    for rollup in rollups:
        if rollup.is_final:
            key = (rollup.device_id, rollup.metric, rollup.window_start, rollup.window_ms)
            assert key not in found
            found[key] = rollup
    return found
