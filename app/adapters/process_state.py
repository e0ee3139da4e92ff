"""Whether a process of this machine runs, is stopped or is gone, as its kernel says."""

from pathlib import Path
from typing import Final, Literal

import psutil

Posture = Literal["running", "stopped", "gone"]

_HAS_PROC: Final = Path("/proc/self/stat").exists()


def posture_of(pid: int) -> Posture:
    """Ask the kernel; psutil asks it in its own way where there is no /proc. One that waits to be reaped is gone."""
    if not _HAS_PROC:
        return _asked(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    state = stat.rpartition(")")[2].split(maxsplit=1)[0]
    if state in "Tt":
        return "stopped"
    return "gone" if state in "ZX" else "running"


def _asked(pid: int) -> Posture:
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.Error:
        return "running"
    if status in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}:
        return "stopped"
    return "gone" if status in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD} else "running"
