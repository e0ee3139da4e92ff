"""Who is alive, who is frozen or gone, and who may be taken out of the groups, told by the ages of beats.

Times are seconds of one monotonic clock. A healthy member is never removed: whoever stood still itself begins to
count anew, a process that computes is busy and not frozen, and a node that anybody hears lives.
"""

from dataclasses import dataclass
from typing import Literal

ChildVerdict = Literal["alive", "frozen", "overdue"]


@dataclass(frozen=True, slots=True)
class Patience:
    """After how many seconds of silence a process is frozen, is killed, and a node is unreachable."""

    beat_s: float = 0.1
    frozen_after_s: float = 0.4
    kill_after_s: float = 5.0
    unreachable_after_s: float = 0.5

    @property
    def stall_s(self) -> float:
        """A gap of one's own that makes the ages of others mean nothing."""
        return min(self.frozen_after_s, self.unreachable_after_s) / 3


@dataclass(frozen=True, slots=True)
class Own:
    """What one knows of oneself: the last look, and the end of the last stand-still."""

    looked_s: float
    awake_s: float


def awake(own: Own, now_s: float, patience: Patience) -> Own:
    """Look at the clock; a gap since the last look makes everybody's silence begin now."""
    stood_still = now_s - own.looked_s > patience.beat_s + patience.stall_s
    return Own(now_s, now_s if stood_still else own.awake_s)


def silence_s(own: Own, heard_s: float, now_s: float) -> float:
    """How long one was awake without hearing it."""
    return max(0.0, now_s - max(heard_s, own.awake_s))


def child_verdict(patience: Patience, silent_s: float, *, stopped: bool) -> ChildVerdict:
    """Of a process of one's own machine, which its kernel calls `stopped` or not.

    A process whose loop computes, or that the machine gives no time to, is silent without being stopped: it is alive.
    Half a beat is allowed for, because the last one was up to a whole one before the stop.
    """
    if not stopped or silent_s < patience.frozen_after_s + patience.beat_s / 2:
        return "alive"
    return "overdue" if silent_s >= patience.kill_after_s else "frozen"
