"""Faults of brokers: killed, stopped in order, or frozen, among them the leader of a partition and the controller."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from app.adapters.embedded import EmbeddedKafka
from app.chaos.scene import Entry, NoVictim, Scene, Struck, gone, send, stopped
from app.chaos.schedule import Kind, Planned
from app.errors import EnvironmentError_, HeadraceError
from config.topics import WORKFLOW_COMMANDS

LEADER_WAIT_S: Final = 10.0
STARTS: Final = 5

Choose = Callable[[Scene, Planned], Awaitable[int]]


async def leader(scene: Scene, planned: Planned) -> int:
    """The broker that leads a partition of the commands. Raises `NoVictim`."""
    at = int(planned.pick * scene.rig.shape.partitions)
    try:
        async with asyncio.timeout(LEADER_WAIT_S):
            found = await scene.rig.kafka.leader(WORKFLOW_COMMANDS.name, at)
    except (HeadraceError, TimeoutError, OSError) as error:
        raise NoVictim(planned.kind) from error
    if found not in scene.rig.kafka.pids:
        raise NoVictim(planned.kind)
    return found


async def controller(scene: Scene, planned: Planned) -> int:
    """The active controller, if it lives. Raises `NoVictim`."""
    found = scene.rig.kafka.controller()
    if found not in scene.rig.kafka.pids:
        raise NoVictim(planned.kind)
    return found


async def anyone(scene: Scene, planned: Planned) -> int:
    """Any broker."""
    alive = sorted(scene.rig.kafka.pids)
    if not alive:
        raise NoVictim(planned.kind)
    return alive[int(planned.pick * len(alive))]


async def kill(choose: Choose, scene: Scene, planned: Planned) -> Struck:
    """SIGKILL, and start again after the fault's length.

    `led` is a partition of the commands that it led, None when it led none or nobody could tell; `new_leader_s` is
    None then, and when no other broker leads it in time.
    """
    kafka = scene.rig.kafka
    async with scene.brokers:
        broker = await choose(scene, planned)
        pid = kafka.pids[broker]
        led = await _led_by(scene, planned, broker) if scene.rig.shape.brokers > 1 else None
        kafka.kill(broker)
        gone_s = await gone(pid)
        led_s = None if led is None else await _led_by_another(scene, led, broker)
        await asyncio.sleep(planned.length_s)
        back_s = await _back(kafka, [broker])
    proof: dict[str, Any] = {"pid": pid, "gone_s": gone_s, "led": led, "new_leader_s": led_s, "back_s": back_s}
    return Struck(f"broker {broker}", {} if gone_s is None else proof)


async def restart(scene: Scene, planned: Planned) -> Struck:
    """SIGTERM, and start again: a broker is upgraded."""
    kafka = scene.rig.kafka
    async with scene.brokers:
        broker = await anyone(scene, planned)
        pid = kafka.pids[broker]
        began = time.monotonic()
        await kafka.stop_node(broker)
        stop_s = round(time.monotonic() - began, 3)
        back_s = await _back(kafka, [broker])
    return Struck(f"broker {broker}", {"pid": pid, "stop_s": stop_s, "back_s": back_s})


async def pause(choose: Choose, scene: Scene, planned: Planned) -> Struck:
    """SIGSTOP for the fault's length."""
    async with scene.brokers:
        broker = await choose(scene, planned)
        pid = scene.rig.kafka.pids[broker]
        send(pid, signal.SIGSTOP)
        try:
            stood = await stopped(pid)
            await asyncio.sleep(planned.length_s)
        finally:
            send(pid, signal.SIGCONT)
    return Struck(f"broker {broker}", {"pid": pid, "state": "T", "stopped_s": planned.length_s} if stood else {})


async def kill_majority(scene: Scene, planned: Planned) -> Struck:
    """SIGKILL two of three at once: nothing can be acknowledged until they are back."""
    kafka = scene.rig.kafka
    async with scene.brokers:
        first = await anyone(scene, planned)
        both = [first, next(broker for broker in sorted(kafka.pids) if broker != first)]
        pids = [kafka.pids[broker] for broker in both]
        for broker in both:
            kafka.kill(broker)
        ended = [await gone(pid) for pid in pids]
        await asyncio.sleep(planned.length_s)
        back_s = await _back(kafka, both)
    proof = {"pids": pids, "back_s": back_s}
    return Struck(f"brokers {both[0]} and {both[1]}", {} if None in ended else proof)


async def _led_by(scene: Scene, planned: Planned, broker: int) -> int | None:
    """A partition of the commands that this broker leads now, the one that `planned` picks first; None for none."""
    count = scene.rig.shape.partitions
    first = int(planned.pick * count)
    with suppress(HeadraceError, OSError, TimeoutError):
        async with asyncio.timeout(LEADER_WAIT_S):
            for turn in range(count):
                at = (first + turn) % count
                if await scene.rig.kafka.leader(WORKFLOW_COMMANDS.name, at) == broker:
                    return at
    return None


async def _led_by_another(scene: Scene, at: int, old: int) -> float | None:
    """Seconds until another broker leads the partition; None when none does in time."""
    began = time.monotonic()
    while time.monotonic() - began < LEADER_WAIT_S:
        with suppress(HeadraceError, OSError, TimeoutError):
            async with asyncio.timeout(LEADER_WAIT_S):
                if await scene.rig.kafka.leader(WORKFLOW_COMMANDS.name, at) not in {-1, old}:
                    return round(time.monotonic() - began, 3)
        await asyncio.sleep(0.05)
    return None


async def _back(kafka: EmbeddedKafka, brokers: list[int]) -> float:
    """Start them; the seconds until they are part of the cluster. Raises `EnvironmentError_` when one never is."""
    began = time.monotonic()
    await asyncio.gather(*(_started(kafka, broker) for broker in brokers))
    return round(time.monotonic() - began, 3)


async def _started(kafka: EmbeddedKafka, broker: int) -> None:
    """A broker that finds no quorum for a while ends by itself; it is started again, as whoever runs one does."""
    for left in reversed(range(STARTS)):
        try:
            await kafka.start_node(broker)
        except EnvironmentError_:
            if not left or broker in kafka.pids:
                raise
        else:
            return


FAULTS: Final = (
    Entry(Kind("broker-kill-leader", (0.0, 2.0, 5.0), weight=2), partial(kill, leader)),
    Entry(Kind("broker-kill-controller", (0.0, 2.0)), partial(kill, controller), needs_brokers=3),
    Entry(Kind("broker-restart"), restart),
    Entry(Kind("broker-pause-leader", (0.3, 3.0, 15.0)), partial(pause, leader)),
    Entry(Kind("broker-pause-controller", (3.0,)), partial(pause, controller), needs_brokers=3),
    Entry(Kind("broker-kill-majority", (0.0, 3.0)), kill_majority, needs_brokers=3),
)
