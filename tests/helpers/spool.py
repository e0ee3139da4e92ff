"""A spool under test: its records, its losses, and a folder as a killed process would leave it."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.adapters.spool import Spool, SpoolRules
from app.domain.spool import Kept, SpoolLimits
from app.ports import Clock

ROOMY = SpoolLimits(max_bytes=1 << 30, max_age_ms=86_400_000, segment_bytes=65_536)


class Losses(Counter[str]):
    """What a spool will not send, by reason."""

    def __call__(self, reason: str, count: int) -> None:
        self[reason] += count


def a_spool(folder: Path, clock: Clock, losses: Losses, limits: SpoolLimits = ROOMY) -> Spool:
    return Spool(folder, lambda: SpoolRules(limits, 1_000), clock, losses)


def kept(first: int, count: int, size: int = 100) -> list[Kept]:
    return [Kept(b"k%d" % (n % 5), b"%08d" % n + b"x" * size, n) for n in range(first, first + count)]


async def read_all(spool: Spool) -> list[int]:
    """The numbers of all that was not read yet; all of it is done with."""
    found: list[int] = []
    while batches := await spool.read():
        found += [int((record.value or b"")[:8]) for batch in batches for record in batch.records]
        await spool.done(batches[-1].end)
    return found


def as_if_killed(folder: Path, copy: Path) -> Path:
    """The folder as it is for whoever comes after a kill: what the operating system was given is there."""
    shutil.copytree(folder, copy)
    return copy


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A real file system that is soon full."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
