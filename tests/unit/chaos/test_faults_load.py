"""Laws of the proofs of load: more was really sent and taken, and what was refused is not under way."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from app.chaos.driver import Driver, Tally
from app.chaos.faults_load import POISONED, crashes, overload
from app.chaos.oplog import OpLog
from app.chaos.scene import Scene
from app.chaos.schedule import Planned
from tests.unit.chaos.serving import serving

PLANNED = Planned(0, 0.0, "overload", 0.05, 0.0)


@asynccontextmanager
async def api(status: int, codes: list[int]) -> AsyncIterator[int]:
    """An API that answers every batch so, each start by its code; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        items = [{"code": code, "execution_id": f"e-{number}"} for number, code in enumerate(codes)]
        body = json.dumps({"items": items}).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await reader.read()

    async with serving(answer) as port:
        yield port


def driver(log: Any, port: int = 1) -> Driver:
    return Driver([port], log, {"one": 1.0}, 1.0, 1, 1)


@pytest.mark.parametrize(
    ("status", "codes", "proof"),
    [
        (202, [202, 202, 202], {"executions": POISONED}),
        (202, [202, 422, 503], {"executions": 1}),
        (202, [422, 422, 422], {}),
        (400, [], {}),
        (503, [], {}),
    ],
)
async def test_poison_that_was_refused_is_not_under_way(
    tmp_path: Path, status: int, codes: list[int], proof: dict[str, int]
) -> None:
    async with api(status, codes) as port, OpLog(tmp_path / "ops.jsonl", "start") as log:
        ours = driver(log, port)
        struck = await crashes(Scene(cast("Any", None), ours), PLANNED)
        ours._clients.close()
    assert dict(struck.proof) == proof


def planned_only(tally: Tally) -> None:
    tally.planned += 1000
    tally.left_out += 1000


def asked_again(tally: Tally) -> None:
    tally.asked += 1000
    tally.again += 1000
    tally.accepted.add("one")


def lost(tally: Tally) -> None:
    tally.asked += 1000
    tally.unknown += 1000


def taken(tally: Tally) -> None:
    tally.asked += 1000
    tally.accepted.update(map(str, range(1000)))


@pytest.mark.parametrize(
    ("load", "is_proved"), [(planned_only, False), (asked_again, False), (lost, False), (taken, True)]
)
async def test_overload_is_proved_by_starts_that_were_sent_and_taken(
    load: Callable[[Tally], None], is_proved: bool
) -> None:
    ours = driver(None)
    fault = asyncio.create_task(overload(Scene(cast("Any", None), ours), PLANNED))
    await asyncio.sleep(0)  # it has begun
    assert ours.factor > 1
    load(ours.tally)
    assert bool((await fault).proof) == is_proved
    assert ours.factor == 1.0
