"""A PostgreSQL of the bench's own, durable as it is installed, on a free port in a temporary folder."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from app.bench.environments import PeerMissing

START_TIMEOUT_S = 60.0
SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "on", "synchronous_commit": "on"}


def programs() -> tuple[str, str]:
    """`initdb` and `postgres` of the newest version here. Raises `PeerMissing`."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    where = os.pathsep.join([*map(str, versions), os.environ.get("PATH", "")])
    initdb, server = shutil.which("initdb", path=where), shutil.which("postgres", path=where)
    if initdb is None or server is None:
        raise PeerMissing("it needs a PostgreSQL, and none is installed")
    return initdb, server


@contextmanager
def private_postgres() -> Iterator[str]:
    """The address of a running server that is gone after the block. Raises `PeerMissing`."""
    initdb, server = programs()
    identity = _identity()
    folder = Path(mkdtemp(prefix="headrace-bench-pg-"))
    try:
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        data = str(folder / "data")
        made = subprocess.run(
            [initdb, "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8", "-N"],
            capture_output=True,
            text=True,
            check=False,
            **identity,
        )
        if made.returncode:
            raise PeerMissing(f"initdb failed: {(made.stderr.strip() or 'no output').splitlines()[-1]}")
        port = _free_port()
        flags = [word for name, value in {**SETTINGS, "port": port}.items() for word in ("-c", f"{name}={value}")]
        process = subprocess.Popen(
            [server, "-D", data, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity
        )
        try:
            _await_ready(process, port)
            yield f"postgresql://bench@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(2)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _identity() -> dict[str, Any]:
    """PostgreSQL refuses root: then it runs as its own user, else as ourselves."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    """Return when it answers an SSL request with its one byte."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(1)
            connection.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
            if connection.recv(1):
                return
        # The wait for the end of the process is also the pause between two looks.
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise PeerMissing("PostgreSQL did not start")
