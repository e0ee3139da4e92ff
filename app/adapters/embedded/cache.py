"""The user's cache folder and the locks on folders that several processes share."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from app.errors import EnvironmentError_

_POLL_S = 0.05


def cache_folder(configured: str | None) -> Path:
    """Where downloads are kept for all checkouts: the setting, else `headrace` under the XDG cache folder."""
    if configured:
        return Path(configured).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "headrace"


@contextlib.contextmanager
def disk_errors(doing: str, folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into one sentence for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentError_(f"The disk of {folder} is full: {doing} needs more room.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EnvironmentError_(f"{folder} cannot be written: {doing} needs a folder of yours.") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO):
            raise EnvironmentError_(f"{folder} cannot be a folder for {doing}: {error.strerror}.") from error
        raise


class FolderLock:
    """An exclusive lock on a folder, held as long as any process has its descriptor open."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "in-use.lock"
        self.fd: int | None = None

    def acquire(self, timeout_s: float) -> bool:
        """Wait until the lock is ours; False when `timeout_s` passed. The file of a dead process does not hold it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    os.close(fd)
                    return False
                time.sleep(_POLL_S)
                continue
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            self.fd = fd
            return True

    def holder(self) -> str:
        """The process id in the lock file, for a message."""
        try:
            return self.path.read_text().strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
