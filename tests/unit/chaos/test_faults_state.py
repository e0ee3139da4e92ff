"""Laws of faults of a node's clock: two at a time take turns, and the clock is right after the last."""

import asyncio
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from app.chaos.driver import Driver
from app.chaos.faults_state import clock, set_clock, turn
from app.chaos.proxy import HOST
from app.chaos.scene import Scene
from app.chaos.schedule import Planned
from tests.unit.chaos.serving import serving


def offset_s(file: Path) -> int:
    return int(file.read_text())


async def test_two_jumps_of_one_clock_take_turns_and_both_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "clock-0"
    set_clock(file, 0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        date = formatdate(time.time() + offset_s(file), usegmt=True)
        writer.write(f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    async with serving(answer) as port:
        node = SimpleNamespace(name="node-1", health_url=f"http://{HOST}:{port}")
        rig = SimpleNamespace(cluster=SimpleNamespace(nodes=[node]), clock_file=lambda _: file)
        scene = Scene(cast("Any", rig), cast("Driver", None))
        struck = await asyncio.gather(
            *(clock(scene, Planned(number, 0.0, "clock", 0.0, pick)) for number, pick in enumerate((0.0, 0.3)))
        )
    assert [each.proof["jump_s"] for each in struck] == [5, -5]
    assert offset_s(file) == 0


async def test_a_turn_is_of_one_file_and_is_kept_while_it_is_taken(tmp_path: Path) -> None:
    async with turn(tmp_path / "one"):
        assert turn(tmp_path / "one").locked()
        assert not turn(tmp_path / "other").locked()
    assert not turn(tmp_path / "one").locked()
