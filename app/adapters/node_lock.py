"""One node at a time in a data folder: the locks by which a second one is refused before it touches anything."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from app.adapters.embedded.cache import FolderLock, disk_errors
from app.errors import EnvironmentError_

# Those that keep tables there; nodes of other roles may share a folder.
ROLES_WITH_TABLES: Final = ("coordinator", "worker")
# A predecessor that was killed a moment ago may still be about to go.
_PREDECESSOR_S: Final = 3.0


@contextlib.contextmanager
def data_folder(directory: str, roles: Sequence[str], wait_s: float = _PREDECESSOR_S) -> Iterator[None]:
    """Hold `tables.directory` for the roles of a node; the kernel lets go of it with the process, however it ends.

    Raises `EnvironmentError_` when another process of this machine has it for one of them.
    """
    folder = Path(directory).expanduser().absolute()
    with contextlib.ExitStack() as held:
        for role in sorted({*roles} & {*ROLES_WITH_TABLES}):
            lock = FolderLock(folder / ".nodes" / role)
            with disk_errors("the tables", folder):
                is_ours = lock.acquire(wait_s)
            if not is_ours:
                raise EnvironmentError_(
                    f"The data folder {folder} is in use by another node with the role {role} (process"
                    f" {lock.holder()}); stop it, or give this one a tables.directory of its own."
                )
            held.callback(lock.release)
        yield
