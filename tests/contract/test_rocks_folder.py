"""Laws of a table folder that another owner still holds: a takeover waits for it and does not end its process."""

import asyncio
from pathlib import Path

import pytest

from app.adapters.clock import SystemClock
from app.adapters.rocks import RocksFolder, RocksLimits, RocksStore
from app.errors import EnvironmentError_
from app.roles.tables import _insist


async def test_a_folder_that_is_let_go_of_a_little_later_is_opened_then(tmp_path: Path) -> None:
    folder = RocksFolder(RocksLimits())
    before = folder.open(tmp_path / "0")
    before.write([(b"k", b"v")])
    refused = asyncio.Event()

    async def opening() -> RocksStore:
        try:
            return folder.open(tmp_path / "0")
        except EnvironmentError_:
            if not refused.is_set():
                refused.set()
                asyncio.get_running_loop().call_soon(before.close)
            raise

    store = await _insist(opening, SystemClock())
    assert refused.is_set()
    assert store.get(b"k") == b"v"
    store.close()


async def test_any_other_fault_of_a_folder_is_not_waited_out(tmp_path: Path) -> None:
    folder = RocksFolder(RocksLimits())
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "CURRENT").write_text("nonsense\n")
    tries = []

    async def opening() -> RocksStore:
        tries.append(1)
        return folder.open(tmp_path / "0")

    with pytest.raises(EnvironmentError_) as raised:
        await _insist(opening, SystemClock())
    assert (len(tries), raised.value.facts.get("damaged")) == (1, True)
