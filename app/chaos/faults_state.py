"""Faults of what a node stands on: a full disk, a clock that jumps, a store that is damaged or gone."""

import asyncio
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import httpx

from app.chaos.faults_process import held, living
from app.chaos.rig import Rig
from app.chaos.scene import Entry, NoVictim, Scene, Struck, chosen, gone, send
from app.chaos.schedule import Kind, Planned
from app.cluster_run import SUPERVISOR, LocalNode

JUMPS_S: Final = (5, -5, 3600, -3600)
# libfaketime looks at its file every second, a date has whole seconds, and a node may be a while without an answer.
CLOCK_WAIT_S: Final = 20.0
CLOCK_TOLERANCE_S: Final = 3.5
CLOCK_POLL_S: Final = 0.5
_BLOCK: Final = b"\xa5" * 65_536
# What only one fault at a time may have, by its file; a lock is there as long as somebody has it or waits for it.
_TURNS: Final[WeakValueDictionary[Path, asyncio.Lock]] = WeakValueDictionary()


def turn(file: Path) -> asyncio.Lock:
    """The lock of a clock or of a ballast: a second fault would take back what the first has done."""
    return _TURNS.setdefault(file, asyncio.Lock())


# ---- disk ----


async def disk_full(scene: Scene, planned: Planned) -> Struck:
    """The disk of the last node's state takes no byte more for a while."""
    node = scene.rig.cluster.nodes[-1]
    ballast = node.folder / ".headrace" / "ballast"
    async with turn(ballast):
        try:
            written = await asyncio.to_thread(_fill, ballast)
            free = shutil.disk_usage(ballast.parent).free
            await asyncio.sleep(planned.length_s)
            free_then = shutil.disk_usage(ballast.parent).free
        finally:
            ballast.unlink(missing_ok=True)
    is_full = free < len(_BLOCK)
    return Struck(node.name, {"written": written, "free": free, "free_at_the_end": free_then} if is_full else {})


def _fill(path: Path) -> int:
    """Bytes written until the disk was full."""
    written = 0
    with path.open("wb", buffering=0) as file:
        for size in (len(_BLOCK), 512):
            while True:
                try:
                    written += file.write(_BLOCK[:size])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
    return written


# ---- clock ----


async def clock(scene: Scene, planned: Planned) -> Struck:
    """The wall clock of the last node jumps, and jumps back after the fault's length; the monotonic one goes on."""
    at = len(scene.rig.cluster.nodes) - 1
    node = scene.rig.cluster.nodes[at]
    jump_s = JUMPS_S[int(planned.pick * len(JUMPS_S))]
    file = scene.rig.clock_file(at)
    async with turn(file):
        try:
            began = time.monotonic()
            set_clock(file, jump_s)
            seen_s = await _jumped(node, jump_s)
            await asyncio.sleep(max(0.0, began + planned.length_s - time.monotonic()))
        finally:
            set_clock(file, 0)
    return Struck(node.name, {} if seen_s is None else {"jump_s": jump_s, "seen_s": seen_s})


async def _jumped(node: LocalNode, jump_s: int) -> float | None:
    """How far off the node's clock is, once that is about `jump_s`; None when it is not in time."""
    ends_s = time.monotonic() + CLOCK_WAIT_S
    while time.monotonic() < ends_s:
        seen_s = await _clock_of(node)
        if seen_s is not None and abs(seen_s - jump_s) < CLOCK_TOLERANCE_S:
            return seen_s
        await asyncio.sleep(CLOCK_POLL_S)
    return None


def set_clock(file: Path, offset_s: int) -> None:
    """How far the clock of the node that reads this file is off from now on."""
    partial_file = file.with_suffix(".new")
    partial_file.write_text(f"{offset_s:+d}\n")
    partial_file.replace(file)


async def _clock_of(node: LocalNode) -> float | None:
    """How far the node's clock is ahead, by the date of its answer; None when it does not answer."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=3.0) as client:
            answer = await client.get(f"{node.health_url}/health/live")
    except httpx.HTTPError:
        return None
    date = answer.headers.get("date")
    return None if date is None else round(parsedate_to_datetime(date).timestamp() - time.time(), 1)


# ---- tables ----


def flip(store: Path, pick: float) -> str:
    """One bit in the middle of a file of rows."""
    victim = _one_of(sorted(store.glob("*.sst")) or sorted(store.glob("*.log")), pick)
    content = bytearray(victim.read_bytes())
    if not content:
        raise NoVictim("an empty file has no bit")
    content[int(pick * len(content))] ^= 0x10
    victim.write_bytes(content)
    return f"a bit of {victim.name} flipped"


def cut_short(store: Path, pick: float) -> str:
    """A file of rows loses its second half."""
    victim = _one_of(sorted(store.glob("*.sst")) or sorted(store.glob("*.log")), pick)
    size = victim.stat().st_size
    os.truncate(victim, size // 2)
    return f"{victim.name} cut to {size // 2} bytes"


def without_manifest(store: Path, pick: float) -> str:
    """The list of its files is gone."""
    victim = _one_of(sorted(store.glob("MANIFEST-*")), pick)
    victim.unlink()
    return f"{victim.name} deleted"


def delete(store: Path, _: float) -> str:
    """The whole store is gone."""
    shutil.rmtree(store)
    return "deleted"


def _one_of(files: list[Path], pick: float) -> Path:
    if not files:
        raise NoVictim("a store without files")
    return files[int(pick * len(files))]


async def damage(how: Callable[[Path, float], str], scene: Scene, planned: Planned) -> Struck:
    """Kill a coordinator, hurt a store of its before it is started again."""
    async with scene.nodes:
        name, pid = chosen(planned, scene.rig.processes("coordinator"))
        at = scene.rig.node_of(name)
        node = scene.rig.cluster.nodes[at]
        supervisor = node.pids().get(SUPERVISOR)
        if supervisor is None:
            raise NoVictim(planned.kind)
        with held(living(planned, [supervisor])):
            send(pid, signal.SIGKILL)
            gone_s = await gone(pid)
            proof = {} if gone_s is None else await asyncio.to_thread(_hurt, scene.rig, at, how, planned.pick)
    return Struck(name, proof)


def _hurt(rig: Rig, at: int, how: Callable[[Path, float], str], pick: float) -> dict[str, Any]:
    stores = sorted(each.parent for each in rig.tables(at).glob("workflow/*/CURRENT"))
    store = _one_of(stores, pick)
    return {"store": store.name, "done": how(store, pick)}


FAULTS: Final = (
    Entry(Kind("disk-full", (5.0, 15.0)), disk_full, needs="small disk"),
    Entry(Kind("clock", (5.0, 15.0)), clock, needs="clock"),
    Entry(Kind("rocks-flip"), partial(damage, flip)),
    Entry(Kind("rocks-cut"), partial(damage, cut_short)),
    Entry(Kind("rocks-manifest"), partial(damage, without_manifest)),
    Entry(Kind("rocks-delete"), partial(damage, delete)),
)
