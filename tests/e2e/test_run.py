"""Laws of how a run ends: a part that is cancelled by nobody is an error, and a stop is none."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from io import StringIO

import pytest

from app.supervisor_run import Plan, Run
from app.supervisor_screen import Screen
from app.task_ends import StrayCancellation
from tests.helpers.roles import plan, settings

pytestmark = pytest.mark.e2e


async def stray() -> None:
    """Wait for something that is cancelled by whoever holds it, as a client cancels its own requests."""
    request = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(request.cancel)
    await request


class DyingKafka:
    """A broker whose node has died, and whose new start is `again`."""

    bootstrap = "127.0.0.1:1"

    def __init__(self, again: Callable[[], Awaitable[None]]) -> None:
        self._again = again

    async def start(self) -> None:
        """Nothing has to be started."""

    async def stop(self) -> None:
        """Nothing was."""

    def dead_nodes(self) -> list[int]:
        return [0]

    async def start_node(self, _: int) -> None:
        await self._again()


def alone() -> Plan:
    """A run of one child and without other nodes."""
    return replace(plan("obey", settings(cluster={"enabled": False})), roles=("worker",))


async def ended(chosen: Plan) -> int:
    async with asyncio.timeout(60):
        return await Run(chosen, Screen(StringIO())).run()


async def test_a_start_that_nobody_cancelled_and_that_ends_as_if_is_an_error() -> None:
    with pytest.raises(StrayCancellation):
        await ended(replace(alone(), prepare=lambda _: stray()))


async def test_a_part_that_nobody_cancelled_and_that_ends_as_if_is_an_error() -> None:
    with pytest.raises(StrayCancellation, match="status ended as if"):
        await ended(replace(alone(), broker=DyingKafka(stray)))


@pytest.mark.parametrize("when", ["while it starts", "once it is up"])
async def test_a_stop_is_no_error(when: str) -> None:
    async def wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    during = {"prepare": lambda _: wait()} if when == "while it starts" else {"broker": DyingKafka(wait)}
    assert await ended(replace(alone(), **during)) == 0
