"""Laws of the op log: an intent is on the disk before its op goes on, and every op has a number of its own."""

import asyncio
import os
from pathlib import Path

import orjson
import pytest

from app.chaos.oplog import OpLog


def rows(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_an_intent_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "ops.jsonl"
    async with OpLog(path, "start") as log:
        ops = await log.intend([{"key": "a"}, {"key": "b"}])
        assert [(row["op"], row["phase"], row["key"]) for row in rows(path)] == [
            (ops[0], "intent", "a"),
            (ops[1], "intent", "b"),
        ]
        log.outcome(ops[0], "ok", {"execution": "e"})
    assert rows(path)[-1] | {"op": ops[0], "phase": "ok", "execution": "e"} == rows(path)[-1]


async def test_intents_that_wait_together_share_a_sync_and_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "ops.jsonl"
    async with OpLog(path, "start") as log:
        ops = await asyncio.gather(*(log.intend([{"key": str(number)}]) for number in range(50)))
        assert len({op for (op,) in ops}) == 50
        assert len(rows(path)) == 50
    assert len(synced) < 50
