"""Laws of nodes that watch one another over TCP: whoever is gone is removed, whoever is heard by anybody is not."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from app.adapters.process_state import Posture
from app.domain import detector
from app.domain.cluster import GroupSeat, NodeView, ProcessView
from app.domain.detector import Own, Patience, awake
from app.node_peers import LAST_WORD_S, MACHINE, PID, Peers
from tests.helpers.kafka import until

PATIENCE = Patience(beat_s=0.05, frozen_after_s=0.4, unreachable_after_s=0.5)


class Node:
    """One node of a cluster in this process; `posture` is what the kernel of its machine says of any process."""

    def __init__(self, name: str, machine: str, posture: Posture) -> None:
        self.name = name
        self.machine = machine
        self.address = ""
        self.removed: list[str] = []
        self.peers = Peers(
            PATIENCE, self.view, time.monotonic, self._remove, lambda _: None, lambda _pid: posture, machine
        )
        self.looking: asyncio.Task[None] | None = None

    def view(self) -> NodeView:
        seat = GroupSeat("g", f"member-of-{self.name}", 1, ("t-0",))
        process = ProcessView("worker", 1, ready=True, seats=(seat,))
        return NodeView(
            self.name, 1, "1.0.0", "ready", self.address, processes=(process,), facts={MACHINE: self.machine}
        )

    async def _remove(self, _who: str, _what: str, seats: tuple[GroupSeat, ...]) -> None:
        self.removed += [seat.member_id for seat in seats]

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.peers.start('127.0.0.1', 0)}"
        self.looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """As a process that is killed: everything is closed."""
        if self.looking is not None:
            self.looking.cancel()
            await asyncio.gather(self.looking, return_exceptions=True)
            self.looking = None
            await self.peers.close()

    async def _look(self) -> None:
        own = Own(time.monotonic(), time.monotonic())
        while True:
            own = awake(own, time.monotonic(), PATIENCE)
            self.peers.look(own, time.monotonic())
            await asyncio.sleep(0.025)

    def hears(self, other: "Node") -> bool:
        known = self.peers._known[other.name]
        return bool(known.others) or known.state.longest_gap_s > 0


def all_heard(node: Node, others: list[Node]) -> bool:
    return all(map(node.hears, others))


@asynccontextmanager
async def cluster(count: int, machine: str = "", posture: Posture = "running") -> AsyncIterator[list[Node]]:
    nodes = [Node(f"n{number}", machine, posture) for number in range(count)]
    for node in nodes:
        await node.start()
    for node in nodes:
        node.peers.know([each.view() for each in nodes])
    try:
        for node in nodes:
            others = [each for each in nodes if each is not node]
            await until(functools.partial(all_heard, node, others), "everybody hears everybody")
        yield nodes
    finally:
        for node in nodes:
            await node.stop()


async def test_a_node_that_is_killed_is_removed_by_all_others_once():
    async with cluster(3) as (first, second, third):
        await third.stop()
        await until(lambda: first.removed and second.removed, "both have removed it")
        assert first.removed == second.removed == ["member-of-n2"]
        assert first.peers.unreachable == ("n2",)


async def test_a_process_that_runs_on_this_machine_is_not_removed_though_its_node_is_gone():
    async with cluster(2, machine="here") as (first, second):
        await second.stop()
        await until(lambda: first.peers.unreachable == ("n1",), "it is known to be gone")
        assert first.removed == []


async def test_a_process_that_stands_still_on_this_machine_is_removed():
    async with cluster(2, machine="here", posture="stopped") as (first, second):
        second.peers._known["n0"].link.cancel()  # it beats no more, and keeps its sockets
        await until(lambda: first.removed == ["member-of-n1"], "it is removed")


async def test_that_a_node_was_slow_before_helps_it_only_while_its_kernel_does_not_call_it_stopped():
    cases: list[tuple[Posture, float]] = [("stopped", 0.43), ("gone", 4 * PATIENCE.unreachable_after_s)]
    for posture, silent_s in cases:
        node = Node("n0", "here", posture)
        now_s = 1_000.0
        node.peers._monotonic_s = lambda: 1_000.0
        other = replace(Node("n1", "here", posture).view(), beats="127.0.0.1:1", facts={MACHINE: "here", PID: "1"})
        node.peers.know([other])
        node.peers._known["n1"].state = detector.Peer(now_s, longest_gap_s=10.0)
        for after_s, removed in ((silent_s - 0.01, []), (silent_s, ["member-of-n1"])):
            node.peers.look(Own(now_s, now_s), now_s + after_s)
            await asyncio.gather(*node.peers._under_way)
            assert node.removed == removed
        await node.peers.close()


async def test_a_silent_node_is_removed_only_when_nobody_hears_it():
    async with cluster(3) as (first, second, third):
        third.peers._known["n0"].link.cancel()  # it is cut off from the first alone
        await until(lambda: first.peers.unreachable == ("n2",), "the first misses it")
        third.peers._known["n1"].link.cancel()
        await until(lambda: first.removed == ["member-of-n2"], "now nobody hears it")
        assert second.peers.unreachable == ("n2",)


async def test_a_node_whose_address_leads_nowhere_is_not_removed_however_long_it_is_refused():
    """As of nodes on two hosts that both say 127.0.0.1: each dials itself."""
    async with cluster(1) as (first,):
        other = Node("n1", "", "running")
        other.address = "127.0.0.1:1"
        first.peers.know([other.view()])
        known = first.peers._known["n1"]
        await until(lambda: known.state.is_refused, "nobody listens there")
        await until(lambda: known.verdict == "unreachable", "it is said")
        deadline = time.monotonic() + 4 * PATIENCE.unreachable_after_s
        while time.monotonic() < deadline:
            first.peers.look(Own(time.monotonic(), 0.0), time.monotonic())
            await asyncio.sleep(0.01)
        assert (first.removed, known.verdict) == ([], "unreachable")


async def test_a_node_that_speaks_in_the_registry_after_it_was_called_gone_is_removed_once_and_no_more():
    async with cluster(2) as (first, second):
        await second.stop()
        await until(lambda: first.removed == ["member-of-n1"], "it is called gone")
        known, view = first.peers._known["n1"], second.view()
        first.peers.know([replace(view, clock_ms=1)])
        assert known.verdict == "gone", "its last word, said before it died"
        known.judged_s -= LAST_WORD_S
        first.peers.know([replace(view, clock_ms=1)])
        assert known.verdict == "gone", "nothing new"
        seat = GroupSeat("g", "joined-anew", 2, ("t-0",))
        process = replace(view.processes[0], seats=(seat,))
        first.peers.know([replace(view, clock_ms=2, processes=(process,))])
        for _ in range(100):
            first.peers.look(Own(time.monotonic(), 0.0), time.monotonic())
            assert first.peers.unreachable == ("n1",)
            await asyncio.sleep(0.01)
        assert first.removed == ["member-of-n1"]


async def test_who_hears_nobody_is_cut_off_though_one_of_the_others_was_never_heard():
    """As when one of two that are out of reach starts anew."""
    async with cluster(2) as (first, second):
        never = Node("n2", "", "running")
        never.address = "127.0.0.1:1"
        first.peers.know([second.view(), never.view()])
        await second.stop()
        known = first.peers._known["n1"]
        await until(lambda: known.state.is_refused and known.state.has_hung_up, "it is out of reach")
        await until(lambda: known.verdict == "unreachable", "it is said")
        for _ in range(100):
            first.peers.look(Own(time.monotonic(), 0.0), time.monotonic())
            await asyncio.sleep(0.01)
        assert first.removed == []


async def test_of_three_nodes_on_three_hosts_the_second_to_die_is_gone_at_once_like_the_first():
    async with cluster(3) as (first, second, third):
        await third.stop()
        await until(lambda: first.removed == ["member-of-n2"], "the first is removed")
        await second.stop()
        await until(lambda: first.removed == ["member-of-n2", "member-of-n1"], "and the second")


async def test_what_is_no_beat_ends_the_connection_and_harms_nobody():
    async with cluster(2) as (first, second):
        host, _, port = first.address.rpartition(":")
        for garbage in (b"\x00\xff\n", b'{"node_id":"n1"}\n', b'{"node_id":"n1","epoch":7,"heard":{}}\n', b"[" * 5000):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            await writer.drain()
            writer.close()
        known = first.peers._known["n1"]
        heard_s = known.state.heard_s
        await until(lambda: known.state.heard_s > heard_s, "the node is heard as before")
        assert first.removed == second.removed == []
