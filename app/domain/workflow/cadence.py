"""How often something is due: a cron expression in a time zone, or every so many milliseconds since 1970."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from app.domain.workflow.cron import CronError, parse_cron

MIN_EVERY_MS: Final = 1_000
MAX_EVERY_MS: Final = 366 * 86_400_000
# What has piled up is counted no further than this, so that a look at it costs a few milliseconds at most.
COUNT_MAX: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """Exactly one of `cron` and `every_ms` is given; `timezone` belongs to `cron`."""

    cron: str | None = None
    every_ms: int | None = None
    timezone: str = "UTC"

    def problem(self) -> str | None:
        """Why it means nothing, in one sentence; None when it does."""
        if (self.cron is None) == (self.every_ms is None):
            return "Give either cron or every, not both."
        if self.every_ms is not None:
            if MIN_EVERY_MS <= self.every_ms <= MAX_EVERY_MS:
                return None
            return f"every: {self.every_ms} ms is not within {MIN_EVERY_MS} ms and 366 days."
        try:
            parse_cron(self.cron or "", self.timezone)
        except CronError as error:
            return str(error)
        return None

    def next_after(self, at_ms: int) -> int:
        """The first due instant later than `at_ms`."""
        if self.every_ms is not None:
            return (at_ms // self.every_ms + 1) * self.every_ms
        assert self.cron is not None, "checked when it was made"
        return parse_cron(self.cron, self.timezone).next_after(at_ms)

    def between(self, after_ms: int, until_ms: int) -> Iterator[int]:
        """The due instants with after < due <= until, in order."""
        due = self.next_after(after_ms)
        while due <= until_ms:
            yield due
            due = self.next_after(due)


class PiledUp(NamedTuple):
    """The newest due instants, oldest first, and how many there were in all (counted up to `COUNT_MAX`)."""

    newest: tuple[int, ...]
    in_all: int


def piled_up(cadence: Cadence, after_ms: int, until_ms: int, keep: int) -> PiledUp:
    """What became due with after < due <= until; of a long time only the newest `keep`."""
    assert 1 <= keep <= COUNT_MAX
    found: list[int] = []
    for due in cadence.between(after_ms, until_ms):
        found.append(due)
        if len(found) > COUNT_MAX:
            break
    if len(found) <= COUNT_MAX:
        return PiledUp(tuple(found[-keep:]), len(found))
    # Too many to go through: look back from the end, further and further.
    window_ms = found[-1] - after_ms
    while True:
        start_ms = max(after_ms, until_ms - window_ms)
        newest = deque(cadence.between(start_ms, until_ms), maxlen=keep)
        if len(newest) == keep or start_ms == after_ms:
            return PiledUp(tuple(newest), COUNT_MAX)
        window_ms *= 2


def stamp(at_ms: int) -> str:
    """An instant as part of an id: `20261121T090000Z`, with milliseconds only where there are some."""
    at = _EPOCH + timedelta(milliseconds=at_ms)
    fraction = f".{at_ms % 1000:03}" if at_ms % 1000 else ""
    return f"{at:%Y%m%dT%H%M%S}{fraction}Z"


def iso(at_ms: int) -> str:
    """An instant as people and JSON write it, to the millisecond."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
