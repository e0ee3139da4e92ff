"""Laws of the spool's folder: what is written outlives a kill, losses are counted, a full disk is no end."""

from pathlib import Path

import pytest

from app import metrics
from app.adapters.spool import AGE, BYTES, DAMAGED, FULL, SpoolRefused
from app.domain.spool import HEAD_BYTES, SpoolLimits
from app.errors import EnvironmentError_
from tests.helpers.spool import ROOMY, Losses, a_spool, as_if_killed, kept, read_all, small_disk
from tests.helpers.stages import SetClock


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


async def test_what_was_written_is_read_in_order_and_then_gone(tmp_path: Path) -> None:
    losses = Losses()
    spool = a_spool(tmp_path / "spool", SetClock(), losses)
    assert await spool.open() == 0
    for first in range(0, 3_000, 500):
        await spool.write(kept(first, 500))
    assert len(segments(tmp_path / "spool")) > 3
    assert spool.unread == 3_000
    assert metrics.REGISTRY.get_sample_value("telemetry_spool_bytes") == spool.bytes > 300_000
    assert await read_all(spool) == list(range(3_000))
    await spool.write(kept(3_000, 10))
    assert await read_all(spool) == list(range(3_000, 3_010))
    await spool.clear()
    assert (segments(tmp_path / "spool"), spool.bytes, losses) == ([], 0, {})
    await spool.close()


async def test_a_kill_loses_nothing_that_was_written_and_repeats_only_what_was_not_done(tmp_path: Path) -> None:
    clock, losses = SetClock(), Losses()
    spool = a_spool(tmp_path / "spool", clock, losses)
    await spool.open()
    for first in range(0, 2_000, 100):
        await spool.write(kept(first, 100))
    first_read = await spool.read()
    clock.ms += 10_000
    await spool.done(first_read[0].end)
    after = a_spool(as_if_killed(tmp_path / "spool", tmp_path / "after"), clock, losses)
    assert await after.open() == 1_900
    await after.write(kept(2_000, 50))
    again = a_spool(as_if_killed(tmp_path / "after", tmp_path / "again"), clock, losses)
    assert await again.open() == 1_950
    assert await read_all(again) == list(range(100, 2_050))
    for each in (spool, after, again):
        await each.close()
    assert not losses


async def test_a_batch_that_was_cut_short_by_the_end_is_counted_and_those_before_it_are_there(tmp_path: Path) -> None:
    losses = Losses()
    spool = a_spool(tmp_path / "spool", SetClock(), losses)
    await spool.open()
    await spool.write(kept(0, 100))
    await spool.write(kept(100, 7))
    await spool.close()
    (segment,) = segments(tmp_path / "spool")
    segment.write_bytes(segment.read_bytes()[:-1])
    after = a_spool(tmp_path / "spool", SetClock(), losses)
    assert await after.open() == 107
    await after.write(kept(107, 3))
    assert await read_all(after) == [*range(100), *range(107, 110)]
    assert losses == {DAMAGED: 7}
    await after.close()


@pytest.mark.parametrize("where", [0, HEAD_BYTES + 50], ids=["head", "payload"])
async def test_a_damaged_batch_is_passed_over_and_counted(tmp_path: Path, where: int) -> None:
    losses = Losses()
    spool = a_spool(tmp_path / "spool", SetClock(), losses)
    await spool.open()
    await spool.write(kept(0, 10))
    begin = spool.bytes
    for first in range(10, 400, 10):
        await spool.write(kept(first, 10))
    await spool.close()
    segment = segments(tmp_path / "spool")[0]
    damaged = bytearray(segment.read_bytes())
    damaged[begin + where] ^= 1
    segment.write_bytes(damaged)
    after = a_spool(tmp_path / "spool", SetClock(), losses)
    assert await after.open() == 400
    assert await read_all(after) == [*range(10), *range(20, 400)]
    assert losses == {DAMAGED: 10}
    await after.clear()
    await after.close()


async def test_segments_of_rubbish_and_gone_ones_are_no_end(tmp_path: Path) -> None:
    losses = Losses()
    spool = a_spool(tmp_path / "spool", SetClock(), losses)
    await spool.open()
    for first in range(0, 3_000, 500):
        await spool.write(kept(first, 500))
    files = segments(tmp_path / "spool")
    size = files[0].stat().st_size
    files[0].write_bytes(b"\xf5HRb" * (size // 4))
    files[1].unlink()
    found = await read_all(spool)
    assert found == sorted(found)
    assert found[-1] == 2_999
    assert losses == {DAMAGED: 3_000 - len(found)}
    assert losses[DAMAGED] == int(files[2].stem)
    await spool.close()


async def test_beyond_its_bytes_the_oldest_go_but_for_the_segment_that_is_under_way(tmp_path: Path) -> None:
    losses = Losses()
    limits = SpoolLimits(max_bytes=300_000, max_age_ms=1_000, segment_bytes=50_000)
    spool = a_spool(tmp_path / "spool", SetClock(), losses, limits)
    await spool.open()
    await spool.write(kept(0, 200))
    under_way = await spool.read()
    for first in range(200, 10_000, 200):
        await spool.write(kept(first, 200))
        assert spool.bytes <= limits.max_bytes
    left = await read_all(spool)
    assert left[:200] == list(range(200, 400))
    assert left[200:] == list(range(left[200], 10_000))
    assert losses == {BYTES: 10_000 - 200 - len(left)}
    assert under_way[0].end == 200
    await spool.close()


async def test_what_is_past_its_age_is_not_sent(tmp_path: Path) -> None:
    clock, losses = SetClock(), Losses()
    limits = SpoolLimits(max_bytes=1 << 30, max_age_ms=1_000, segment_bytes=50_000)
    spool = a_spool(tmp_path / "spool", clock, losses, limits)
    await spool.open()
    for first in range(0, 2_000, 100):
        await spool.write(kept(first, 100))
        clock.ms += 100
    spool.expire()
    assert 0 < losses[AGE] < 1_000
    assert await read_all(spool) == list(range(1_000, 2_000))
    assert losses == {AGE: 1_000}
    await spool.close()


async def test_a_full_disk_refuses_a_batch_whole_and_takes_it_when_there_is_room(tmp_path: Path) -> None:
    losses = Losses()
    with small_disk(tmp_path / "disk") as disk:
        spool = a_spool(disk / "spool", SetClock(), losses, ROOMY)
        await spool.open()
        written = 0

        async def fill() -> None:
            nonlocal written
            while True:
                await spool.write(kept(written, 100))
                written += 100

        with pytest.raises(SpoolRefused) as refused:
            await fill()
        assert refused.value.reason == FULL
        assert 100 < written < 20_000
        first = await spool.read()
        await spool.done(first[-1].end)
        found = [int((record.value or b"")[:8]) for batch in first for record in batch.records]
        found += await read_all(spool)
        await spool.write(kept(written, 100))
        found += await read_all(spool)
        assert found == list(range(written + 100))
        await spool.close()
    assert not losses


async def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    one, other = (a_spool(tmp_path / "spool", SetClock(), Losses()) for _ in range(2))
    await one.open()
    with pytest.raises(EnvironmentError_, match="in use by another process") as refused:
        await other.open()
    assert refused.value.facts["locked"]
    await one.close()
    assert await other.open() == 0
    await other.close()


async def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentError_, match=r"cannot be used \(Not a directory\); set spool\.directory"):
        await a_spool(tmp_path / "file" / "spool", SetClock(), Losses()).open()
