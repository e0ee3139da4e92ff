"""Laws of the watch over real processes: who computes lives, who is stopped or dies is noticed at once."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.domain.cluster import GroupSeat
from app.domain.detector import Own, Patience, awake
from app.node_children import Children, Watched
from tests.helpers.kafka import until

CHILD = """
import sys, time
from app.adapters.beats import PipeBeats, Seats
seats = Seats()
PipeBeats(int(sys.argv[1]), seats, 0.05).start()
seats.watch("g", lambda: "member-1")
seats.took("g", 3, ["t-0", "t-1"])
while True:
    sum(range(1000))  # as a loop that computes and never gives way
"""


class Watch:
    """A child that computes for ever, and what the watch did about it."""

    def __init__(self, kill_after_s: float = 60.0) -> None:
        patience = Patience(0.05, 0.4, kill_after_s, 0.5)
        self.removed: list[tuple[str, tuple[GroupSeat, ...]]] = []
        self.killed: list[int] = []
        self.groups: set[str] = set()
        self.has_heir = True
        self.children = Children(
            patience,
            time.monotonic,
            self._remove,
            lambda _role, pid, _why: self.killed.append(pid),
            self.groups.update,
            has_heir=lambda _: self.has_heir,
        )
        self.patience = patience
        self.pid = 0

    async def _remove(self, child: Watched, event: str) -> None:
        self.removed.append((event, child.seats))

    async def look(self) -> None:
        own = Own(time.monotonic(), time.monotonic())
        while True:
            own = awake(own, time.monotonic(), self.patience)
            self.children.look(own, time.monotonic())
            await asyncio.sleep(0.025)


@asynccontextmanager
async def watched(kill_after_s: float = 60.0) -> AsyncIterator[Watch]:
    watch = Watch(kill_after_s)
    hearing, beating = os.pipe()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, str(beating), pass_fds=(beating,))
    os.close(beating)
    watch.pid = process.pid
    watch.children.started("worker", process.pid, hearing)
    looking = asyncio.create_task(watch.look())
    try:
        await until(lambda: [seat for view in watch.children.views() for seat in view.seats], "the seats are told")
        yield watch
    finally:
        looking.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await watch.children.close()


SEATS = (GroupSeat("g", "member-1", 3, ("t-0", "t-1")),)


def beats(watch: Watch) -> int:
    return next(child.beats for child in watch.children._watched.values())


@pytest.mark.asyncio
async def test_a_process_whose_loop_computes_beats_on_and_is_not_removed():
    async with watched() as watch:
        first = beats(watch)
        await until(lambda: beats(watch) > first + 20, "it beats while it computes")
        assert watch.removed == []
        assert watch.groups == {"g"}


@pytest.mark.asyncio
async def test_a_killed_process_is_removed_with_what_it_held():
    async with watched() as watch:
        os.kill(watch.pid, signal.SIGKILL)
        await until(lambda: watch.removed, "it is removed")
        assert watch.removed == [("died", SEATS)]
        assert watch.children.views() == ()


@pytest.mark.asyncio
async def test_a_stopped_process_is_removed_once_and_heard_again_when_it_goes_on():
    async with watched() as watch:
        os.kill(watch.pid, signal.SIGSTOP)
        await until(lambda: watch.removed, "it is removed")
        assert watch.removed == [("frozen", SEATS)]
        os.kill(watch.pid, signal.SIGCONT)
        before = beats(watch)
        await until(lambda: beats(watch) > before, "it goes on")
        os.kill(watch.pid, signal.SIGSTOP)
        await until(lambda: len(watch.removed) == 2, "it is removed again")
        assert watch.killed == []


@pytest.mark.asyncio
async def test_a_process_that_stands_still_for_long_is_killed():
    async with watched(kill_after_s=0.6) as watch:
        os.kill(watch.pid, signal.SIGSTOP)
        await until(lambda: watch.killed, "it is killed")
        assert watch.killed == [watch.pid]


@pytest.mark.asyncio
async def test_a_stopped_process_keeps_what_nobody_else_could_take():
    async with watched() as watch:
        watch.has_heir = False
        os.kill(watch.pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        await until(lambda: time.monotonic() - stopped_s > 0.6, "it stands still for longer than is allowed")
        assert watch.removed == []
        watch.has_heir = True
        await until(lambda: watch.removed, "it is removed as soon as somebody is there")
        assert watch.removed == [("frozen", SEATS)]
