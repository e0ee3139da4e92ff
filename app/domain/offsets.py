"""The book of one partition's offsets: what was delivered, what is acknowledged, what may be committed.

A range is what was delivered as one event: every offset from the end of the range before it up to its
own last one, so that offsets missing in the log (compaction, transaction markers) belong to a range too.
The offset to commit is the end of the longest acknowledged prefix of ranges, never past one that is not.
"""

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Range:
    """Offsets up to and including `last`; `records` of them exist."""

    last: int
    records: int
    acked: bool = False
    live: bool = True


class OffsetBook:
    """Ranges of one partition in the order of delivery."""

    __slots__ = ("_begun", "_ranges", "committable", "committed", "outstanding_records")

    def __init__(self) -> None:
        self._ranges: deque[Range] = deque()
        self._begun: int | None = None
        self.committable: int | None = None
        self.committed: int | None = None
        self.outstanding_records = 0

    @property
    def outstanding_ranges(self) -> int:
        """Ranges delivered and not yet part of the acknowledged prefix."""
        return len(self._ranges)

    @property
    def to_commit(self) -> int | None:
        """The offset to commit (of the next record to read), None when nothing is new."""
        return self.committable if self.committable != self.committed else None

    @property
    def next_offset(self) -> int | None:
        """No record below this one is still to be delivered; None before the first of a partition without a commit."""
        return self._ranges[-1].last + 1 if self._ranges else self.committable

    @property
    def done_before(self) -> int | None:
        """Every record before this one is acknowledged; None when none was delivered and none was committed."""
        return self.committable if self.committable is not None else self._begun

    def deliver(self, first: int, last: int, records: int) -> Range:
        """Enter the next range: `records` records from `first` to `last`. Raises ValueError on one delivered before."""
        floor = self.next_offset
        if last < first or (floor is not None and first < floor):
            msg = f"offsets {first} to {last} do not follow: the next one is {floor}"
            raise ValueError(msg)
        if self._begun is None:
            self._begun = first
        entered = Range(last, records)
        self._ranges.append(entered)
        self.outstanding_records += records
        return entered

    def acknowledge(self, acked: Range) -> bool:
        """Mark a range done; False when it is already, or belongs to a book that was cleared since."""
        if acked.acked or not acked.live:
            return False
        acked.acked = True
        ranges = self._ranges
        while ranges and ranges[0].acked:
            first = ranges.popleft()
            self.committable = first.last + 1
            self.outstanding_records -= first.records
        return True

    def commit_done(self, offset: int) -> None:
        """Note a commit that the broker confirmed."""
        self.committed = offset

    def seek(self, offset: int | None) -> None:
        """Start again at `offset` (None: wherever the log begins); ranges still out no longer count."""
        for stale in self._ranges:
            stale.live = False
        self._ranges.clear()
        self.outstanding_records = 0
        self.committable = self.committed = self._begun = offset
