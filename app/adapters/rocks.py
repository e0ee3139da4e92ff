"""RocksDB as one partition's store: ordered bytes to bytes, written in atomic batches."""

import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch, WriteOptions

from app.errors import EnvironmentError_

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RocksLimits:
    """Memory and files of one partition's store, in our words.

    Faust's defaults are a block cache of 2 GiB and three memtables of 64 MiB a partition a table.
    """

    block_cache_bytes: int = 16 << 20
    write_buffer_bytes: int = 8 << 20
    write_buffers: int = 2
    max_open_files: int = 128
    sync_writes: bool = False

    def options(self) -> Options:
        """The same in RocksDB's words."""
        blocks = BlockBasedOptions()
        blocks.set_block_cache(Cache(max(self.block_cache_bytes, 1)))
        blocks.set_bloom_filter(10, block_based=False)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_size(self.write_buffer_bytes)
        options.set_max_write_buffer_number(self.write_buffers)
        options.set_max_open_files(self.max_open_files)
        options.set_compression_type(DBCompressionType.lz4())
        # The log is replayed at the next open: bounded, that takes well under a second.
        options.set_max_total_wal_size(self.write_buffer_bytes * 4)
        options.set_keep_log_file_num(3)
        return options


# Left in the folder by whoever meets a damaged block, so that the next open does not trust the store.
DAMAGED: Final = "DAMAGED"


class _Ended:
    """Stands for RocksDB's iterator once it is let go: an iterator that lives on keeps the folder locked."""

    def __getattr__(self, name: str) -> Any:
        raise EnvironmentError_("the tables were closed meanwhile")


_ENDED: Final = _Ended()


class _Cursor:
    """RocksDB's iterator in a place from which it can be taken away."""

    def __init__(self, walk: Any) -> None:
        self.walk = walk


class RocksStore:
    """One open database; close it before the folder is opened anywhere else.

    Every method raises `EnvironmentError_` with the fact `damaged` when the files are not as they were written.
    """

    def __init__(self, path: Path, limits: RocksLimits) -> None:
        """Open or create it. Raises `EnvironmentError_` when it is in use or cannot be read."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        if (path / DAMAGED).exists():
            raise _damaged(path, (path / DAMAGED).read_text())
        try:
            self._db: Any = Rdict(str(path), options=limits.options())
        except Exception as error:  # rocksdict raises bare Exception
            raise _unreadable(path, error) from error
        self._cursors: WeakSet[_Cursor] = WeakSet()
        writing = WriteOptions()
        writing.sync = limits.sync_writes
        self._db.set_write_options(writing)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:  # rocksdict raises bare Exception
            raise self._failed(error) from error
        return value

    def write(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put every pair, delete every key whose value is None: all of them or none."""
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        delete = batch.delete
        for key, value in changes:
            if value is None:
                delete(key)
            else:
                put(key, value)
        try:
            self._db.write(batch)
        except Exception as error:  # rocksdict raises bare Exception
            raise self._failed(error) from error

    def range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end, in the order of keys."""
        cursor = self._cursor(start)
        while cursor.walk.valid():
            key = cursor.walk.key()
            if key >= end:
                return
            yield key, cursor.walk.value()
            cursor.walk.next()
        try:
            # A damaged block ends the walk as the last key does; only the status tells them apart.
            cursor.walk.status()
        except Exception as error:  # rocksdict raises bare Exception
            cursor.walk = _ENDED
            raise self._failed(error) from error

    def _cursor(self, start: bytes) -> "_Cursor":
        cursor = _Cursor(self._db.iter())
        cursor.walk.seek(start)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """Flush and let go of the folder; ranges that are not read to their end raise when they go on.

        A store that is damaged, or whose disk is full, cannot flush: what that loses is on the changelog.
        """
        for cursor in list(self._cursors):
            cursor.walk = _ENDED
        if self._db is _ENDED:
            return
        try:
            self._db.close()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            log.warning("%s It is let go of.", self._failed(error), extra={"action": "table_unflushed"})
            self._db = _ENDED  # with the last reference RocksDB lets go of the folder in any case

    def _failed(self, error: Exception) -> EnvironmentError_:
        text = str(error)
        if not text.startswith("Corruption"):
            return EnvironmentError_(f"The table folder {self.path} failed: {text}.")
        (self.path / DAMAGED).write_text(text)
        return _damaged(self.path, text)


class RocksFolder:
    """Opens and empties store folders with one set of limits (`tables.restore.StoreFolder`).

    What `open` raises for a folder that another owner has not let go of yet has the fact `locked`.
    """

    def __init__(self, limits: RocksLimits) -> None:
        self._limits = limits

    def open(self, path: Path) -> RocksStore:
        """Open the store at `path`."""
        return RocksStore(path, self._limits)

    def empty(self, path: Path) -> None:
        """Delete the store at `path`; what it held is restored from the changelog."""
        if path.exists():
            shutil.rmtree(path)


def _unreadable(path: Path, error: Exception) -> EnvironmentError_:
    text = str(error)
    if "LOCK" in text:
        return EnvironmentError_(
            f"The table folder {path} is in use by another process; stop it or set tables.directory.", locked=True
        )
    if text.startswith(("Corruption", "Invalid argument")) or "No such file" in text:
        return _damaged(path, text)
    return EnvironmentError_(f"The table folder {path} cannot be opened: {text}.")


def _damaged(path: Path, text: str) -> EnvironmentError_:
    return EnvironmentError_(f"the table folder {path} is damaged ({text})", damaged=True)
