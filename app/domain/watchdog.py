"""The policy of the watchdog: when a process that does nothing must be called stalled."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "stalled", "dead"]


@dataclass(frozen=True, slots=True)
class StallPolicy:
    """Seconds without progress, while records wait, until the verdict is `stalled` and then `dead`."""

    stall_after_s: float
    exit_after_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What a stage knows of itself: records waiting, and records processed since it started.

    `why` says what is wrong when it is not records that wait.
    """

    lag: int
    processed: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """When progress was last seen, and what was processed then; `idle_s` is the time since."""

    seen_s: float
    processed: int
    idle_s: float = 0.0
    lag: int = 0
    why: str = ""

    @property
    def complaint(self) -> str:
        """What is wrong, for people."""
        return self.why or f"{self.lag} records wait and none was processed"


def begin(now_s: float, progress: Progress) -> Watch:
    return Watch(seen_s=now_s, processed=progress.processed, lag=progress.lag, why=progress.why)


def observe(watch: Watch, now_s: float, progress: Progress) -> Watch:
    """Progress is a changed count (a smaller one means a new owner) or nothing left to do."""
    if progress.lag <= 0 or progress.processed != watch.processed:
        return begin(now_s, progress)
    return Watch(watch.seen_s, watch.processed, max(0.0, now_s - watch.seen_s), progress.lag, progress.why)


def verdict(watch: Watch, policy: StallPolicy) -> Verdict:
    if watch.idle_s >= max(policy.exit_after_s, policy.stall_after_s):
        return "dead"
    return "stalled" if watch.idle_s >= policy.stall_after_s else "ok"
