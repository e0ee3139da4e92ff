"""Laws of files of the spool that are gone: what was in them is counted once, and what left in order never."""

import asyncio
import contextlib
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.adapters.spool import AGE, BYTES, DAMAGED, Spool, SpoolRefused
from app.domain.spool import HEAD_BYTES, SpoolLimits, encode_batch, encode_position
from tests.helpers.spool import Losses, a_spool, as_if_killed, kept, read_all, small_disk
from tests.helpers.stages import SetClock

BATCH = 10
SIZE = len(encode_batch(kept(0, BATCH), 0, 0))
IN_SEGMENT = 3 * BATCH
SMALL = SpoolLimits(max_bytes=1 << 30, max_age_ms=86_400_000, segment_bytes=2 * SIZE + 1)


def segment(folder: Path, first: int) -> Path:
    return folder / f"{first:020d}.spool"


async def filled(folder: Path, count: int, limits: SpoolLimits = SMALL) -> Spool:
    """A spool with so many records in segments of `IN_SEGMENT`."""
    spool = a_spool(folder, SetClock(), Losses(), limits)
    await spool.open()
    for first in range(0, count, BATCH):
        await spool.write(kept(first, BATCH))
    return spool


async def after(folder: Path) -> tuple[int, list[int], Losses]:
    """What the next process recovers and reads, and what it tells of as lost."""
    losses = Losses()
    spool = a_spool(folder, SetClock(), losses, SMALL)
    recovered = await spool.open()
    found = await read_all(spool)
    assert spool.unread == 0
    await spool.clear()
    await spool.close()
    return recovered, found, losses


async def test_a_segment_that_is_gone_from_the_middle_is_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await filled(tmp_path, 300)).close()
    segment(tmp_path, 90).unlink()
    caplog.set_level(logging.WARNING)
    assert await after(tmp_path) == (300, [*range(90), *range(120, 300)], {DAMAGED: 30})
    told = [record for record in caplog.records if getattr(record, "action", "") == "spool_dropped"]
    assert [(record.records, record.reason) for record in told] == [(30, DAMAGED)]  # type: ignore[attr-defined]
    assert not any(getattr(record, "action", "") == "spool_unreadable" for record in caplog.records)
    assert await after(tmp_path) == (0, [], {})


@pytest.mark.parametrize("left", [0, 1, SIZE, SIZE + HEAD_BYTES + 5, 2 * SIZE])
async def test_a_segment_of_the_middle_that_is_cut_costs_what_was_cut(tmp_path: Path, left: int) -> None:
    await (await filled(tmp_path, 300)).close()
    cut = segment(tmp_path, 90)
    cut.write_bytes(cut.read_bytes()[:left])
    ends = 90 + left // SIZE * BATCH
    assert await after(tmp_path) == (300, [*range(ends), *range(120, 300)], {DAMAGED: 120 - ends})


async def test_a_segment_of_the_middle_that_is_rubbish_costs_itself(tmp_path: Path) -> None:
    await (await filled(tmp_path, 300)).close()
    segment(tmp_path, 90).write_bytes(b"\xf5HRb" * 500)
    assert await after(tmp_path) == (300, [*range(90), *range(120, 300)], {DAMAGED: 30})


async def test_the_first_segment_counts_from_where_the_one_before_was_done(tmp_path: Path) -> None:
    spool = await filled(tmp_path, 300)
    await spool.read()
    await spool.done(2 * BATCH)
    await spool.close()
    segment(tmp_path, 0).unlink()
    segment(tmp_path, 30).unlink()
    assert await after(tmp_path) == (280, list(range(60, 300)), {DAMAGED: 40})


async def test_the_first_segment_counts_for_a_process_that_never_was_done_with_anything(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = await filled(folder, 300)
    killed = as_if_killed(folder, tmp_path / "killed")
    await spool.close()
    segment(killed, 0).unlink()
    assert await after(killed) == (300, list(range(30, 300)), {DAMAGED: 30})


async def test_what_is_gone_is_told_when_its_turn_comes_and_not_by_each_start(tmp_path: Path) -> None:
    await (await filled(tmp_path, 300)).close()
    segment(tmp_path, 90).unlink()
    losses = Losses()
    for _ in range(3):
        spool = a_spool(tmp_path, SetClock(), losses, SMALL)
        assert await spool.open() == 300
        spool.expire()
        await spool.close()
    assert not losses
    assert (await after(tmp_path))[2] == {DAMAGED: 30}


async def test_what_is_gone_falls_to_no_limit(tmp_path: Path) -> None:
    await (await filled(tmp_path, 300)).close()
    segment(tmp_path, 90).unlink()
    clock, losses = SetClock(), Losses()
    spool = a_spool(tmp_path, clock, losses, SMALL)
    await spool.open()
    clock.ms += SMALL.max_age_ms + 1
    spool.expire()
    assert await read_all(spool) == []
    assert losses == {AGE: 270, DAMAGED: 30}
    await spool.close()


async def test_a_new_segment_is_never_written_over_by_what_is_gone(tmp_path: Path) -> None:
    await (await filled(tmp_path, 90)).close()
    segment(tmp_path, 0).unlink()
    segment(tmp_path, 30).unlink()
    segment(tmp_path, 60).write_bytes(b"")  # as a process leaves it that is killed before its first batch is there
    losses = Losses()
    spool = a_spool(tmp_path, SetClock(), losses, SMALL)
    assert await spool.open() == 60
    await spool.write(kept(60, BATCH))
    assert await read_all(spool) == list(range(60, 70))
    assert segment(tmp_path, 60).exists()
    assert losses == {DAMAGED: 60}
    await spool.close()


# ---- nothing is missing ----


@pytest.mark.parametrize("done", range(0, 310, 10))
async def test_nothing_is_told_when_nothing_is_missing(tmp_path: Path, done: int) -> None:
    folder, clock, losses = tmp_path / "spool", SetClock(), Losses()
    spool = a_spool(folder, clock, losses, SMALL)
    await spool.open()
    for first in range(0, 300, BATCH):
        await spool.write(kept(first, BATCH))
    while batches := await spool.read():
        for batch in batches:
            clock.ms += 10_000
            if batch.end <= done:
                await spool.done(batch.end)
    found = await after(as_if_killed(folder, tmp_path / "killed"))
    assert found == (300 - done, list(range(done, 300)), {})
    await spool.close()


@pytest.mark.parametrize("under_way", [False, True])
async def test_what_fell_to_a_limit_is_not_told_again_as_damage(tmp_path: Path, under_way: bool) -> None:
    folder, clock, losses = tmp_path / "spool", SetClock(), Losses()
    spool = a_spool(folder, clock, losses, replace(SMALL, max_bytes=12 * SIZE))
    await spool.open()
    await spool.write(kept(0, BATCH))
    if under_way:
        await spool.read()
    for first in range(BATCH, 600, BATCH):
        await spool.write(kept(first, BATCH))
    killed = as_if_killed(folder, tmp_path / "killed")
    recovered, found, told = await after(killed)
    # The batch that was under way is recovered: it is not done with.
    assert (len(found), told) == (recovered, {})
    assert losses == {BYTES: 600 - recovered}
    assert (0 in found) == under_way
    await spool.close()


async def test_damage_beside_what_fell_to_a_limit_is_told(tmp_path: Path) -> None:
    folder, losses = tmp_path / "spool", Losses()
    spool = a_spool(folder, SetClock(), losses, replace(SMALL, max_bytes=12 * SIZE))
    await spool.open()
    for first in range(0, 120, BATCH):
        await spool.write(kept(first, BATCH))
    await spool.read()  # the first segments are under way and stay
    for first in range(120, 300, BATCH):
        with contextlib.suppress(SpoolRefused):
            await spool.write(kept(first, BATCH))
    killed = as_if_killed(folder, tmp_path / "killed")
    await spool.close()
    recovered, whole, _ = await after(as_if_killed(killed, tmp_path / "whole"))
    gone = sorted(killed.glob("*.spool"))[1]
    gone.unlink()
    assert await after(killed) == (
        recovered,
        [number for number in whole if not int(gone.stem) <= number < int(gone.stem) + IN_SEGMENT],
        {DAMAGED: IN_SEGMENT},
    )


async def test_what_an_older_version_dropped_is_not_told_and_what_goes_later_is(tmp_path: Path) -> None:
    await (await filled(tmp_path, 300)).close()
    (tmp_path / "given_up").unlink()  # it did not write that
    for first in (0, 30, 120):
        segment(tmp_path, first).unlink()
    losses = Losses()
    spool = a_spool(tmp_path, SetClock(), losses, SMALL)
    assert await spool.open() == 210
    for first in range(300, 390, BATCH):
        await spool.write(kept(first, BATCH))
    await spool.close()
    for first in (150, 330):
        segment(tmp_path, first).unlink()
    assert await after(tmp_path) == (300, [*range(60, 120), *range(180, 330), *range(360, 390)], {DAMAGED: 60})
    assert not losses


async def test_a_position_that_a_full_disk_refused_makes_no_damage(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        spool = await filled(disk / "spool", 600)
        for _ in range(5):
            await spool.read()
        with (disk / "filling").open("wb", buffering=0) as filling, contextlib.suppress(OSError):
            while filling.write(b"x" * 4096) == 4096:
                pass
        with pytest.raises(OSError, match="No space left"):
            (disk / "spool" / "probe").write_bytes(b"x" * 4097)
        await spool.done(100)
        assert not segment(disk / "spool", 60).exists()
        found = await after(as_if_killed(disk / "spool", tmp_path / "killed"))
        await spool.close()
    assert found == (500, list(range(100, 600)), {})


async def test_a_damaged_position_says_nothing_of_what_was_before(tmp_path: Path) -> None:
    spool = await filled(tmp_path, 300)
    for _ in range(3):
        await spool.read()
    await spool.done(70)
    await spool.close()
    (tmp_path / "position").write_bytes(encode_position(7)[:-1])
    assert await after(tmp_path) == (240, list(range(60, 300)), {})


# ---- whatever is gone ----


@given(
    count=st.integers(1, 30),
    done=st.integers(0, 30),
    left=st.lists(st.one_of(st.none(), st.integers(0, 3 * SIZE)), min_size=10, max_size=10),
)
def test_what_is_not_read_of_what_was_written_is_counted_once(count: int, done: int, left: list[int | None]) -> None:
    """`left` says of each segment how many bytes of it are left, None that it is gone."""

    async def play(folder: Path) -> None:
        spool = await filled(folder, count * BATCH)
        position = min(done, count) * BATCH
        while batches := await spool.read():
            await spool.done(min(position, batches[-1].end))
        await spool.close()
        known, sound = position, list[int]()
        for first, size in zip(range(0, count * BATCH, IN_SEGMENT), left, strict=False):
            path = segment(folder, first)
            if not path.exists():
                continue
            if size is None:
                path.unlink()
                continue
            there = path.read_bytes()[:size]
            path.write_bytes(there)
            heads = (len(there) + SIZE - HEAD_BYTES) // SIZE
            known = max(known, first + heads * BATCH)
            sound += range(max(first, position), first + len(there) // SIZE * BATCH)
        recovered, found, losses = await after(folder)
        assert (recovered, found) == (known - position, sound)
        assert losses == ({DAMAGED: recovered - len(sound)} if recovered > len(sound) else {})
        assert await after(folder) == (0, [], {})

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))
