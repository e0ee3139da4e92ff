"""What the transform stage remembers of each device, as keys and bytes.

    "d" device                     one header: dedupe memory, watermark, which windows are open
    "w" device NUL size slot       one open window: written when a reading or a finer window reached it

Keys order by device; a slot is taken again by a later window, so that no key is ever deleted. The header names the
start of the window in each slot: what else lies in the table is left over and not read.
A value is a version byte and a JSON array; times inside a window are counted from its start.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import orjson

from app.domain.aggregate import Aggregate
from app.domain.dedupe import NEVER, Seen, Session
from app.domain.rollup import DeviceState, Window
from app.domain.window import RollupSpec

VERSION: Final = b"\x01"
HEADER_PREFIX: Final = b"d"
WINDOW_PREFIX: Final = b"w"

_dumps = orjson.dumps
_loads = orjson.loads


def device_key(device_id: str) -> bytes:
    """The key of a device's header."""
    return HEADER_PREFIX + device_id.encode()


def device_of(key: bytes) -> str:
    """The device a header's key belongs to."""
    return key[1:].decode()


def window_key(device_id: str, size_ms: int, slot: int) -> bytes:
    """The key of one slot of one rung of a device; validation keeps NUL out of device ids."""
    return WINDOW_PREFIX + device_id.encode() + b"\0" + size_ms.to_bytes(6, "big") + slot.to_bytes(3, "big")


def encode_changes(state: DeviceState, windows: Sequence[Window], spec: RollupSpec) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values to write for one entry of `Outcome.changed`."""
    yield device_key(state.device_id), encode_device(state, spec)
    for window in windows:
        yield window_key(state.device_id, spec.rungs[window.rung].size_ms, window.slot), encode_window(window)


def load_device(device_id: str, get: Callable[[bytes], bytes | None], spec: RollupSpec) -> DeviceState:
    """A device's state from its table; a new one when the table does not know it.

    Raises ValueError when a value is of another version or a window the header names is not there.
    Windows of a rung that the ladder no longer has are dropped.
    """
    header = get(device_key(device_id))
    if header is None:
        return DeviceState(device_id, spec)
    state, wanted = decode_device(device_id, header, spec)
    for rung, start, slot in wanted:
        value = get(window_key(device_id, spec.rungs[rung].size_ms, slot))
        if value is None:
            raise ValueError(f"device {device_id!r} has no window in slot {slot} of rung {rung}")
        window = decode_window(value, rung, slot, spec)
        if window.start != start:
            raise ValueError(f"device {device_id!r} has window {window.start} in the slot of {start}")
        state.open[rung][start] = window
    return state


def encode_device(state: DeviceState, spec: RollupSpec) -> bytes:
    """The header of a device."""
    seen = state.seen
    sessions = [_session_row(session) for session in seen.sessions]
    current = -1 if seen.current is None else seen.sessions.index(seen.current)
    opened = []
    for rung, windows in zip(spec.rungs, state.open, strict=True):
        if windows:
            row = [rung.size_ms]
            for window in windows.values():
                row += (window.start, window.slot)
            opened.append(row)
    return VERSION + _dumps(
        [state.watermark, state.closed_until, state.seen_ms, seen.forgotten_session, current, sessions, opened]
    )


def decode_device(device_id: str, value: bytes, spec: RollupSpec) -> tuple[DeviceState, list[tuple[int, int, int]]]:
    """A device's state without its windows, and the (rung, start, slot) of each of those.

    `state.due` is set as if no window had been closed yet: never too late.
    """
    state = DeviceState(device_id, spec)
    seen = Seen()
    state.watermark, state.closed_until, state.seen_ms, seen.forgotten_session, current, sessions, opened = _parse(
        value
    )
    seen.sessions = [_session(row) for row in sessions]
    seen.current = None if current < 0 else seen.sessions[current]
    state.seen = seen
    rungs = {rung.size_ms: index for index, rung in enumerate(spec.rungs)}
    wanted: list[tuple[int, int, int]] = []
    for size_ms, *pairs in opened:
        rung = rungs.get(size_ms)
        if rung is None:
            continue
        slots = pairs[1::2]
        wanted += [(rung, start, slot) for start, slot in zip(pairs[::2], slots, strict=True)]
        state.free[rung].extend(sorted(set(range(max(slots))) - set(slots), reverse=True))
        delay_ms = spec.open_delay_ms if rung == 0 else spec.grace_ms
        state.due = min(state.due, min(pairs[::2]) + size_ms + delay_ms)
    return state, wanted


def encode_window(window: Window) -> bytes:
    """One open window."""
    start = window.start
    spans = [[session_id, first, last] for session_id, (first, last) in window.spans.items()]
    rows = [_aggregate_row(aggregate, start) for aggregate in window.aggregates.values()]
    return VERSION + _dumps(
        [start, window.revision, window.closed, window.dirty, window.samples, window.folded, spans, rows]
    )


def decode_window(value: bytes, rung: int, slot: int, spec: RollupSpec) -> Window:
    """One open window from its bytes."""
    start, revision, closed, dirty, samples, folded, spans, rows = _parse(value)
    window = Window(rung, start, start + spec.rungs[rung].size_ms, slot)
    window.revision, window.closed, window.dirty = revision, closed, dirty
    window.samples, window.folded = samples, folded
    window.spans = {session_id: [first, last] for session_id, first, last in spans}
    window.aggregates = {row[0]: _aggregate(row, start) for row in rows}
    return window


def _parse(value: bytes) -> Any:
    if value[:1] != VERSION:
        raise ValueError(f"a state of version {value[:1]!r} is not one of version {VERSION!r}")
    return _loads(memoryview(value)[1:])


def _session_row(session: Session) -> list[int]:
    watch = 0 if session.watch == NEVER else session.watch
    row = [session.session_id, session.high, session.floor, session.counted_to, watch]
    for bounds in session.missing:
        row += bounds
    return row


def _session(row: list[int]) -> Session:
    session = Session(row[0])
    _, session.high, session.floor, session.counted_to, watch = row[:5]
    session.watch = watch or NEVER
    session.missing = [row[at : at + 2] for at in range(5, len(row), 2)]
    return session


def _aggregate_row(a: Aggregate, start: int) -> list[Any]:
    """The shorter forms are those of no value and of one, which is most windows of a slow device."""
    if a.count == 0:
        return [a.metric, a.unit, a.good, a.bad, a.late]
    if a.count == 1:
        return [a.metric, a.unit, a.good, a.bad, a.late, a.close, a.close_ts - start, a.close_seq]
    return [
        a.metric,
        a.unit,
        a.good,
        a.bad,
        a.late,
        a.close,
        a.close_ts - start,
        a.close_seq,
        a.count,
        a.sum,
        a.mean,
        a.m2,
        a.open,
        a.open_ts - start,
        a.open_seq,
        a.high,
        a.high_ts - start,
        a.low,
        a.low_ts - start,
    ]


def _aggregate(row: list[Any], start: int) -> Aggregate:
    a = Aggregate(row[0], row[1])
    a.good, a.bad, a.late = row[2:5]
    if len(row) == 5:  # no value
        return a
    a.close, ts, a.close_seq = row[5:8]
    a.close_ts = start + ts
    if len(row) == 8:  # one value
        a.count = 1
        a.sum = a.mean = a.open = a.high = a.low = a.close
        a.open_ts = a.high_ts = a.low_ts = a.close_ts
        a.open_seq = a.close_seq
        return a
    a.count, a.sum, a.mean, a.m2, a.open, open_ts, a.open_seq, a.high, high_ts, a.low, low_ts = row[8:]
    a.open_ts, a.high_ts, a.low_ts = start + open_ts, start + high_ts, start + low_ts
    return a
