"""What a fault has at hand, and what it must show for itself."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from app.chaos.driver import Driver
from app.chaos.rig import Needs, Rig
from app.chaos.schedule import Kind, Planned

GONE_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.01


class NoVictim(Exception):
    """There is nothing of the kind to hit at this moment."""


@dataclass(slots=True)
class Scene:
    """The rig and the load; one fault of brokers at a time, and one restart of a node."""

    rig: Rig
    driver: Driver
    brokers: asyncio.Lock = field(default_factory=asyncio.Lock)
    nodes: asyncio.Lock = field(default_factory=asyncio.Lock)


class Struck(NamedTuple):
    """A fault that was put in and taken back; an empty `proof` says that it did not happen."""

    victim: str
    proof: Mapping[str, Any]


Inject = Callable[[Scene, Planned], Awaitable[Struck]]


class Entry(NamedTuple):
    """A kind of fault and how it is done; `needs_brokers` is how many there must be, `needs` what the rig prepares."""

    kind: Kind
    inject: Inject
    needs_brokers: int = 1
    needs: Needs | None = None


def chosen(planned: Planned, among: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """One of them. Raises `NoVictim`."""
    if not among:
        raise NoVictim(planned.kind)
    return among[int(planned.pick * len(among))]


def state_of(pid: int) -> str:
    """The letter of /proc: R, S, D, T, Z; empty when there is no such process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


async def gone(pid: int, timeout_s: float = GONE_TIMEOUT_S) -> float | None:
    """Seconds until a process has ended; None when it has not in time."""
    began = time.monotonic()
    while state_of(pid) not in {"", "Z"}:
        if time.monotonic() - began > timeout_s:
            return None
        await asyncio.sleep(POLL_S)
    return round(time.monotonic() - began, 3)


async def stopped(pid: int, timeout_s: float = 2.0) -> bool:
    """Whether a process stands still."""
    ends_s = time.monotonic() + timeout_s
    while (state := state_of(pid)) not in {"T", "t"}:
        if state in {"", "Z"} or time.monotonic() > ends_s:
            return False
        await asyncio.sleep(POLL_S)
    return True


def send(pid: int, number: int) -> bool:
    """Whether the signal found its process."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def same(process: psutil.Process) -> bool:
    """Whether the process is still the one it was, and no later one with its number."""
    return process.is_running() and state_of(process.pid) not in {"", "Z"}
