"""Who is alive, who is frozen or gone, and who may be taken out of the groups, told by the ages of beats.

Times are seconds of one monotonic clock. A healthy member is never removed: whoever stood still itself begins to
count anew, a process that computes is busy and not frozen, and a node that anybody hears lives.
"""

from dataclasses import dataclass, replace
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
        """A gap of one's own that makes the ages of others mean nothing; who stands still the kernel says, too."""
        return self.unreachable_after_s / 3


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


# ---- other nodes ----

NEVER = float("-inf")
PeerVerdict = Literal["alive", "unreachable", "gone"]


@dataclass(frozen=True, slots=True)
class Peer:
    """What is known of another node: when it was last heard here, and when its own connection to here ended.

    `refused_s` is when its machine answered that nobody listens at its address any more. `longest_gap_s` is of the
    beats of the last seconds: who was slow is given more time. `met` says that a beat of it has ever come: of one whose
    address leads nowhere, as a loopback address of another host does, silence says nothing.
    """

    heard_s: float
    hung_up_s: float = NEVER
    refused_s: float = NEVER
    longest_gap_s: float = 0.0
    met: bool = True

    @property
    def has_hung_up(self) -> bool:
        """Whether its connection to here ended after the last beat."""
        return self.hung_up_s > self.heard_s

    @property
    def is_refused(self) -> bool:
        """Whether nobody has listened at its address since the last beat."""
        return self.refused_s > self.heard_s


def hear(peer: Peer, own: Own, now_s: float) -> Peer:
    """The peer after a beat."""
    gap_s = silence_s(own, peer.heard_s, now_s)
    return Peer(now_s, NEVER, NEVER, max(gap_s, peer.longest_gap_s * 0.98))


def hung_up(peer: Peer, now_s: float) -> Peer:
    """The peer after the end of its connection to here."""
    return replace(peer, hung_up_s=now_s)


def refuse(peer: Peer, now_s: float) -> Peer:
    """The peer after the word that nobody listens at its address; the first one since it was heard counts."""
    return peer if peer.is_refused else replace(peer, refused_s=now_s)


def limit_s(patience: Patience, peer: Peer) -> float:
    """The silence after which a node is called unreachable: the settings', more for one that was slow lately."""
    return min(max(patience.unreachable_after_s, 2 * peer.longest_gap_s), 4 * patience.unreachable_after_s)


def peer_verdict(
    patience: Patience, own: Own, peer: Peer, now_s: float, *, others_heard_s: float, isolated: bool
) -> PeerVerdict:
    """Whether a node is to be believed gone, so that its members may be removed.

    `others_heard_s` is when a node that is itself heard here last heard it; `isolated` means that of several other
    nodes none is heard: then it is oneself who is cut off. Gone is (1) who hung up and whose address nobody listens at,
    at once; (2) who is refused and silent for two beats; (3) who was silent for the limit and two beats more, in which
    the others' word has come. Nobody is gone who was heard since, here or, as far as that is known by now, by another;
    nor who has never been heard here.
    """
    two_beats_s = 2 * patience.beat_s
    certain: PeerVerdict = "gone" if peer.met and not isolated else "unreachable"
    if peer.is_refused and peer.has_hung_up:
        return "unreachable" if others_heard_s > peer.hung_up_s else certain  # 1
    if peer.is_refused and silence_s(own, max(peer.heard_s, peer.refused_s), now_s) >= two_beats_s:
        return "unreachable" if others_heard_s > peer.refused_s else certain  # 2
    limit = limit_s(patience, peer)
    silent_s = silence_s(own, peer.heard_s, now_s)
    if silent_s < limit:
        return "alive"
    if silent_s < limit + two_beats_s or silence_s(own, others_heard_s, now_s) < limit:
        return "unreachable"
    return certain  # 3
