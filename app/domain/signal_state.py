"""What the rules remember of one device."""

from collections.abc import Callable
from typing import Any

IDLE, PENDING, RAISED, CLEARING = range(4)
NOTHING, CHANGED, RAISE, CLEAR = range(4)

Row = list[Any]


class Cell:
    """What one rule remembers of one metric of one device.

    `at` is the last event time that was judged, `since` when the phase's own wait began, `value` and
    `points` are the rule's memory. The rest is set while a signal is up.
    """

    __slots__ = (
        "at", "count", "digest", "kind", "metric", "phase", "points", "raised_at", "rule", "severity", "signal_id",
        "since", "unit", "value",
    )  # fmt: skip

    def __init__(self, rule: str, metric: str | None, digest: str, kind: str) -> None:
        self.rule = rule
        self.metric = metric
        self.digest = digest
        self.kind = kind
        self.at = -1
        self.phase = IDLE
        self.since = 0
        self.count = 0
        self.value: float | None = None
        self.points: list[float] = []
        self.signal_id = ""
        self.raised_at = 0
        self.severity = ""
        self.unit = ""

    def row(self) -> Row:
        """The cell as plain values, short while nothing is up."""
        row = [
            self.rule, self.metric, self.digest, self.kind, self.at, self.phase, self.since, self.count, self.value,
            self.points,
        ]  # fmt: skip
        if self.phase >= RAISED:
            row += [self.signal_id, self.raised_at, self.severity, self.unit]
        return row

    @classmethod
    def from_row(cls, row: Row) -> "Cell":
        """The cell that `row` gave."""
        cell = cls(row[0], row[1], row[2], row[3])
        cell.at, cell.phase, cell.since, cell.count, cell.value, cell.points = row[4:10]
        if cell.phase >= RAISED:
            cell.signal_id, cell.raised_at, cell.severity, cell.unit = row[10:14]
        return cell


Watch = tuple[tuple[Callable[..., bool], Cell], ...]


class SignalState:
    """Every rule's memory of one device.

    `dirty` says that something changed which must survive a restart. `last_seen` is the
    `recorded_timestamp` of the newest sample, `last_seq` its `seq`. `plan`, `rollup_plan`, `silences`
    and `rules` are caches made from the compiled rules and never saved.
    """

    __slots__ = (
        "cells", "device_id", "dirty", "last_seen", "last_seq", "plan", "rollup_plan", "rules", "saved_seen",
        "silences",
    )  # fmt: skip

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self.cells: dict[tuple[str, str | None], Cell] = {}
        self.last_seen = -1
        self.last_seq = 0
        self.saved_seen = -1
        self.dirty = False
        self.plan: dict[str, Watch] = {}
        self.rollup_plan: dict[tuple[str, int], Watch] = {}
        self.silences: tuple[tuple[int, Any, Cell], ...] = ()
        self.rules: object = None

    def snapshot(self) -> list[Any]:
        """All that must be saved, as plain values; the state counts as saved from here."""
        self.dirty = False
        self.saved_seen = self.last_seen
        return [self.last_seen, self.last_seq, [cell.row() for cell in self.cells.values()]]

    @classmethod
    def restore(cls, device_id: str, snapshot: list[Any]) -> "SignalState":
        """The state that `snapshot` gave."""
        state = cls(device_id)
        state.last_seen, state.last_seq, rows = snapshot
        state.saved_seen = state.last_seen
        for row in rows:
            cell = Cell.from_row(row)
            state.cells[cell.rule, cell.metric] = cell
        return state

    def raised(self) -> list[Cell]:
        """The cells whose signal is up."""
        return [cell for cell in self.cells.values() if cell.phase >= RAISED]


def advance(cell: Cell, at: int, *, breach: bool, clear: bool, hold_ms: int, clear_hold_ms: int) -> int:
    """One step of the state machine every rule shares: NOTHING, CHANGED (save it), RAISE or CLEAR."""
    if cell.phase == IDLE:
        if not breach:
            return NOTHING
        cell.phase, cell.since = PENDING, at
        if hold_ms > 0:
            return CHANGED
    if cell.phase == PENDING:
        if not breach:
            cell.phase = IDLE
            return CHANGED
        if at - cell.since < hold_ms:
            return NOTHING
        cell.phase = RAISED
        return RAISE
    if cell.phase == RAISED:
        if not clear:
            return NOTHING
        cell.phase, cell.since = CLEARING, at
        if clear_hold_ms > 0:
            return CHANGED
    if not clear:
        cell.phase = RAISED
        return CHANGED
    if at - cell.since < clear_hold_ms:
        return NOTHING
    cell.phase = IDLE
    return CLEAR
