"""The JSON lines sink: one growing file for each partition of each topic, nothing in it twice.

| file in the folder | holds |
|---|---|
| `device.rollups-0.jsonl` | the current lines of partition 0 of `device.rollups` |
| `device.rollups-0.20251121-000001.jsonl` | a finished file: rotated at its size, or at midnight UTC |
| `device.rollups-0.state` | length of the current file that counts, and the last offset written |
| `device.rollups-0.lock` | held while a process writes |

A line is never changed, so a rollup's revisions and a signal's end are further lines: of the lines
with one `key` the one with the highest `version` is in force.

A topic that was deleted and made anew begins at offset 0 again and would be taken for a repeat
(which is logged): give the sink another folder then.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from app.errors import SinkRejected, SinkUnavailable
from app.ports import Clock, SinkRow

log = logging.getLogger(__name__)

NOTHING_WRITTEN = -1


@dataclass(frozen=True, slots=True)
class JsonlLimits:
    """When a file is finished: at a size, and at midnight UTC."""

    rotate_bytes: int = 256 << 20
    rotate_daily: bool = True


class _State(NamedTuple):
    """What the state file says: everything behind `length` was never acknowledged."""

    length: int
    last_offset: int
    day: str
    rotated: int


class JsonlSink:
    """Appends rows as JSON lines and syncs each batch to disk."""

    def __init__(self, name: str, folder: Path, clock: Clock, limits: JsonlLimits | None = None) -> None:
        self.name = name
        self._folder = folder.expanduser()
        self._clock = clock
        self._limits = limits or JsonlLimits()

    async def open(self) -> None:
        """Create the folder and cut off what a crash left half-written. Raises `SinkUnavailable`."""
        try:
            await asyncio.shield(asyncio.to_thread(self._prepare))
        except OSError as error:
            raise SinkUnavailable(f"sink {self.name}: {self._folder} cannot be used: {error}") from error

    async def write(self, rows: Sequence[SinkRow]) -> None:
        """Append `rows`; see `app.ports.Sink`. All rows of one Kafka record must come in one call."""
        reasons: dict[int, str] = {}
        lines: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
        for index, row in enumerate(rows):
            try:
                line = _line(row)
            except TypeError as error:
                reasons[index] = f"the row is not JSON: {error}"
                continue
            lines.setdefault(row.source[:2], []).append((row.source[2], line))
        # Off the loop and to its end even when we are cancelled: a thread cannot be stopped half-way.
        await asyncio.shield(asyncio.to_thread(self._append_all, lines))
        if reasons:
            raise SinkRejected(reasons)

    async def close(self) -> None:
        """Nothing stays open between two batches."""

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for lock in self._folder.glob("*.lock"):
            with _locked(lock):
                _repaired(lock.with_suffix(".jsonl"), lock.with_suffix(".state"), self._today())

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC).strftime("%Y%m%d")

    def _append_all(self, lines: dict[tuple[str, int], list[tuple[int, bytes]]]) -> None:
        day = self._today()
        try:
            for (topic, partition), entries in lines.items():
                stem = f"{topic}-{partition}"
                with _locked(self._folder / f"{stem}.lock"):
                    self._append(stem, entries, day)
        except OSError as error:
            raise SinkUnavailable(f"sink {self.name}: {self._folder} takes no lines: {error}") from error

    def _append(self, stem: str, entries: list[tuple[int, bytes]], day: str) -> None:
        """Append the lines of one partition.

        (1) what a crash left behind the acknowledged length is cut off;
        (2) a full or yesterday's file is finished;
        (3) lines not yet written are appended and synced;
        (4) the state file is replaced: from here on a repeat of these lines writes nothing.
        """
        current = self._folder / f"{stem}.jsonl"
        state_file = self._folder / f"{stem}.state"
        state = _repaired(current, state_file, day)
        if _is_due(state, day, self._limits):
            state = self._finish(stem, current, state_file, state, day)
        fresh = [line for offset, line in entries if offset > state.last_offset]
        if len(fresh) < len(entries):
            repeats = len(entries) - len(fresh)
            log.warning(
                "rows written before are left out",
                extra={"action": "sink_repeat", "sink": self.name, "partition": stem, "rows": repeats},
            )
        if not fresh:
            return
        data = b"".join(fresh)
        with current.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        last = max(offset for offset, _ in entries)
        _save(state_file, state._replace(length=state.length + len(data), last_offset=last, day=day))

    def _finish(self, stem: str, current: Path, state_file: Path, state: _State, day: str) -> _State:
        """Give the current file its final name, never one that is taken."""
        number = state.rotated + 1
        while (final := self._folder / f"{stem}.{state.day}-{number:06d}.jsonl").exists():
            number += 1
        if current.exists():
            current.rename(final)
        begun = _State(0, state.last_offset, day, number)
        _save(state_file, begun)
        return begun


def _is_due(state: _State, day: str, limits: JsonlLimits) -> bool:
    if state.length == 0:
        return False
    return state.length >= limits.rotate_bytes or (limits.rotate_daily and state.day != day)


def _repaired(current: Path, state_file: Path, day: str) -> _State:
    """Return the state after cutting off what was never acknowledged."""
    state = _load(state_file)
    if state is None:
        # No state: the folder is new, or somebody removed the state. Then the whole lines speak for themselves.
        length, last_offset = _whole_lines(current)
        state = _State(length, last_offset, day, 0)
    size = current.stat().st_size if current.exists() else 0
    if size > state.length:
        os.truncate(current, state.length)
    elif size < state.length:
        # The crash came between the renaming of a finished file and its state, or the file was taken away.
        state = state._replace(length=size, rotated=state.rotated + 1)
    return state


def _whole_lines(current: Path) -> tuple[int, int]:
    """Return the length of the whole, readable lines and the highest offset in them."""
    length, last_offset = 0, NOTHING_WRITTEN
    if not current.exists():
        return length, last_offset
    with current.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                offset = orjson.loads(line)["source"][2]
            except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
                break
            length += len(line)
            last_offset = max(last_offset, int(offset))
    return length, last_offset


def _load(state_file: Path) -> _State | None:
    try:
        return _State(**orjson.loads(state_file.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None


def _save(state_file: Path, state: _State) -> None:
    """Replace the state file in one step, so that a crash leaves the old one or the new one."""
    fresh = state_file.with_suffix(".state.new")
    with fresh.open("wb") as file:
        file.write(orjson.dumps(state._asdict()))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(state_file)
    sync_folder(state_file.parent)


def sync_folder(folder: Path) -> None:
    """Make renamings in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the partition's lock: a process that lost the partition may still be at its last batch."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _line(row: SinkRow) -> bytes:
    return orjson.dumps(
        {
            "kind": row.kind,
            "key": dict(zip(row.key_fields, row.key, strict=True)),
            "version": row.version,
            "row": row.row,
            "source": row.source,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )
