"""Files below one folder: a path cannot leave it, neither by `..` nor by a link that somebody puts there meanwhile."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from app.errors import TaskFailed

_PATH_CHARS: Final = 1_024


def parts_of(path: str) -> tuple[str, ...]:
    """The names of a relative path. Raises `TaskFailed` of type `PathRefused`."""
    parts = tuple(part for part in path.split("/") if part not in {"", "."})
    if path.startswith("/") or ".." in parts or "\0" in path or not parts or len(path) > _PATH_CHARS:
        raise TaskFailed(
            "PathRefused",
            f"{path!r:.200} is not a path below tasks.files_directory",
            retryable=False,
            detail={"path": path[:_PATH_CHARS]},
        )
    return parts


@contextmanager
def folder(root: Path, parts: tuple[str, ...], *, create: bool) -> Iterator[int]:
    """The descriptor of a folder below `root`, opened part by part, no part of which is a link.

    Raises `TaskFailed` of type `FileMissing`, `PathRefused` or `FileFailed`.
    """
    with refused("/".join(parts) or "."):
        handle = _open(root, parts, create)
    try:
        yield handle
    finally:
        os.close(handle)


def _open(root: Path, parts: tuple[str, ...], create: bool) -> int:
    if create:
        root.mkdir(parents=True, exist_ok=True)
    # The root itself may be a link: it is the operator's.
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            if create:
                _make(part, handle)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextmanager
def reading(root: Path, path: str) -> Iterator[BinaryIO]:
    """A plain file below `root`, open for reading. Raises as `folder`."""
    *folders, name = parts_of(path)
    with refused(path), folder(root, tuple(folders), create=False) as inside:
        # Without O_NONBLOCK a pipe in the folder would hold the thread for ever.
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise TaskFailed("PathRefused", f"{path!r:.200} is not a plain file", retryable=False)
            yield file


@contextmanager
def refused(path: str) -> Iterator[None]:
    """Turn what the system says into `TaskFailed`."""
    try:
        yield
    except FileNotFoundError as error:
        raise TaskFailed(
            "FileMissing",
            f"there is no file {path!r:.200} in tasks.files_directory",
            retryable=False,
            detail={"path": path[:_PATH_CHARS]},
        ) from error
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG}:
            said = "leads through a link" if error.errno == errno.ELOOP else os.strerror(error.errno).lower()
            raise TaskFailed("PathRefused", f"{path!r:.200} cannot be used: {said}", retryable=False) from error
        raise TaskFailed("FileFailed", f"{path!r:.200} cannot be used: {error.strerror or error}") from error


def _make(part: str, parent: int) -> None:
    try:
        os.mkdir(part, dir_fd=parent)
    except FileExistsError:
        return
    os.fsync(parent)
