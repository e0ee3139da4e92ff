"""Attempts that run in this process or beat, and how long they may still be silent; in memory alone.

An attempt's timeout is no durable timer: two rows for each short task would cost more than the task. The attempt
itself is durable (`TaskScheduled`), so that a new owner orders it again and its time begins anew; and an executor
ends what takes too long by itself. This is the back-stop for an executor that does not.
"""

from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

GRACE_MS: Final = 2_000
_Place = tuple[str, str, int | None]


class Overdue(NamedTuple):
    """An attempt whose time is over."""

    execution_id: str
    task: str
    item: int | None
    attempt: int
    kind: str


class _Watched(NamedTuple):
    attempt: int
    token: int
    ends_s: float
    silent_until_s: float
    heartbeat_s: float


class Watch:
    """The attempts of one partition that are out; instants are of a clock that never goes back."""

    def __init__(self) -> None:
        self._out: dict[_Place, _Watched] = {}
        self._heap: list[tuple[float, str, str, int]] = []

    def __len__(self) -> int:
        return len(self._out)

    def begin(
        self, place: _Place, attempt: int, token: int, timeout_s: float | None, heartbeat_s: float | None, now_s: float
    ) -> None:
        """An attempt was handed out."""
        if timeout_s is None and heartbeat_s is None:
            return
        ends_s = float("inf") if timeout_s is None else now_s + timeout_s + GRACE_MS / 1000
        silent_s = float("inf") if heartbeat_s is None else now_s + heartbeat_s + GRACE_MS / 1000
        self._out[place] = _Watched(attempt, token, ends_s, silent_s, heartbeat_s or 0.0)
        self._push(place, min(ends_s, silent_s))

    def beat(self, place: _Place, attempt: int, token: int, heartbeat_s: float | None, now_s: float) -> None:
        """It is alive. One that runs elsewhere is watched from its first beat on."""
        if heartbeat_s is None:
            return
        watched = self._out.get(place)
        if watched is None or watched.token != token:
            watched = _Watched(attempt, token, float("inf"), 0.0, heartbeat_s)
        silent_s = now_s + heartbeat_s + GRACE_MS / 1000
        known = place in self._out
        self._out[place] = watched._replace(silent_until_s=silent_s)
        if not known:
            self._push(place, min(watched.ends_s, silent_s))

    def end(self, place: _Place, token: int) -> None:
        """A report came; one of an earlier attempt ends nothing."""
        watched = self._out.get(place)
        if watched is None or watched.token != token:
            return
        del self._out[place]
        if len(self._heap) > 64 + 4 * len(self._out):
            self._heap = [(min(w.ends_s, w.silent_until_s), *_flat(p)) for p, w in self._out.items()]
            heapify(self._heap)

    def next_s(self) -> float:
        """When `overdue` may have something to say."""
        return self._heap[0][0] if self._heap else float("inf")

    def overdue(self, now_s: float) -> list[Overdue]:
        """Attempts whose time is over; they are watched no longer."""
        found: list[Overdue] = []
        while self._heap and self._heap[0][0] <= now_s:
            _, execution_id, task, number = heappop(self._heap)
            place = (execution_id, task, None if number < 0 else number)
            watched = self._out.get(place)
            if watched is None:
                continue
            due_s = min(watched.ends_s, watched.silent_until_s)
            if due_s > now_s:
                self._push(place, due_s)
                continue
            del self._out[place]
            kind = "timeout" if watched.ends_s <= now_s else "heartbeat"
            found.append(Overdue(*place, watched.attempt, kind))
        return found

    def _push(self, place: _Place, due_s: float) -> None:
        heappush(self._heap, (due_s, *_flat(place)))


def _flat(place: _Place) -> tuple[str, str, int]:
    """A place that can be compared."""
    return place[0], place[1], -1 if place[2] is None else place[2]
