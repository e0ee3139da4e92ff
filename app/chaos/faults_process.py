"""Faults of processes: SIGKILL and SIGSTOP of one of them, of all of a kind, of a supervisor, of a whole node."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import psutil

from app.chaos.scene import Entry, NoVictim, Scene, Struck, chosen, gone, same, send, stopped
from app.chaos.schedule import Kind, Planned
from app.cluster_run import SUPERVISOR

STOPS_S: Final = (0.3, 2.0, 15.0)
ENGINE: Final = ("worker", "coordinator")
# The children of a supervisor that was killed end by themselves; who has not by then is an orphan.
ORPHANS_S: Final = 20.0

# How many faults hold each process stopped: like the stop itself it is a matter of the machine, not of a scene.
_HOLDS: Final[Counter[psutil.Process]] = Counter()


@contextmanager
def held(victims: Sequence[psutil.Process]) -> Iterator[None]:
    """SIGSTOP while the block lasts; a process that several blocks hold gets its SIGCONT from the last of them."""
    for victim in victims:
        _HOLDS[victim] += 1
        send(victim.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for victim in victims:
            _HOLDS[victim] -= 1
            if not _HOLDS[victim]:
                del _HOLDS[victim]
                if same(victim):
                    send(victim.pid, signal.SIGCONT)


def living(planned: Planned, pids: Iterable[int]) -> list[psutil.Process]:
    """The processes of these numbers. Raises `NoVictim` when there are none, or one has ended by now."""
    try:
        victims = [psutil.Process(pid) for pid in pids]
    except psutil.NoSuchProcess as error:
        raise NoVictim(planned.kind) from error
    if not victims:
        raise NoVictim(planned.kind)
    return victims


async def kill(what: str, scene: Scene, planned: Planned) -> Struck:
    """SIGKILL one process; whoever supervises it starts it again."""
    name, pid = chosen(planned, scene.rig.processes(what))
    if not send(pid, signal.SIGKILL):
        raise NoVictim(what)
    gone_s = await gone(pid)
    return Struck(name, {} if gone_s is None else {"pid": pid, "gone_s": gone_s})


async def kill_all(scene: Scene, planned: Planned) -> Struck:
    """SIGKILL every worker and coordinator at once."""
    victims = [each for what in ENGINE for each in scene.rig.processes(what)]
    if not victims:
        raise NoVictim(planned.kind)
    for _, pid in victims:
        send(pid, signal.SIGKILL)
    ended = await asyncio.gather(*(gone(pid) for _, pid in victims))
    pids = [pid for (_, pid), gone_s in zip(victims, ended, strict=True) if gone_s is not None]
    return Struck(f"{len(victims)} processes", {"pids": pids} if len(pids) == len(victims) else {})


async def stop(what: str, scene: Scene, planned: Planned) -> Struck:
    """SIGSTOP one process for a while, then SIGCONT if it is still there."""
    name, pid = chosen(planned, scene.rig.processes(what))
    return Struck(name, await _stop(living(planned, [pid]), planned.length_s))


async def stop_all(scene: Scene, planned: Planned) -> Struck:
    """SIGSTOP every worker and coordinator at once."""
    victims = living(planned, [pid for what in ENGINE for _, pid in scene.rig.processes(what)])
    return Struck(f"{len(victims)} processes", await _stop(victims, planned.length_s))


async def stop_node(scene: Scene, planned: Planned) -> Struck:
    """SIGSTOP a supervisor and all of its children, as a machine that hangs."""
    name, _ = chosen(planned, scene.rig.processes(SUPERVISOR))
    node = scene.rig.cluster.nodes[scene.rig.node_of(name)]
    pids = sorted(node.pids().values(), key=lambda pid: pid != node.pid)  # the supervisor first: it restarts none
    return Struck(node.name, await _stop(living(planned, pids), planned.length_s))


async def _stop(victims: list[psutil.Process], length_s: float) -> dict[str, Any]:
    """What was seen of it; nothing when one of them never stood still."""
    began = time.monotonic()
    with held(victims):
        stood = [victim.pid for victim in victims if await stopped(victim.pid)]
        await asyncio.sleep(length_s)
        ended = sum(not same(victim) for victim in victims)
    if len(stood) < len(victims):
        return {}
    seconds = round(time.monotonic() - began, 3)
    return {"pids": stood, "state": "T", "stopped_s": seconds, "ended_meanwhile": ended}


async def kill_supervisor(scene: Scene, planned: Planned) -> Struck:
    """SIGKILL a supervisor alone; its children must end by themselves, then the node is started again.

    Those that did not, and were killed then, are the proof's `orphans`: the fault has happened, but not in order.
    """
    async with scene.nodes:
        name, pid = chosen(planned, scene.rig.processes(SUPERVISOR))
        at = scene.rig.node_of(name)
        node = scene.rig.cluster.nodes[at]
        children = {role: child for role, child in node.pids().items() if role != SUPERVISOR}
        os.kill(pid, signal.SIGKILL)
        gone_s = await gone(pid)
        ended = await asyncio.gather(*(gone(child, ORPHANS_S) for child in children.values()))
        orphans = [role for role, ended_s in zip(children, ended, strict=True) if ended_s is None]
        for role in orphans:
            send(children[role], signal.SIGKILL)
        if gone_s is not None:
            # Its first thread may be gone a moment before the others are, and the process with them.
            await asyncio.to_thread(node.reap)
            await scene.rig.cluster.start_node(at, wait=False)
    last_s = max((each for each in ended if each is not None), default=0.0)
    proof: dict[str, Any] = {"pid": pid, "gone_s": gone_s, "orphans_s": last_s}
    if orphans:
        proof["orphans"] = orphans
    return Struck(name, {} if gone_s is None else proof)


async def kill_node(scene: Scene, planned: Planned) -> Struck:
    """SIGKILL a supervisor and all of its children at once, as a machine that dies; then it is started again."""
    async with scene.nodes:
        name, pid = chosen(planned, scene.rig.processes(SUPERVISOR))
        at = scene.rig.node_of(name)
        await scene.rig.cluster.kill_node(at)
        gone_s = await gone(pid)
        await scene.rig.cluster.start_node(at, wait=False)
    return Struck(name.split()[0], {} if gone_s is None else {"pid": pid, "gone_s": gone_s})


async def restart_node(scene: Scene, planned: Planned) -> Struck:
    """SIGTERM a node, and start it again when it has ended in order: a step of a rolling restart."""
    async with scene.nodes:
        name, pid = chosen(planned, scene.rig.processes(SUPERVISOR))
        at = scene.rig.node_of(name)
        began = time.monotonic()
        orderly = await scene.rig.cluster.stop_node(at)
        stop_s = round(time.monotonic() - began, 3)
        await scene.rig.cluster.start_node(at, wait=False)
    return Struck(name.split()[0], {"pid": pid, "orderly": orderly, "stop_s": stop_s})


FAULTS: Final = (
    Entry(Kind("kill-worker", weight=2), partial(kill, "worker")),
    Entry(Kind("kill-coordinator", weight=3), partial(kill, "coordinator")),
    Entry(Kind("kill-api"), partial(kill, "api-gateway")),
    Entry(Kind("kill-task-process"), partial(kill, "task process")),
    Entry(Kind("kill-all"), kill_all),
    Entry(Kind("kill-supervisor"), kill_supervisor),
    Entry(Kind("kill-node"), kill_node),
    Entry(Kind("restart-node"), restart_node),
    Entry(Kind("stop-worker", STOPS_S, weight=2), partial(stop, "worker")),
    Entry(Kind("stop-coordinator", STOPS_S, weight=3), partial(stop, "coordinator")),
    Entry(Kind("stop-api", STOPS_S), partial(stop, "api-gateway")),
    Entry(Kind("stop-supervisor", STOPS_S), partial(stop, SUPERVISOR)),
    Entry(Kind("stop-node", STOPS_S), stop_node),
    Entry(Kind("stop-all", STOPS_S), stop_all),
)
