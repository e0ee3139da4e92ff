"""Finds free ports on loopback and names who holds a taken one."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack

import psutil

from app.adapters.embedded.kraft import HOST
from app.errors import EnvironmentError_


def choose_ports(wanted: Sequence[tuple[int, str]]) -> list[int]:
    """A port for each (port, setting); 0 takes a free one. Raises `EnvironmentError_` for a taken port."""
    chosen = []
    with ExitStack() as held:  # all at once, so that no free one is chosen twice
        for port, setting in wanted:
            listener = held.enter_context(socket.socket())
            # As Java binds: connections of a broker that stopped a moment ago do not count.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
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
