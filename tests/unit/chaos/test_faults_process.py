"""Laws of stops: a process goes on when the last fault that holds it ends, and a stop that missed one is no proof."""

import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chaos import faults_process
from app.chaos.faults_process import held, kill_supervisor, living
from app.chaos.scene import NoVictim, Scene, send, state_of, stopped
from app.chaos.schedule import Planned
from app.cluster_run import SUPERVISOR
from tests.helpers.kafka import until

PLANNED = Planned(0, 0.0, "stop-all", 0.0, 0.0)


@contextmanager
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture(scope="module")
def victim() -> Iterator[int]:
    with sleeper() as pid:
        yield pid


@settings(max_examples=20, deadline=None)
@given(order=st.permutations([0, 0, 1, 1, 2, 2]))
async def test_a_process_stands_still_until_the_last_who_holds_it_ends(victim: int, order: list[int]) -> None:
    holding: dict[int, AbstractContextManager[None]] = {}
    for one in order:
        if one in holding:
            holding.pop(one).__exit__(None, None, None)
        else:
            holding[one] = held(living(PLANNED, [victim]))
            holding[one].__enter__()
        if holding:
            assert await stopped(victim)
        else:
            await until(lambda: state_of(victim) not in {"T", "t"}, "it goes on")
    assert not faults_process._HOLDS


async def test_a_stop_is_proved_by_every_victim_and_not_by_one(victim: int) -> None:
    seen = await faults_process._stop(living(PLANNED, [victim]), 0.0)
    assert (seen["pids"], seen["ended_meanwhile"]) == ([victim], 0)
    with sleeper() as other:
        both = living(PLANNED, [victim, other])
        send(other, signal.SIGKILL)
        await until(lambda: state_of(other) == "Z", "it has ended")
        assert await faults_process._stop(both, 0.0) == {}
    await until(lambda: state_of(victim) not in {"T", "t"}, "it goes on")


def test_who_has_ended_is_no_victim(victim: int) -> None:
    assert living(PLANNED, [victim]) == [psutil.Process(victim)]
    nobody = 2**22 + random.Random(1).randrange(1, 1000)  # beyond the highest number that a process can have
    for pids in ([], [nobody], [victim, nobody]):
        with pytest.raises(NoVictim):
            living(PLANNED, pids)


class Node:
    """A node of real processes; `reap` and starting again are the rig's."""

    def __init__(self, pid: int, **children: int) -> None:
        self.pid, self._children = pid, children
        self.reaped = 0

    def pids(self) -> dict[str, int]:
        return {SUPERVISOR: self.pid, **self._children}

    def reap(self) -> None:
        self.reaped += 1


class Rig:
    """The part of a rig that a killed supervisor meets."""

    def __init__(self, node: Node) -> None:
        self.cluster, self.nodes, self.started = self, [node], list[int]()

    def processes(self, what: str) -> list[tuple[str, int]]:
        assert what == SUPERVISOR
        return [("node-1 supervisor", self.nodes[0].pid)]

    def node_of(self, name: str) -> int:
        return int(name.removeprefix("node-")[0]) - 1

    async def start_node(self, number: int, *, wait: bool) -> None:
        assert not wait
        self.started.append(number)


async def test_what_outlives_its_killed_supervisor_is_told_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_process, "ORPHANS_S", 0.2)
    with sleeper() as supervisor, sleeper() as worker, sleeper() as coordinator:
        send(worker, signal.SIGKILL)  # this one follows its supervisor, the other one does not
        node = Node(supervisor, worker=worker, coordinator=coordinator)
        rig = Rig(node)
        struck = await kill_supervisor(Scene(rig, None), PLANNED)  # type: ignore[arg-type]
        assert (struck.victim, struck.proof["pid"], struck.proof["orphans"]) == (
            "node-1 supervisor",
            supervisor,
            ["coordinator"],
        )
        await until(lambda: state_of(coordinator) == "Z", "the orphan is ended")
        assert (node.reaped, rig.started) == (1, [0])


async def test_a_killed_supervisor_whom_all_follow_leaves_no_orphan() -> None:
    with sleeper() as supervisor, sleeper() as worker:
        send(worker, signal.SIGKILL)
        struck = await kill_supervisor(Scene(Rig(Node(supervisor, worker=worker)), None), PLANNED)  # type: ignore[arg-type]
        assert "orphans" not in struck.proof
