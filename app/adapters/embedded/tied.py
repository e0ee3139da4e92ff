"""Runs a program that dies with the process that started it: `python tied.py signal|pipe PARENT_PID PROGRAM ARGS…`.

`signal` asks the kernel for SIGKILL on the parent's death (Linux); `pipe` leaves a watcher behind that
kills when the pipe on standard input closes (anywhere else). Both end by becoming the program itself,
so that its process id is the one the parent knows.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def _by_signal(parent_pid: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the request was in force
        sys.exit(1)


def _by_pipe() -> None:
    program_pid = os.getpid()
    if os.fork():
        return
    while os.read(0, 1):
        pass
    if os.getppid() == program_pid:  # otherwise it has already ended and its number may be another's
        os.kill(program_pid, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "signal":
        _by_signal(int(sys.argv[2]))
    else:
        _by_pipe()
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - becoming the program is the purpose
