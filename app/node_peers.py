"""The other nodes as this one sees them: whom it beats to, whom it hears, and who is gone.

Runs in the watch's own loop. Of a node on this very machine the kernel is asked about each process, too: one that runs
is never removed, however silent its node is.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from app.adapters.node_beats import Beat, BeatServer, Greeting, Outgoing, beat_to
from app.adapters.process_state import Posture, posture_of
from app.domain import detector
from app.domain.cluster import GroupSeat, NodeView, ProcessView
from app.domain.detector import NEVER, Own, Patience, PeerVerdict

log = logging.getLogger(__name__)

# Facts that a node tells of itself.
MACHINE: Final = "machine"
PID: Final = "pid"
RUNNING_FACTOR: Final = 4
ORDER: Final[Mapping[PeerVerdict, int]] = {"alive": 0, "unreachable": 1, "gone": 2}
# A record of the registry may come so much later than it was written.
LAST_WORD_S: Final = 2.0
# After an end that was noticed at once.
LOOKS_S: Final = (0.0, 0.005, 0.015, 0.03)

RemovePeer = Callable[[str, str, tuple[GroupSeat, ...]], Coroutine[Any, Any, None]]
"""Who, what happened, and its seats."""


def machine_id() -> str:
    """This machine and the numbering of its processes; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


@dataclass(slots=True)
class Known:
    """Another node; `others` is when each other node that beats to here has heard it."""

    view: NodeView
    state: detector.Peer
    link: "asyncio.Task[None]"
    others: dict[str, float] = field(default_factory=dict)
    verdict: PeerVerdict = "alive"
    judged_s: float = NEVER
    said_ms: int = 0  # of its last record in the registry; what a beat brings bears no time
    removed: set[str] = field(default_factory=set)


class Peers:
    """Everybody else. `remove(node, what happened, seats)` takes members of a node that is gone out of their groups."""

    def __init__(
        self,
        patience: Patience,
        own: Callable[[], NodeView],
        monotonic_s: Callable[[], float],
        remove: RemovePeer,
        know: Callable[[Iterable[str]], None],
        posture: Callable[[int], Posture] = posture_of,
        machine: str | None = None,
    ) -> None:
        self._patience = patience
        self._own = own
        self._monotonic_s = monotonic_s
        self._remove = remove
        self._know = know
        self._posture = posture
        self._clock = Own(monotonic_s(), monotonic_s())
        self._known: dict[str, Known] = {}
        self._machine = machine_id() if machine is None else machine
        self._server = BeatServer(self._greeting, self._heard, self._hung_up)
        self._under_way: set[asyncio.Task[None]] = set()
        self.alive: Callable[[str], None] = lambda _: None

    async def start(self, host: str, port: int) -> int:
        """Listen for beats; the port. Raises OSError."""
        return await self._server.start(host, port)

    async def close(self) -> None:
        """Hang up; what is being removed is removed."""
        for peer in self._known.values():
            peer.link.cancel()
        await asyncio.gather(*(peer.link for peer in self._known.values()), return_exceptions=True)
        await self._server.close()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=1.0)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    @property
    def unreachable(self) -> tuple[str, ...]:
        """The nodes that are not heard, or gone."""
        return tuple(sorted(node_id for node_id, peer in self._known.items() if peer.verdict != "alive"))

    def know(self, views: Iterable[NodeView]) -> None:
        """These are the nodes of the cluster, as the registry has them."""
        own = self._own()
        found = {view.node_id: view for view in views if view.beats and view.node_id != own.node_id}
        for node_id, view in found.items():
            peer = self._known.get(node_id)
            if peer is None or (view.epoch, view.beats) != (peer.view.epoch, peer.view.beats):
                if peer is not None and view.epoch < peer.view.epoch:
                    continue
                self._forget(node_id)
                state = detector.Peer(self._monotonic_s(), met=False)
                self._known[node_id] = Known(view, state, self._link(view), said_ms=view.clock_ms)
            elif view.clock_ms >= peer.said_ms:
                if view.clock_ms > peer.said_ms:
                    self._speaks(peer)
                peer.said_ms = view.clock_ms
                self._take(peer, view)
        for node_id in self._known.keys() - found.keys():
            self._forget(node_id)

    def _speaks(self, peer: Known) -> None:
        """One that is called gone and says something new in the registry lives: the way from there to here does not.

        Until a beat comes it is not called gone again: its members, who have joined anew, would be removed without end.
        What comes at once may be its last word, said before it died.
        """
        now_s = self._monotonic_s()
        if peer.verdict != "gone" or now_s - peer.judged_s < LAST_WORD_S:
            return
        peer.state, peer.verdict, peer.judged_s = replace(peer.state, met=False), "unreachable", now_s
        log.warning(
            "node %s is not heard at %s, and lives: cluster.host and cluster.advertised_host say where it is",
            peer.view.node_id,
            peer.view.beats,
            extra={"action": "cluster_event", "event": "unreachable"},
        )

    def look(self, own: Own, now_s: float) -> None:
        """Judge everybody."""
        self._clock = own
        heard = [
            node_id
            for node_id, peer in self._known.items()
            if peer.state.met
            and not (peer.state.is_refused and peer.state.has_hung_up)
            and detector.silence_s(own, peer.state.heard_s, now_s) < detector.limit_s(self._patience, peer.state)
        ]
        # Who is gone already says nothing of the way to here.
        in_question = sum(peer.verdict != "gone" for peer in self._known.values())
        isolated = in_question > 1 and not heard
        for node_id, peer in self._known.items():
            self._judge(
                peer,
                now_s,
                max((peer.others.get(each, NEVER) for each in heard if each != node_id), default=NEVER),
                isolated=isolated,
            )

    def _judge(self, peer: Known, now_s: float, others_heard_s: float, *, isolated: bool) -> None:
        patience, state = self._certain_of(peer)
        verdict = detector.peer_verdict(
            patience,
            self._clock,
            state,
            now_s,
            others_heard_s=others_heard_s,
            isolated=isolated,
        )
        node_id = peer.view.node_id
        if ORDER[verdict] < ORDER[peer.verdict] and peer.state.heard_s <= peer.judged_s:
            verdict = peer.verdict  # nothing but a beat brings it back
        if verdict != peer.verdict:
            peer.judged_s = now_s
            level = logging.INFO if verdict == "alive" else logging.WARNING
            text = {"alive": "is heard again", "unreachable": "is not heard any more", "gone": "is gone"}[verdict]
            log.log(level, "node %s %s", node_id, text, extra={"action": "cluster_event", "event": verdict})
            peer.verdict = verdict
        if verdict == "alive" or (verdict == "unreachable" and not self._is_here(peer.view)):
            return
        seats = tuple(
            seat
            for process in peer.view.processes
            if self._is_gone(peer.view, process)
            for seat in process.seats
            if seat.member_id not in peer.removed
        )
        if seats:
            peer.removed |= {seat.member_id for seat in seats}
            what = "is gone" if verdict == "gone" else "stands still"
            task = asyncio.create_task(self._remove(f"node {node_id}", what, seats))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    def _certain_of(self, peer: Known) -> tuple[Patience, detector.Peer]:
        """What a node of this machine is judged by, whose kernel says more than its silence does.

        One that runs is given more time: it gets none, or computes. One that is stopped will not be heard, and that it
        was slow before means nothing.
        """
        pid = peer.view.facts.get(PID, "")
        if not self._is_here(peer.view) or not pid.isdecimal():
            return self._patience, peer.state
        posture, limit_s = self._posture(int(pid)), self._patience.unreachable_after_s
        if posture == "running":
            return replace(self._patience, unreachable_after_s=RUNNING_FACTOR * limit_s), peer.state
        if posture == "stopped":
            limit_s = min(limit_s, self._patience.frozen_after_s + self._patience.beat_s / 2)
            return replace(self._patience, unreachable_after_s=limit_s), replace(peer.state, longest_gap_s=0.0)
        return self._patience, peer.state

    def _is_here(self, view: NodeView) -> bool:
        return bool(self._machine) and view.facts.get(MACHINE) == self._machine

    def _is_gone(self, view: NodeView, process: ProcessView) -> bool:
        """Of a process of another machine, that its node is gone is all there is to know."""
        return not self._is_here(view) or self._posture(process.pid) != "running"

    # ---- what comes in and goes out ----

    def _greeting(self) -> Greeting:
        own = self._own()
        return Greeting(own.node_id, own.epoch)

    def _outgoing(self) -> Outgoing:
        now_s = self._monotonic_s()
        met = {node_id: peer.state for node_id, peer in self._known.items() if peer.state.met}
        heard = {node_id: round(now_s - state.heard_s, 3) for node_id, state in met.items()}
        return Outgoing(self._own(), heard)

    def _heard(self, beat: Beat) -> None:
        peer, now_s = self._known.get(beat.node_id), self._monotonic_s()
        if peer is None or peer.view.epoch != beat.epoch:
            return  # the registry will tell of it
        peer.state = detector.hear(peer.state, self._clock, now_s)
        if beat.view is not None and beat.view.node_id == beat.node_id:
            self._take(peer, beat.view)
        for node_id, age_s in beat.heard.items():
            if node_id in self._known:
                self._known[node_id].others[beat.node_id] = now_s - max(0.0, age_s)
        self.alive(beat.node_id)

    def _take(self, peer: Known, view: NodeView) -> None:
        peer.view = view
        self._know({seat.group for seat in view.seats})

    def _hung_up(self, node_id: str, epoch: int) -> None:
        peer = self._known.get(node_id)
        if peer is not None and peer.view.epoch == epoch:
            peer.state = detector.hung_up(peer.state, self._monotonic_s())
            self._look_soon()

    def _refused(self, node_id: str, epoch: int) -> None:
        peer = self._known.get(node_id)
        if peer is not None and peer.view.epoch == epoch:
            peer.state = detector.refuse(peer.state, self._monotonic_s())
            self._look_soon()

    def _look_soon(self) -> None:
        """At once, and again when the children of a node that was killed have died with it."""
        loop = asyncio.get_running_loop()
        for pause_s in LOOKS_S:
            loop.call_later(pause_s, lambda: self.look(self._clock, self._monotonic_s()))

    def _link(self, view: NodeView) -> "asyncio.Task[None]":
        self._know({seat.group for seat in view.seats})
        link = beat_to(
            view.beats,
            Greeting(view.node_id, view.epoch),
            self._outgoing,
            self._greeting,
            self._patience.beat_s,
            lambda: self._refused(view.node_id, view.epoch),
        )
        return asyncio.create_task(link, name=f"beats to {view.node_id}")

    def _forget(self, node_id: str) -> None:
        peer = self._known.pop(node_id, None)
        if peer is not None:
            peer.link.cancel()
