"""Results of tasks as JSON, and the files that stand for the large ones (claim check).

A result that is too large for the history becomes `{"$payload": {"path", "sha256", "bytes"}}`: the file's name is
its content's hash, so that a repeat of an attempt writes the same file again and nothing else.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

PAYLOAD: Final = "$payload"
# Items encoded at once, and bytes between two turns of the loop: about a millisecond of rows.
CHUNK_ITEMS: Final = 500
PART_BYTES: Final = 131_072
# Long lists in long lists in …: further inside they are encoded at once.
_LEVELS: Final = 6
# orjson stops at 254 levels.
MAX_DEPTH: Final = 250
_PLAIN: Final = (str, bool, type(None))
_NO_FLOATS: Final = frozenset({str, bool, int, type(None)})


class NotJson(ValueError):
    """A value that JSON has no word for; `where` is its place in the result."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where} {why}")
        self.where = where
        self.why = why


class TooLarge(ValueError):
    """A result of more than `limit` bytes; `size` is what is known of it, exact when `whole`."""

    def __init__(self, size: int, limit: int, *, whole: bool = True) -> None:
        super().__init__(f"the result has {'' if whole else 'at least '}{size} bytes, and {limit} are allowed")
        self.size = size
        self.limit = limit


class PayloadGone(LookupError):
    """The file of a large result is not where it should be, or is not what was written."""


def dumps(value: Any, where: str = "result", first: int = 0) -> bytes:
    """`value` as JSON; dates, times and UUIDs become text. Raises `NotJson` with the place.

    `where` is what the value is called there, `first` the number of a list's first item.
    """
    try:
        encoded = memoryview(orjson.dumps(value)).tobytes()  # as `app.codec.dumps`, and why
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise find_fault(value, where, first=first) or NotJson(where, f"cannot be written as JSON: {error}") from error
    # orjson writes NaN and infinities as null: who reads it later would take a broken computation for a gap.
    if b"null" in encoded and _holds_nan(value):
        raise find_fault(value, where, first=first) or NotJson(where, "holds a number that is not finite")
    return encoded


async def encode(value: Any, limit: int, where: str = "result") -> bytes:
    """`dumps` that lets the loop turn between the parts of what is long. Raises `TooLarge` beyond `limit` bytes."""
    parts: list[bytes] = []
    size = told = 0
    for part in _parts(value, limit, where):
        size += len(part)
        if size > limit:
            raise TooLarge(size, limit, whole=not parts)
        parts.append(part)
        if size - told > PART_BYTES:
            told = size
            await asyncio.sleep(0)
    return b"".join(parts)


def encode_in_thread(value: Any, limit: int) -> bytes:
    """The same for a thread: between the parts other threads may run, the loop's among them."""
    parts: list[bytes] = []
    size = 0
    for part in _parts(value, limit):
        size += len(part)
        if size > limit:
            raise TooLarge(size, limit, whole=not parts)
        parts.append(part)
    return b"".join(parts)


def _parts(value: Any, limit: int, where: str = "result", depth: int = 0) -> Iterator[bytes]:
    """The JSON of `value` in parts; one part unless it or something just inside it is long."""
    kind = type(value)
    if kind is str and len(value) > limit:
        raise TooLarge(len(value) + 2, limit, whole=False)
    if kind is list and depth < _LEVELS and (len(value) > CHUNK_ITEMS or any(map(_is_long, value))):
        yield from _list_parts(value, limit, where, depth)
    elif kind is dict and depth < _LEVELS and (len(value) > CHUNK_ITEMS or any(map(_is_long, value.values()))):
        yield from _dict_parts(value, limit, where, depth)
    else:
        yield dumps(value, where)


def _list_parts(value: list[Any], limit: int, where: str, depth: int) -> Iterator[bytes]:
    yield b"["
    at, step = 0, CHUNK_ITEMS
    while at < len(value):
        some = value[at : at + step]
        if any(map(_is_long, some)):
            for index, item in enumerate(some, at):
                yield b"," if index else b""
                yield from _parts(item, limit, f"{where}[{index}]", depth + 1)
        else:
            part = dumps(some, where, at)
            yield (b"," if at else b"") + part[1:-1]
            if len(part) > PART_BYTES:
                step = max(1, step // 2)
        at += len(some)
    yield b"]"


def _dict_parts(value: dict[Any, Any], limit: int, where: str, depth: int) -> Iterator[bytes]:
    yield b"{"
    items = list(value.items())
    at, step = 0, CHUNK_ITEMS
    while at < len(items):
        some = items[at : at + step]
        if any(_is_long(item) for _, item in some):
            for index, (key, item) in enumerate(some, at):
                dumps({key: None}, where)  # what is wrong with the key is told as ever
                yield (b"," if index else b"") + orjson.dumps(key) + b":"
                yield from _parts(item, limit, f"{where}.{key}", depth + 1)
        else:
            part = dumps(dict(some), where)
            yield (b"," if at else b"") + part[1:-1]
            if len(part) > PART_BYTES:
                step = max(1, step // 2)
        at += len(some)
    yield b"}"


def _is_long(value: Any) -> bool:
    kind = type(value)
    return ((kind is list or kind is dict) and len(value) > CHUNK_ITEMS) or (kind is str and len(value) > PART_BYTES)


def _holds_nan(value: Any) -> bool:
    inner: Iterable[Any]
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    elif dataclasses.is_dataclass(value):
        inner = [getattr(value, one.name, None) for one in dataclasses.fields(value)]
    else:
        return False
    for item in inner:
        kind = type(item)
        if kind is float:
            if not math.isfinite(item):
                return True
        elif kind not in _NO_FLOATS and _holds_nan(item):
            return True
    return False


def is_plain(value: Any) -> bool:
    """Whether the value is its own JSON and small: no need to write and read it."""
    kind = type(value)
    if kind is str:
        return len(value) < 1_024 and value.isascii()
    return kind in _PLAIN or (kind is int and -(1 << 53) < value < 1 << 53)


def find_fault(value: Any, where: str = "result", depth: int = 0, first: int = 0) -> NotJson | None:
    """The first part of `value` that JSON has no word for; `first` is the number of a list's first item."""
    if depth > MAX_DEPTH:
        return NotJson(where[:200], "is nested too deep, or contains itself")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return NotJson(where, f"has the key {key!r:.80}, which is a {type(key).__name__} and no text")
            if (fault := find_fault(item, f"{where}.{key}", depth + 1)) is not None:
                return fault
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value, first):
            if (fault := find_fault(item, f"{where}[{index}]", depth + 1)) is not None:
                return fault
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return NotJson(where, f"is {value}, a number that JSON has no word for")
    try:
        orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError) as error:
        if isinstance(value, (str, int)):
            return NotJson(where, f"cannot be written as JSON: {error}")
        kind = type(value)
        return NotJson(where, f"is a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "") + ", not JSON")
    return None


class Payloads:
    """The files of large results in one folder."""

    def __init__(self, directory: Path, retention_s: float, now_s: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._retention_s = retention_s
        self._now_s = now_s
        self._swept_s = float("-inf")

    def store(self, content: bytes) -> dict[str, Any]:
        """Write `content`, on the disk when this returns; what stands for it. Blocks: call it in a thread."""
        digest = hashlib.sha256(content).hexdigest()
        folder = self._directory / digest[:2]
        path = folder / f"{digest}.json"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size == len(content):
            os.utime(path)  # used again: as young as what uses it
        else:
            _write(path, content)
        self._sweep()
        return {PAYLOAD: {"path": f"{digest[:2]}/{path.name}", "sha256": digest, "bytes": len(content)}}

    def load(self, reference: Mapping[str, Any]) -> Any:
        """The result that `reference` stands for. Raises `PayloadGone`. Blocks: call it in a thread."""
        told = reference[PAYLOAD]
        digest = str(told.get("sha256", ""))
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise PayloadGone(f"a reference to a large result names no hash but {digest!r:.80}")
        try:
            content = (self._directory / digest[:2] / f"{digest}.json").read_bytes()
        except OSError as error:
            raise PayloadGone(f"the large result {digest} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise PayloadGone(f"the file of the large result {digest} is damaged")
        return orjson.loads(content)

    def _sweep(self) -> None:
        """Delete what is older than `payload_retention_s`, at most once an hour."""
        now_s = self._now_s()
        if now_s - self._swept_s < 3_600:
            return
        self._swept_s = now_s
        for path in self._directory.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                if now_s - path.stat().st_mtime > self._retention_s:
                    path.unlink()


def is_reference(value: Any) -> bool:
    """Whether `value` stands for a large result."""
    return type(value) is dict and len(value) == 1 and type(value.get(PAYLOAD)) is dict


def _write(path: Path, content: bytes) -> None:
    """(1) a file beside, on the disk (2) renamed (3) the folder on the disk: never half a file under the name."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
