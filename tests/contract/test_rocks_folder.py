"""Laws of a table folder that another owner still holds: a takeover waits for it and does not end its process."""

import asyncio
import contextlib
import random
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


async def test_a_store_that_cannot_be_closed_in_order_is_let_go_of_and_says_that_it_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files were damaged while it was open: RocksDB refuses everything from then on, also the flush at the end."""
    chance = random.Random(1)
    store = RocksStore(tmp_path / "0", RocksLimits(write_buffer_bytes=65_536))

    def fill() -> None:
        for _ in range(20_000):
            store.write([(b"%08d" % chance.randrange(100_000), chance.randbytes(100))])

    def damage_until_it_is_noticed() -> None:
        for _ in range(20):  # a compaction may be done with a file before it is damaged
            for table in (tmp_path / "0").glob("*.sst"):
                with contextlib.suppress(FileNotFoundError):
                    content = bytearray(table.read_bytes())
                    content[::500] = bytes(byte ^ 0xFF for byte in content[::500])
                    with table.open("r+b") as file:
                        file.write(content)
            fill()

    fill()
    with pytest.raises(EnvironmentError_):
        damage_until_it_is_noticed()
    store.close()
    assert "It is let go of." in caplog.text
    store.close()
    with pytest.raises(EnvironmentError_):
        store.get(b"k")
    folder = RocksFolder(RocksLimits())
    with pytest.raises(EnvironmentError_) as raised:
        folder.open(tmp_path / "0")
    assert raised.value.facts.get("damaged")
    folder.empty(tmp_path / "0")
    folder.open(tmp_path / "0").close()
