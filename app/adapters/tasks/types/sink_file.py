"""The task type sink.file: rows appended to a JSON-lines file, or as a file of their own for each effect.

jsonl: the lines of an effect are appended in one piece, and the effect is noted in the journal beside
(`.<name>.effects`, one line an effect: its digest and the file's length after it; the first line has the length that
the file had before). Under a lock: (1) what a crash left behind the last noted length is cut off; (2) an effect that
is noted is not made again; (3) the lines are appended and synced; (4) the effect is noted and synced. The file must
have no other writer.

parquet, json: `<path>/<digest of the effect>.<format>`, written under a hidden name, synced and renamed: it is there
whole or not at all, and an effect whose file is there is not made again.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal, NamedTuple

import orjson
from pydantic import Field

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.types.confined import folder, parts_of, refused
from app.adapters.tasks.types.params import Params
from app.errors import TaskFailed

_ENTRY: Final = 64 + 1 + 20 + 1
_REMEMBERED: Final = 256
_BEFORE: Final = "0" * 64


class FileSinkParams(Params):
    """What sink.file is told."""

    path: str = Field(
        min_length=1, description="Below tasks.files_directory: the file (jsonl), or the folder of the files."
    )
    format: Literal["jsonl", "json", "parquet"] = Field(
        "jsonl", description="jsonl: one growing file; json, parquet: a file of its own for each effect."
    )
    compression: Literal["zstd", "snappy", "gzip", "none"] = Field("zstd", description="parquet: codec of the columns.")


class _Journal(NamedTuple):
    """What is known of a journal: its file, how far it was read, the effects in it, and the length they vouch for."""

    inode: int
    read: int
    effects: set[bytes]
    length: int


class FileSinkTask:
    """Works in a thread; the effect is on the disk when it answers."""

    name = "sink.file"
    params_model = FileSinkParams
    kind: Kind = "blocking"
    pure = False

    def __init__(self) -> None:
        self._journals: dict[tuple[Path, str], _Journal] = {}
        self._lock = Lock()

    def run_sync(self, call: TaskCall[FileSinkParams]) -> dict[str, Any]:
        """{file, rows, repeated}: `repeated` when the effect had been made before."""
        params = call.params
        parts = parts_of(params.path)
        effect = hashlib.sha256(call.idempotency_key.encode()).hexdigest()
        told: dict[str, Any] = {"file": "/".join(parts), "rows": len(call.rows), "repeated": False}
        if not call.rows:
            return told
        with refused(params.path):
            if params.format == "jsonl":
                told["repeated"] = not self._append(call.shared.files, parts, _lines(call.rows), effect)
            else:
                name = f"{effect}.{params.format}"
                told["file"] = "/".join((*parts, name))
                content = _parquet(call) if params.format == "parquet" else _json(call.rows)
                told["repeated"] = not _place(call.shared.files, parts, name, content)
        return told

    def _append(self, root: Path, parts: tuple[str, ...], content: bytes, effect: str) -> bool:
        """Numbered as the module."""
        *folders, name = parts
        with folder(root, tuple(folders), create=True) as inside, _locked(inside, f".{name}.effects") as journal:
            place = (root, "/".join(parts))
            with self._lock:
                known = _caught_up(journal, self._journals.get(place))
            data = _open(inside, name)
            try:
                size = os.fstat(data).st_size
                if known.read == 0:
                    _note(journal, _BEFORE, size)
                    known = _caught_up(journal, known)
                if size > known.length:
                    os.ftruncate(data, known.length)  # (1)
                elif size < known.length:
                    raise TaskFailed(
                        "FileChanged",
                        f"{place[1]!r:.200} is shorter than its journal says: somebody else changed it",
                        retryable=False,
                    )
                if effect.encode() in known.effects:
                    return False  # (2)
                _write(data, content)  # (3)
                os.fsync(data)
            finally:
                os.close(data)
            length = known.length + len(content)
            _note(journal, effect, length)  # (4)
            os.fsync(inside)
            with self._lock:
                if len(self._journals) >= _REMEMBERED:
                    self._journals.clear()
                self._journals[place] = _caught_up(journal, known)
            return True


def _note(journal: int, effect: str, length: int) -> None:
    _write(journal, f"{effect} {length:020d}\n".encode())
    os.fsync(journal)


def _caught_up(journal: int, known: _Journal | None) -> _Journal:
    """The journal as it is now; only what is new is read. An entry that a crash cut short is taken away."""
    about = os.fstat(journal)
    if known is None or known.inode != about.st_ino or about.st_size < known.read:
        known = _Journal(about.st_ino, 0, set(), 0)
    whole = about.st_size - about.st_size % _ENTRY
    if whole < about.st_size:
        os.ftruncate(journal, whole)
    read, length = known.read, known.length
    while read < whole:
        some = os.pread(journal, min(whole - read, 1 << 20) // _ENTRY * _ENTRY, read)
        for at in range(0, len(some), _ENTRY):
            entry = some[at : at + _ENTRY]
            known.effects.add(entry[:64])
            length = int(entry[65:85])
        read += len(some)
    return known._replace(read=read, length=length)


@contextmanager
def _locked(inside: int, name: str) -> Iterator[int]:
    """The journal, open and ours alone."""
    handle = _open(inside, name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _open(inside: int, name: str) -> int:
    return os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640, dir_fd=inside)


def _write(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _place(root: Path, parts: tuple[str, ...], name: str, content: bytes) -> bool:
    """Put a whole file into a folder; False when it is there already."""
    with folder(root, parts, create=True) as inside:
        if _is_there(inside, name):
            return False
        hidden = f".{name}.{os.getpid()}.{id(content):x}.part"
        handle = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640, dir_fd=inside)
        try:
            try:
                _write(handle, content)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.rename(hidden, name, src_dir_fd=inside, dst_dir_fd=inside)
        except BaseException:
            os.unlink(hidden, dir_fd=inside)
            raise
        os.fsync(inside)
        return True


def _is_there(inside: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=inside, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _lines(rows: Any) -> bytes:
    return b"".join(_encoded(row, number) + b"\n" for number, row in enumerate(rows))


def _json(rows: Any) -> bytes:
    return b"[" + b",\n".join(_encoded(row, number) for number, row in enumerate(rows)) + b"]\n"


def _encoded(row: Any, number: int) -> bytes:
    try:
        return orjson.dumps(row)
    except TypeError as error:
        raise TaskFailed(
            "InvalidRow", f"row {number} is not JSON: {error}", retryable=False, detail={"row": number}
        ) from error


def _parquet(call: TaskCall[FileSinkParams]) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - 60 MB that only Parquet needs
    import pyarrow.parquet as pq  # noqa: PLC0415 - see above

    rows = call.rows
    wrong = next((number for number, row in enumerate(rows) if not isinstance(row, dict) or not row), None)
    if wrong is not None:
        raise TaskFailed("InvalidRow", f"row {wrong} is no object with fields", retryable=False, detail={"row": wrong})
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        columns = {name: _column(pa, [row.get(name) for row in rows]) for name in names}
        buffer = BytesIO()
        pq.write_table(pa.table(columns), buffer, compression=call.params.compression)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        said = " ".join(str(error).split())[:300]
        raise TaskFailed("InvalidRow", f"the rows make no table: {said}", retryable=False) from error
    return buffer.getvalue()


def _column(pa: Any, values: list[Any]) -> Any:
    """Numbers of both kinds are doubles; objects and lists are JSON text, so that rows may differ in shape."""
    if any(isinstance(value, dict | list) for value in values):
        return pa.array([None if value is None else orjson.dumps(value).decode() for value in values], type=pa.string())
    if any(isinstance(value, float) for value in values) and not any(isinstance(value, bool | str) for value in values):
        return pa.array([None if value is None else float(value) for value in values], type=pa.float64())
    if all(value is None for value in values):
        return pa.array(values, type=pa.string())
    return pa.array(values)
