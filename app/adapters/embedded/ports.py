"""Finds free ports on loopback and names who holds a taken one."""

import random
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import psutil

from app.adapters.embedded.kraft import HOST
from app.errors import EnvironmentError_

# Below the range that Linux gives to outgoing connections (32768 and up). In it, whoever tries to reach a broker that
# is down may be given its very port to call from, and hold it when the broker starts again.
FREE: Final = range(20_000, 32_000)
TRIES: Final = 200


def choose_ports(wanted: Sequence[tuple[int, str]]) -> list[int]:
    """A port for each (port, setting); 0 takes a free one. Raises `EnvironmentError_` for a taken port."""
    chosen = []
    with ExitStack() as held:  # all at once, so that no free one is chosen twice
        for port, setting in wanted:
            listener = held.enter_context(socket.socket())
            # As Java binds: connections of a broker that stopped a moment ago do not count.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                if port == 0:
                    _bind_free(listener)
                else:
                    listener.bind((HOST, port))
                listener.listen(1)
            except PermissionError as error:
                raise EnvironmentError_(f"Port {port} is reserved; set {setting} to one above 1023.") from error
            except OSError as error:
                raise EnvironmentError_(
                    f"Port {port} is taken{_by_whom(port)}; stop that program or set {setting} to another port "
                    f"({_variable(setting)}).",
                    port=port,
                ) from error
            chosen.append(listener.getsockname()[1])
    return chosen


def _bind_free(listener: socket.socket) -> None:
    """To a port of `FREE` by chance, since others choose at the same time; to any where that finds none."""
    for _ in range(TRIES):
        try:
            listener.bind((HOST, random.choice(FREE)))  # noqa: S311 - nobody is to be surprised
        except OSError:
            continue
        return
    listener.bind((HOST, 0))


def _variable(setting: str) -> str:
    return "HEADRACE_" + setting.upper().replace(".", "__")


def _by_whom(port: int) -> str:
    """` by java (process 123)`, where the system tells."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN and one.pid:
                return f" by {psutil.Process(one.pid).name()} (process {one.pid})"
    except psutil.Error:
        return ""  # the systems that ask for privileges here
    return ""
