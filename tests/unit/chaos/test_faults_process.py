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
from app.chaos.faults_process import held, living
from app.chaos.scene import NoVictim, send, state_of, stopped
from app.chaos.schedule import Planned
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
