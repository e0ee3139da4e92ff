"""Law of the lease in a real process: after a stop nothing runs before the group was asked."""

import asyncio
import os
import signal
import sys
import time

import pytest

from app.adapters.process_state import posture_of
from tests.helpers.kafka import until

# It says "work" a thousand times a second from its loop; the group of the lease, at SIGCONT, what argv says.
PROCESS = """
import asyncio, os, sys
import uvloop
from app.adapters.clock import SystemClock
from app.adapters.lease import Lease

def say(word):
    os.write(1, word.encode() + b"\\n")

def is_member(timeout_s):
    say("asked")
    return sys.argv[1] == "member"

def end(stood_s):
    say("ended")
    os._exit(1)

async def work():
    while True:
        say("work")
        await asyncio.sleep(0.001)

async def main():
    lease = Lease(SystemClock(), 10.0)
    lease.is_member, lease.end = is_member, end
    keeping = asyncio.create_task(lease.keep())
    await work()

uvloop.run(main())
"""


def said(fd: int) -> list[str]:
    """What it wrote and nobody read."""
    found = b""
    while True:
        try:
            piece = os.read(fd, 65_536)
        except BlockingIOError:
            piece = b""
        if not piece:
            return found.decode().split()
        found += piece


@pytest.mark.parametrize("group", ["member", "stranger"])
async def test_nothing_runs_after_a_stop_before_the_group_is_asked(group: str) -> None:
    """But for a call of the kernel that the stop itself held up."""
    hearing, saying = os.pipe()
    os.set_blocking(hearing, False)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, group, stdout=saying)
    os.close(saying)
    words: list[str] = []
    try:
        await until(lambda: said(hearing).count("work") > 10, "it works")
        process.send_signal(signal.SIGSTOP)
        await until(lambda: posture_of(process.pid) == "stopped", "it stands still")
        stopped_s = time.monotonic()
        said(hearing)
        await until(lambda: time.monotonic() - stopped_s > 0.25, "it has stood still for long enough")
        process.send_signal(signal.SIGCONT)
        if group == "stranger":
            assert await process.wait() == 1
            words = said(hearing)
            assert words[-2:] == ["asked", "ended"]
        else:

            def works_on() -> bool:
                words.extend(said(hearing))
                return words.count("work") > 10

            await until(works_on, "it works on")
            assert words.count("asked") == 1
        assert words.index("asked") <= 1
    finally:
        os.close(hearing)
        if process.returncode is None:
            process.kill()
        await process.wait()
