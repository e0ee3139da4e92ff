"""The rollup stage of one device: deduplicate, place each sample in its window, close, revise and finalise.

Event time is the device's own: its watermark is the greatest source_timestamp it has sent, so that one device's bad
clock touches no other. A finest window of [start, end) with grace g lives like this:

    open ──watermark ≥ end──▶ closed ──watermark ≥ end + g──▶ final: merged into the next rungs, forgotten
            (emitted)          (revised by late samples)        (emitted, is_final)

A sample for a final window is late. A coarser window is final once every finest window it could still
hold is, so it is emitted once. While a device is silent its event time goes on at the pace of the wall clock,
so that windows always close; that closes existing windows and makes nothing else late.

Decisions own the state given to them: they change it in place and give back what happened. No clock is read.
"""

from typing import Final, Literal, NamedTuple

from app.domain import dedupe
from app.domain.aggregate import Aggregate, add_all, merge
from app.domain.dedupe import Seen
from app.domain.reading import Sample
from app.domain.window import RollupSpec, starts

LateReason = Literal["beyond_grace", "forgotten"]
NEVER_MS: Final = 2**63 - 1
MAX_SPANS: Final = 8  # sessions told apart in one window


class Rollup(NamedTuple):
    """One revision of one device's metric over one window; the value fields are None when `count` is 0.

    `count` is the values aggregated, `good_count` + `bad_count` the readings. `variance` is m2 / count. `gaps` is the
    device's seqs missing between the first and the last of the window; `late_count` came after the window's end.
    """

    device_id: str
    metric: str
    window_start: int
    window_end: int
    window_ms: int
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    open_ts: int | None
    high_ts: int | None
    low_ts: int | None
    close_ts: int | None
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody calls
    sum: float
    mean: float | None
    variance: float | None
    m2: float
    good_count: int
    bad_count: int
    late_count: int
    gaps: int
    seq_first: int
    seq_last: int
    unit: str
    revision: int
    is_final: bool


class Late(NamedTuple):
    """A sample no window could take; "forgotten" when its seq is older than the dedupe memory can judge."""

    sample: Sample
    offset: int
    late_by_ms: int
    watermark: int
    reason: LateReason


class Window:
    """One open window of one device, all its metrics; mutable, owned by the device's state.

    `spans` maps a session to its lowest and highest seq here. `slot` is the number its stored form goes by: a
    free one is taken again, so that a device's keys are bounded and none is ever deleted.
    """

    __slots__ = (
        "aggregates",
        "closed",
        "dirty",
        "end",
        "folded",
        "revision",
        "rung",
        "samples",
        "slot",
        "spans",
        "start",
        "touched",
    )

    def __init__(self, rung: int, start: int, end: int, slot: int) -> None:
        self.rung = rung
        self.start = start
        self.end = end
        self.slot = slot
        self.aggregates: dict[str, Aggregate] = {}
        self.samples = 0
        self.spans: dict[int, list[int]] = {}
        self.folded = 0  # seqs spanned by sessions no longer in `spans`
        self.revision = -1  # the last one emitted
        self.closed = False
        self.dirty = False  # changed since the last emission
        self.touched = False  # changed since it was last handed over for storing


class DeviceState:
    """Everything the stage remembers of one device; mutable, owned by the decision it is given to."""

    __slots__ = ("closed_until", "device_id", "due", "free", "open", "seen", "seen_ms", "touched", "watermark")

    def __init__(self, device_id: str, spec: RollupSpec) -> None:
        self.device_id = device_id
        self.seen = Seen()
        self.watermark = 0
        self.closed_until = 0  # every window that ends here or before is final
        self.seen_ms = 0  # wall time of the last sample
        self.due = NEVER_MS  # the watermark at which some window closes or becomes final
        self.open: tuple[dict[int, Window], ...] = tuple({} for _ in spec.rungs)
        self.free: tuple[list[int], ...] = tuple([] for _ in spec.rungs)
        self.touched: list[Window] = []


class Outcome:
    """What a batch brought about, over all its devices.

    `accepted` samples are in a finest window, `duplicates` counts samples, `changed` pairs a device's state
    with those of its windows that must be stored along with it.
    """

    __slots__ = ("accepted", "changed", "duplicates", "gaps", "late", "rollups")

    def __init__(self) -> None:
        self.rollups: list[Rollup] = []
        self.late: list[Late] = []
        self.accepted: list[Sample] = []
        self.duplicates = 0
        self.gaps = 0
        self.changed: list[tuple[DeviceState, list[Window]]] = []


def process_device(
    state: DeviceState, samples: list[tuple[int, Sample]], spec: RollupSpec, now_ms: int, out: Outcome
) -> None:
    """Take the (offset, sample) pairs of one device from one batch, in their order."""
    for offset, sample in samples:
        observe(state, sample, offset, spec, out)
    settle(state, spec, now_ms, out)


def observe(state: DeviceState, sample: Sample, offset: int, spec: RollupSpec, out: Outcome) -> None:
    """Take one sample; `settle` must follow once all of the device's samples of the batch are taken."""
    _, session_id, seq, ts, _, _, readings = sample
    session = state.seen.current
    if session is not None and session.session_id == session_id and session.high + 1 == seq < session.watch:
        session.high = seq  # the next seq and nothing due: what `dedupe.observe` would do
    elif verdict := dedupe.observe(state.seen, session_id, seq, spec.dedupe):
        _refuse(state, sample, offset, verdict, out)
        return
    size = spec.base_ms
    start = ts - ts % size
    after_end = False
    if ts >= state.watermark:
        state.watermark = ts
        too_late = start < state.closed_until
    else:
        overdue = state.watermark - start - size
        after_end = overdue >= 0
        too_late = overdue >= spec.grace_ms or start < state.closed_until
    if too_late:
        _add_late(state, sample, offset, "beyond_grace", out)
        return
    window = state.open[0].get(start)
    if window is None:
        window = _open(state, 0, start, start + size)
        state.due = min(state.due, start + size + spec.open_delay_ms)
    if not window.touched:
        window.touched = True
        state.touched.append(window)
    window.dirty = True
    window.samples += 1
    span = window.spans.get(session_id)
    if span is None:
        _add_span(window, session_id, seq, seq)
    elif seq > span[1]:
        span[1] = seq
    elif seq < span[0]:
        span[0] = seq
    add_all(window.aggregates, readings, ts, seq)
    if after_end:
        for reading in readings:
            window.aggregates[reading.metric].late += 1
    out.accepted.append(sample)


def settle(state: DeviceState, spec: RollupSpec, now_ms: int, out: Outcome) -> None:
    """Emit what the watermark now allows, and hand over what must be stored."""
    state.seen_ms = now_ms
    if state.watermark >= state.due:
        final_ms = (state.watermark - spec.grace_ms) // spec.base_ms * spec.base_ms
        state.closed_until = max(state.closed_until, final_ms)
        _advance(state, spec, state.watermark, out)
    for window in state.touched:
        if window.closed and window.dirty:
            _emit(state, window, spec, out, is_final=False)
    _hand_over(state, out)


def advance_idle(state: DeviceState, spec: RollupSpec, now_ms: int, live_since_ms: int, out: Outcome) -> bool:
    """Close what a silent device left open; return whether anything changed.

    Silence counts from the later of the device's last sample and `live_since_ms`: when this partition was last known
    to be behind, restored or paused. Event time then goes on as wall time does, so that a recording of
    any age, and a device whose clock is off, are treated like any other.
    """
    silent_ms = now_ms - max(state.seen_ms, live_since_ms)
    if silent_ms < spec.idle_timeout_ms:
        return False
    event_ms = state.watermark + silent_ms
    dedupe.count_all(state.seen)
    changed = state.seen.gaps > 0 or event_ms >= state.due
    while event_ms >= state.due:  # a window that closes may open a coarser one that is due as well
        ends = [window.end for windows in state.open for window in windows.values()]
        state.closed_until = max([state.closed_until, *(end for end in ends if end + spec.grace_ms <= event_ms)])
        _advance(state, spec, event_ms, out)
    if changed:
        _hand_over(state, out)
    return changed


def close_all(state: DeviceState, spec: RollupSpec, out: Outcome) -> None:
    """Make every open window final at once, as at the end of a recording."""
    dedupe.count_all(state.seen)
    while any(state.open):
        ends = [window.end for windows in state.open for window in windows.values()]
        state.closed_until = max(state.closed_until, *ends)
        _advance(state, spec, state.watermark, out)
    _hand_over(state, out)


def idle_deadline_ms(state: DeviceState, spec: RollupSpec, live_since_ms: int = 0) -> int | None:
    """Return the wall time at which `advance_idle` will next have work if the device stays silent."""
    silent_since_ms = max(state.seen_ms, live_since_ms)
    if state.due == NEVER_MS:
        return silent_since_ms + spec.idle_timeout_ms if dedupe.has_pending(state.seen) else None
    return silent_since_ms + max(spec.idle_timeout_ms, state.due - state.watermark)


def _refuse(state: DeviceState, sample: Sample, offset: int, verdict: int, out: Outcome) -> None:
    if verdict == dedupe.DUPLICATE:
        out.duplicates += 1
    else:
        _add_late(state, sample, offset, "forgotten", out)


def _add_late(state: DeviceState, sample: Sample, offset: int, reason: LateReason, out: Outcome) -> None:
    late_by_ms = max(0, max(state.watermark, state.closed_until) - sample.source_timestamp)
    out.late.append(Late(sample, offset, late_by_ms, state.watermark, reason))


def _open(state: DeviceState, rung: int, start: int, end: int) -> Window:
    windows = state.open[rung]
    free = state.free[rung]
    window = windows[start] = Window(rung, start, end, free.pop() if free else len(windows))
    return window


def _add_span(window: Window, session_id: int, first: int, last: int) -> None:
    """Widen the session's span; past MAX_SPANS fold the second oldest, so that first and last stay exact."""
    span = window.spans.setdefault(session_id, [first, last])
    span[0] = min(span[0], first)
    span[1] = max(span[1], last)
    if len(window.spans) > MAX_SPANS:
        first, last = window.spans.pop(sorted(window.spans)[1])
        window.folded += last - first + 1


def _advance(state: DeviceState, spec: RollupSpec, event_ms: int, out: Outcome) -> None:
    """Finalise up to `closed_until`, rung by rung from the finest, and close what has ended at `event_ms`."""
    closed_until = state.closed_until
    due = NEVER_MS
    for rung, windows in enumerate(state.open):
        over = [window for window in windows.values() if window.end <= closed_until]
        if len(over) > 1:
            over.sort(key=_start)
        for window in over:
            del windows[window.start]
            state.free[rung].append(window.slot)
            _emit(state, window, spec, out, is_final=True)
            for target in spec.targets[rung]:
                _feed(state, window, target, spec)
        if rung == 0:
            due = _close_ended(state, spec, event_ms, out)
        else:
            for window in windows.values():
                due = min(due, window.end + spec.grace_ms)
    state.due = due


def _close_ended(state: DeviceState, spec: RollupSpec, event_ms: int, out: Outcome) -> int:
    """Emit the finest windows that have ended, if that is the policy; return when the next event is due."""
    windows = state.open[0]
    if spec.emit == "on_final":
        return min(windows) + spec.base_ms + spec.grace_ms if windows else NEVER_MS
    due = NEVER_MS
    for start in sorted(windows):
        window = windows[start]
        if not window.closed and window.end <= event_ms:
            window.closed = True
            _emit(state, window, spec, out, is_final=False)
        due = min(due, window.end + (spec.grace_ms if window.closed else 0))
    return due


def _start(window: Window) -> int:
    return window.start


def _feed(state: DeviceState, finer: Window, rung: int, spec: RollupSpec) -> None:
    """Merge a final window into the windows of `rung` that hold it."""
    shape = spec.rungs[rung]
    for start in starts(shape, finer.start):
        window = state.open[rung].get(start) or _open(state, rung, start, start + shape.size_ms)
        if not window.touched:
            window.touched = True
            state.touched.append(window)
        window.samples += finer.samples
        window.folded += finer.folded
        for session_id, (first, last) in finer.spans.items():
            _add_span(window, session_id, first, last)
        for metric, aggregate in finer.aggregates.items():
            target = window.aggregates.get(metric)
            if target is None:
                target = window.aggregates[metric] = Aggregate(metric, aggregate.unit)
            merge(target, aggregate)


def _emit(state: DeviceState, window: Window, spec: RollupSpec, out: Outcome, *, is_final: bool) -> None:
    rung = spec.rungs[window.rung]
    window.revision += 1
    window.dirty = False
    if not window.touched:
        window.touched = True
        state.touched.append(window)
    if not rung.emit:
        return
    spans = window.spans
    gaps = window.folded - window.samples + sum(last - first + 1 for first, last in spans.values())
    seq_first = spans[min(spans)][0]
    seq_last = spans[max(spans)][1]
    for a in window.aggregates.values():
        out.rollups.append(_rollup(state.device_id, window, a, rung.size_ms, gaps, seq_first, seq_last, is_final))


def _rollup(
    device_id: str, window: Window, a: Aggregate, size_ms: int, gaps: int, seq_first: int, seq_last: int, is_final: bool
) -> Rollup:
    some = a.count > 0
    return Rollup(
        device_id,
        a.metric,
        window.start,
        window.end,
        size_ms,
        a.open if some else None,
        a.high if some else None,
        a.low if some else None,
        a.close if some else None,
        a.open_ts if some else None,
        a.high_ts if some else None,
        a.low_ts if some else None,
        a.close_ts if some else None,
        a.count,
        a.sum,
        a.mean if some else None,
        a.m2 / a.count if some else None,
        a.m2,
        a.good,
        a.bad,
        a.late,
        gaps,
        seq_first,
        seq_last,
        a.unit,
        window.revision,
        is_final,
    )


def _hand_over(state: DeviceState, out: Outcome) -> None:
    out.gaps += dedupe.take_gaps(state.seen)
    windows = []
    for window in state.touched:
        window.touched = False
        if state.open[window.rung].get(window.start) is window:
            windows.append(window)
    state.touched = []
    out.changed.append((state, windows))
