"""The processes of this node as its watch sees them: their beats, their seats, their end.

Runs in the watch's own loop. A child that dies is noticed by the kernel's word on its pid; one that stands still by
its missing beats and the kernel's word that it is stopped.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from app.adapters.beats import LINE_BYTES, decode_beat
from app.adapters.process_state import Posture, posture_of
from app.domain.cluster import GroupSeat, ProcessView
from app.domain.detector import Own, Patience, child_verdict, silence_s

log = logging.getLogger(__name__)

Remove = Callable[["Watched", str], Coroutine[Any, Any, None]]
Kill = Callable[[str, int, str], None]

EXIT_POLL_S: Final = 0.05
CLOSE_S: Final = 1.0


@dataclass(slots=True)
class Watched:
    """One child; `frozen` since it lost its seats by standing still, until it beats again."""

    role: str
    pid: int
    heard_s: float
    beats: int = 0
    ready: bool = False
    seats: tuple[GroupSeat, ...] = ()
    groups: tuple[str, ...] = ()
    frozen: bool = False
    killed: bool = False
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"the {self.role} process {self.pid}"


class Children:
    """Who lives, by pid. `remove(child, what happened)` takes a child out of its groups.

    One that stands still stays in them while `has_heir(its seats)` is False: nobody would be there to go on.
    """

    def __init__(
        self,
        patience: Patience,
        monotonic_s: Callable[[], float],
        remove: Remove,
        kill: Kill,
        know: Callable[[tuple[str, ...]], None],
        posture: Callable[[int], Posture] = posture_of,
        has_heir: Callable[[tuple[GroupSeat, ...]], bool] = bool,
    ) -> None:
        self._patience = patience
        self._monotonic_s = monotonic_s
        self._remove = remove
        self._kill = kill
        self._know = know
        self._posture = posture
        self._has_heir = has_heir
        self._watched: dict[int, Watched] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def started(self, role: str, pid: int, beats_fd: int) -> None:
        """A child runs; its beats come in at `beats_fd`, which is closed at their end."""
        child = self._watched[pid] = Watched(role, pid, self._monotonic_s())
        child.tasks.append(asyncio.create_task(self._hear(child, beats_fd), name=f"beats of {role}"))
        child.tasks.append(asyncio.create_task(self._await_end(child), name=f"end of {role}"))

    def views(self) -> tuple[ProcessView, ...]:
        """What they hold, as last told."""
        return tuple(ProcessView(each.role, each.pid, each.ready, each.seats) for each in self._watched.values())

    def look(self, own: Own, now_s: float) -> None:
        """Find who stands still; called several times in the time that it takes to be called frozen."""
        for child in list(self._watched.values()):
            silent_s = silence_s(own, child.heard_s, now_s)
            if silent_s < self._patience.frozen_after_s:
                continue
            verdict = child_verdict(self._patience, silent_s, stopped=self._posture(child.pid) == "stopped")
            if verdict != "alive" and not child.frozen and self._has_heir(child.seats):
                child.frozen = True
                self._later(self._remove(child, "frozen"))
            if verdict == "overdue" and not child.killed:
                child.killed = True
                self._kill(child.role, child.pid, f"it stands still for {silent_s:.1f} s")

    async def close(self) -> None:
        """End the watch over all; what is being removed is removed."""
        tasks = [task for child in self._watched.values() for task in child.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._ending:
            await asyncio.wait(self._ending, timeout=CLOSE_S)
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _hear(self, child: Watched, fd: int) -> None:
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        try:
            while line := await reader.readline():
                self._take(child, line)
        except ValueError as error:
            log.warning("%s: %s", child.name, error, extra={"action": "announce_invalid", "role": child.role})
        finally:
            transport.close()

    def _take(self, child: Watched, line: bytes) -> None:
        said = decode_beat(line)
        child.heard_s = self._monotonic_s()
        child.beats += 1
        child.ready = said.ready
        if said.seats is not None:
            child.seats = said.seats
        if said.groups is not None:
            child.groups = said.groups
            self._know(said.groups)
        if child.frozen and not child.killed:
            child.frozen = False
            log.warning("%s goes on", child.name, extra={"action": "cluster_event", "event": "resumed"})

    async def _await_end(self, child: Watched) -> None:
        await gone(child.pid)
        del self._watched[child.pid]
        # What it said with its last breath may still be in the pipe: it is read to its end, but nothing waits for it.
        await asyncio.wait(child.tasks[:1], timeout=0.002)
        self._later(self._remove(child, "died"))
        for task in child.tasks[:1]:
            task.cancel()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def gone(pid: int) -> None:
    """Return when the process has ended, reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # no such call here, or no such process any more
        while posture_of(pid) != "gone":  # noqa: ASYNC110 - the kernel sends no event for this
            await asyncio.sleep(EXIT_POLL_S)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(fd, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
