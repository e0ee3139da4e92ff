"""Real PostgreSQL and MariaDB servers from Debian packages, each on a private free port in a temporary folder."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

START_DEADLINE_S = 60.0
PASSWORD = "s3cret-of-the-test"


class DatabaseAbsent(Exception):
    """The server's program is not installed."""


@dataclass
class DatabaseServer:
    """One server; `start` and `stop` may alternate, the data stay."""

    name: str
    url: str
    command: list[str]
    port: int
    user: str
    log: Path
    stop_signal: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start the server and return when it takes connections."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, **_as(self.user))
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._ready():
            # The wait for the end of the process is also the pause between two looks.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self, *, kill: bool = False) -> None:
        """End the process by its id: in order, or at once as a crash would."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(9 if kill else self.stop_signal)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def _ready(self) -> bool:
        """True when the server lets one in: MariaDB speaks first, PostgreSQL asks for a password (R) once it is up."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.settimeout(1)
                if self.name == "postgresql":
                    # A start-up message of protocol 3.0; while it starts up, the answer is an error (E).
                    told = b"\x00\x03\x00\x00user\x00headrace\x00\x00"
                    connection.sendall((len(told) + 4).to_bytes(4, "big") + told)
                    return connection.recv(1) == b"R"
                return connection.recv(1) != b""
        except OSError:
            return False


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str, *folders: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin"]))
    if found is None:
        raise DatabaseAbsent(f"{name} is not installed (Debian: postgresql, mariadb-server)")
    return found


def _owner(preferred: str) -> str:
    """Return the user the server runs as: ourselves, unless we are root, which the servers refuse."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        return pwd.getpwnam(preferred).pw_name
    except KeyError:
        return "nobody"


def _as(user: str) -> dict[str, Any]:
    """Return the arguments of Popen that start a program as `user`."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


def _run(command: list[str], user: str) -> None:
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, **_as(user))
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr.decode(errors='replace')[-3000:]}")


@contextmanager
def _folder(user: str) -> Iterator[Path]:
    """Yield a temporary folder that belongs to `user`; a pytest folder is closed to other users."""
    folder = Path(mkdtemp(prefix="headrace-db-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgresql() -> Iterator[DatabaseServer]:
    """Yield a running PostgreSQL. Raises `DatabaseAbsent`."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    folders = [str(path) for path in versions]
    initdb, server = _program("initdb", *folders), _program("postgres", *folders)
    user = _owner("postgres")
    with _folder(user) as folder:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        where = str(folder / "data")
        _run(
            [initdb, "-D", where, "-U", "headrace", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "-N"],
            user,
        )
        port = free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "on"}
        command = [server, "-D", where, *(part for k, v in settings.items() for part in ("-c", f"{k}={v}"))]
        url = f"postgresql://headrace:{PASSWORD}@127.0.0.1:{port}/postgres"
        yield from _served(DatabaseServer("postgresql", url, command, port, user, folder / "log", stop_signal=2))


@contextmanager
def mariadb() -> Iterator[DatabaseServer]:
    """Yield a running MariaDB (or MySQL with MariaDB's names). Raises `DatabaseAbsent`."""
    server, install = _program("mariadbd"), _program("mariadb-install-db")
    user = _owner("mysql")
    with _folder(user) as folder:
        where = str(folder / "data")
        _run(
            [install, "--no-defaults", f"--datadir={where}", "--auth-root-authentication-method=normal",
             "--skip-test-db"],
            user,
        )  # fmt: skip
        init = folder / "init.sql"
        init.write_text(
            "CREATE DATABASE IF NOT EXISTS headrace CHARACTER SET utf8mb4;\n"
            f"CREATE USER IF NOT EXISTS 'headrace'@'%' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON headrace.* TO 'headrace'@'%';\n"
        )
        init.chmod(0o644)
        port = free_port()
        command = [
            server, "--no-defaults", f"--datadir={where}", "--bind-address=127.0.0.1", f"--port={port}",
            f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}", f"--init-file={init}",
            # Lenient, as many servers are: strictness must come from our own session.
            "--skip-name-resolve", "--innodb-buffer-pool-size=64M", "--sql-mode=NO_ENGINE_SUBSTITUTION",
        ]  # fmt: skip
        url = f"mysql://headrace:{PASSWORD}@127.0.0.1:{port}/headrace"
        yield from _served(DatabaseServer("mariadb", url, command, port, user, folder / "log", stop_signal=15))


def _served(server: DatabaseServer) -> Iterator[DatabaseServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[DatabaseServer]:
    """Give the session's PostgreSQL; the tests that need it are skipped where it is not installed."""
    try:
        context = postgresql()
        server = context.__enter__()
    except DatabaseAbsent as error:
        pytest.skip(str(error))
    yield server
    context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[DatabaseServer]:
    """Give the session's MariaDB; the tests that need it are skipped where it is not installed."""
    try:
        context = mariadb()
        server = context.__enter__()
    except DatabaseAbsent as error:
        pytest.skip(str(error))
    yield server
    context.__exit__(None, None, None)
