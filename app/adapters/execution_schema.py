"""The SQLite file of the index of executions: its tables, how it is opened, and when it may not be trusted.

It is made from Kafka and holds nothing that cannot be made again, so that it waits for no disk. A file that a crashed
machine left half written is recognised by the machine's boot and made anew.
"""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

FILE: Final = "executions.sqlite"
_FORMAT: Final = "1"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_TABLES: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE offsets(topic TEXT, part INTEGER, next INTEGER, PRIMARY KEY(topic, part)) WITHOUT ROWID;
CREATE TABLE workflows(n INTEGER PRIMARY KEY, id TEXT UNIQUE);
CREATE TABLE executions(
    n INTEGER PRIMARY KEY, id TEXT NOT NULL, workflow INTEGER NOT NULL, version TEXT NOT NULL, status INTEGER NOT NULL,
    key TEXT, ord INTEGER NOT NULL, started INTEGER, ended INTEGER, epoch INTEGER NOT NULL, last_seq INTEGER NOT NULL,
    priority INTEGER NOT NULL, attempts INTEGER NOT NULL, failures INTEGER NOT NULL, task TEXT, error TEXT
);
CREATE UNIQUE INDEX by_id ON executions(id);
CREATE INDEX by_ord ON executions(ord);
CREATE INDEX by_status ON executions(status, ord);
CREATE INDEX by_workflow ON executions(workflow, status, ord);
CREATE INDEX by_key ON executions(key, status, ord) WHERE key IS NOT NULL;
CREATE TABLE runs(k INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, epoch INTEGER NOT NULL, body BLOB NOT NULL);
"""
# An execution's runs lie side by side: the key is its number, then the first sequence number of the run.
SEQ_BITS: Final = 24
SEQ_MASK: Final = (1 << SEQ_BITS) - 1
# The order of lists: when it was asked for in ms, then a hash of the id, the same on every node.
TIE_BITS: Final = 21
ORDER_MAX: Final = (1 << 63) - 1  # the largest number that SQLite holds: the year 2109
AT_MAX_MS: Final = (ORDER_MAX >> TIE_BITS) - 1


def open_writer(folder: Path, cache_bytes: int) -> sqlite3.Connection:
    """The file of `folder`, made anew when there is none or it may not be trusted."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    try:
        connection = _connect(path, cache_bytes)
        if _trusted(connection):
            _note(connection)
            return connection
        connection.close()
    except sqlite3.DatabaseError as error:
        # Locked is not broken: another process writes it.
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (folder / f"{FILE}{suffix}").unlink()
    connection = _connect(path, cache_bytes)
    connection.executescript(_TABLES)
    connection.execute("INSERT INTO meta VALUES('format', ?)", (_FORMAT,))
    _note(connection)
    return connection


def empty(connection: sqlite3.Connection) -> None:
    """Forget everything, within the transaction of the caller; readers see all of it or nothing."""
    for table in ("offsets", "workflows", "executions", "runs"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names written above


def open_reader(folder: Path) -> sqlite3.Connection:
    """A connection for one thread that only reads. Raises `sqlite3.OperationalError` when there is no file yet."""
    path = (folder / FILE).resolve()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only=1")
    connection.execute("PRAGMA busy_timeout=2000")
    connection.execute(f"PRAGMA mmap_size={1 << 30}")
    return connection


def close_writer(connection: sqlite3.Connection) -> None:
    """Leave a whole file, which is trusted also after the machine was started anew."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES('boot', 'closed')")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _connect(path: Path, cache_bytes: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA busy_timeout=2000")
    connection.execute(f"PRAGMA cache_size={-(cache_bytes >> 10)}")
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def _trusted(connection: sqlite3.Connection) -> bool:
    try:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
    except sqlite3.OperationalError:
        return False  # an empty file
    return meta.get("format") == _FORMAT and meta.get("boot") in {"closed", _boot()}


def _note(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES('boot', ?)", (_boot(),))


def _boot() -> str:
    """Names the run of this machine; where there is no such name, no file survives its writer."""
    try:
        return _BOOT.read_text("ascii").strip()
    except OSError:
        return "unknown"
