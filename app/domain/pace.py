"""Whether the reader of a partition keeps up with it: only then is a device's silence real."""

# A reader that has seen all there was a second ago keeps up. On a busy partition something always waits:
# what counts is for how long, not whether.
BEHIND_AFTER_MS = 1_000


class Pace:
    """What has been read of one partition, against where its log ended and when that was known."""

    __slots__ = ("_goal", "_goal_ms", "_heard_ms")

    def __init__(self) -> None:
        self._goal: int | None = None  # the log's end at `_goal_ms`, not reached yet
        self._goal_ms = 0
        self._heard_ms: int | None = None

    def behind(self, last: int, end: int | None, arrived_ms: int, now_ms: int) -> bool:
        """Whether records may wait for longer than `BEHIND_AFTER_MS` once `last` is read.

        `end` is the log's end (the offset of the next record) as it was known when the batch arrived; None is unknown
        and taken to be reached. The partition is heard up to an instant once all that it held then is read.
        """
        if self._goal is not None and last + 1 >= self._goal:
            self._heard_ms = self._goal_ms
            self._goal = None
        if self._goal is None:
            if end is None or last + 1 >= end:
                self._heard_ms = arrived_ms
            else:
                self._goal, self._goal_ms = end, arrived_ms
        return self._heard_ms is None or now_ms - self._heard_ms > BEHIND_AFTER_MS
