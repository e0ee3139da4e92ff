"""Laws of faults of the network: a fault that a worse one hides goes on until it was there itself."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

from app.chaos.driver import Driver
from app.chaos.faults_net import HOLE, SLOW, weather
from app.chaos.proxy import HOST, Link
from app.chaos.scene import Scene
from app.chaos.schedule import Planned
from tests.helpers.kafka import until
from tests.unit.chaos.serving import serving


async def test_the_time_behind_a_worse_fault_is_no_time_of_a_fault() -> None:
    loop = asyncio.get_running_loop()
    async with serving(lambda reader, _: reader.read()) as port, Link(0, port, random.Random(1), "sink") as link:
        rig = SimpleNamespace(links={"sink": link}, links_of=lambda _: [link])
        scene = Scene(cast("Any", rig), cast("Driver", None))
        planned = Planned(0, 0.0, "sink-slow", 0.5, 0.0)
        with link.under(HOLE):
            fault = asyncio.create_task(weather("sink", SLOW, "delayed_chunks", scene, planned))
            over_s = loop.time() + 2 * planned.length_s
            await until(lambda: loop.time() > over_s, "it would be over")
            assert not fault.done()
        _, writer = await asyncio.open_connection(HOST, link.port)
        writer.write(b"late")
        struck = await fault
        writer.close()
        assert struck.proof["delayed_chunks"] == 1
        assert link.is_clear
