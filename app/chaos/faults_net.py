"""Faults of the network: late, narrow, reset, silent or cut ways between nodes, brokers, driver and ledger."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from app.chaos.proxy import Link, Weather
from app.chaos.scene import Entry, NoVictim, Scene, Struck
from app.chaos.schedule import Kind, Planned

SLOW: Final = Weather(latency_s=0.05, jitter_s=0.05)
NARROW: Final = Weather(bytes_per_s=64_000)
HOLE: Final = Weather("hole")
DOWN: Final = Weather("down")
LATE: Final = Weather(latency_s=1.0, jitter_s=1.0)
CUTS: Final = 3
CUT_WAIT_S: Final = 60.0
# A fault behind a worse one on all of its links is not there; the longest such is a hole of 30 s before the ledger.
HIDDEN_MAX_S: Final = 60.0
FLAP_S: Final = 0.2
_POLL_S: Final = 0.05
TRIES: Final = 4


def way(scope: str, scene: Scene, planned: Planned) -> tuple[str, list[Link]]:
    """The links of one node to all brokers, of all nodes to one broker, or those with this name's beginning."""
    rig = scene.rig
    if scope == "node":
        at = int(planned.pick * len(rig.cluster.nodes))
        return f"node-{at + 1} to the brokers", rig.links_of(f"kafka-{at}-")
    if scope == "broker":
        broker = 1 + int(planned.pick * rig.shape.brokers)
        return f"the nodes to broker {broker}", [
            link for name, link in rig.links.items() if name.startswith("kafka-") and name.endswith(f"-{broker}")
        ]
    links = rig.links_of(scope)
    if not links:
        raise NoVictim(planned.kind)
    link = links[int(planned.pick * len(links))]
    return f"the way to {link.name}", [link]


async def weather(scope: str, what: Weather, proves: str, scene: Scene, planned: Planned) -> Struck:
    """That weather for the fault's length; the count named `proves` must have grown.

    Where nothing was sent meanwhile (a process was starting) it comes again, `TRIES` times in all.
    """
    victim, links = way(scope, scene, planned)
    for _ in range(TRIES):
        before = _total(links)
        async with _under(links, what):
            await _felt(links, what, planned.length_s)
        grown = _grown(before, links)
        if grown.get(proves):
            return Struck(victim, grown)
    return Struck(victim, {})


async def flap(scope: str, scene: Scene, planned: Planned) -> Struck:
    """Silent and open by turns."""
    victim, links = way(scope, scene, planned)
    before = _total(links)
    ends_s = time.monotonic() + planned.length_s
    while time.monotonic() < ends_s:
        async with _under(links, HOLE):
            await asyncio.sleep(FLAP_S)
        await asyncio.sleep(FLAP_S)
    grown = _grown(before, links)
    return Struck(victim, grown if grown.get("blocked_bytes") else {})


async def reset(scope: str, scene: Scene, planned: Planned) -> Struck:
    """Every connection reset at once."""
    victim, links = way(scope, scene, planned)
    count = sum(link.reset() for link in links)
    if not count:
        raise NoVictim(planned.kind)
    return Struck(victim, {"resets": count})


async def cut(scope: str, scene: Scene, planned: Planned) -> Struck:
    """Requests go through, and their connections are reset before the answers."""
    victim, links = way(scope, scene, planned)
    before = _total(links)
    ends_s = time.monotonic() + CUT_WAIT_S
    with ExitStack() as stack:
        cuts = [stack.enter_context(link.cutting(CUTS)) for link in links]
        while any(each.left for each in cuts) and time.monotonic() < ends_s:  # noqa: ASYNC110 - links count, they do not call
            await asyncio.sleep(_POLL_S)
    own = sum(each.done for each in cuts)
    return Struck(victim, {**_grown(before, links), "cuts": own} if own else {})


@asynccontextmanager
async def _under(links: Sequence[Link], what: Weather) -> AsyncIterator[None]:
    with ExitStack() as stack:
        for link in links:
            stack.enter_context(link.under(what))
        yield


async def _felt(links: Sequence[Link], what: Weather, length_s: float) -> None:
    """Return when it has lasted, without the time in which a worse state hid it on all links (HIDDEN_MAX_S at most)."""
    left_s, limit_s = length_s, time.monotonic() + length_s + HIDDEN_MAX_S
    while left_s > 0 and (began_s := time.monotonic()) < limit_s:
        await asyncio.sleep(min(left_s, _POLL_S))
        if any(link.weather.state == what.state for link in links):
            left_s -= time.monotonic() - began_s


def _total(links: Sequence[Link]) -> dict[str, int]:
    counts = [asdict(link.counts) for link in links]
    return {name: sum(each[name] for each in counts) for name in counts[0]}


def _grown(before: dict[str, int], links: Sequence[Link]) -> dict[str, Any]:
    """What was done meanwhile, without what was merely passed on."""
    passed = {"up_bytes", "down_bytes", "connections"}
    after = _total(links)
    return {name: after[name] - before[name] for name in after if name not in passed and after[name] > before[name]}


FAULTS: Final = (
    Entry(Kind("net-latency", (5.0, 15.0)), partial(weather, "node", SLOW, "delayed_chunks")),
    Entry(Kind("net-bandwidth", (5.0, 10.0)), partial(weather, "node", NARROW, "narrowed_chunks")),
    Entry(Kind("net-reset"), partial(reset, "node")),
    Entry(Kind("net-hole", (1.0, 5.0, 20.0), weight=2), partial(weather, "node", HOLE, "blocked_bytes")),
    Entry(Kind("net-down", (1.0, 5.0)), partial(weather, "node", DOWN, "refused")),
    Entry(Kind("net-flap", (4.0,)), partial(flap, "node")),
    Entry(Kind("net-cut", weight=2), partial(cut, "node")),
    Entry(Kind("net-broker-hole", (1.0, 5.0)), partial(weather, "broker", HOLE, "blocked_bytes")),
    Entry(Kind("api-cut"), partial(cut, "api-")),
    Entry(Kind("api-hole", (1.0, 5.0)), partial(weather, "api-", HOLE, "blocked_bytes")),
    Entry(Kind("sink-slow", (5.0, 15.0)), partial(weather, "sink", LATE, "delayed_chunks")),
    Entry(Kind("sink-cut", weight=2), partial(cut, "sink")),
    Entry(Kind("sink-reset"), partial(reset, "sink")),
    Entry(Kind("sink-hole", (5.0, 30.0)), partial(weather, "sink", HOLE, "blocked_bytes")),
    Entry(Kind("sink-down", (5.0, 15.0)), partial(weather, "sink", DOWN, "refused")),
)
