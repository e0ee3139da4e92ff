"""The jars of Apache Kafka: fetched once into the user's cache, verified against our lock at every start."""

import contextlib
import hashlib
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import requests
from jgo.maven import MavenContext, PythonResolver
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from app.adapters.embedded.cache import FolderLock, disk_errors
from app.errors import EnvironmentError_

_PARALLEL_DOWNLOADS = 8
_PARALLEL_DIGESTS = 4
_ATTEMPTS = 3
_CONNECT_TIMEOUT_S = 30
# Another process may be fetching over a slow line; after this long it is taken as stuck.
_LOCK_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Jar:
    """One locked artifact."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True, slots=True)
class JarLock:
    """The version of Kafka and all its jars in class path order."""

    version: str
    jars: tuple[Jar, ...]

    @property
    def size_bytes(self) -> int:
        return sum(jar.size_bytes for jar in self.jars)


Fetch = Callable[[Jar, Path, Callable[[int], None]], Path]


def read_lock() -> JarLock:
    """The lock that is committed beside this module."""
    text = resources.files(__package__).joinpath("kafka.lock.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    return JarLock(document["version"], tuple(Jar(**jar) for jar in document["jar"]))


def is_intact(jar: Jar, folder: Path) -> bool:
    """Whether the file is there, whole and the one we locked."""
    path = folder / jar.file_name
    try:
        if path.stat().st_size != jar.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def missing(lock: JarLock, folder: Path) -> list[Jar]:
    """The jars that are absent or damaged."""
    with ThreadPoolExecutor(_PARALLEL_DIGESTS) as pool:
        intact = list(pool.map(lambda jar: is_intact(jar, folder), lock.jars))
    return [jar for jar, good in zip(lock.jars, intact, strict=True) if not good]


def fetch_with_jgo(jar: Jar, into: Path, advance: Callable[[int], None]) -> Path:
    """Download one artifact from the resolver's own default repository."""

    @contextlib.contextmanager
    def count(_name: str, _total: int) -> Iterator[Callable[[int], None]]:
        yield advance

    context = MavenContext(
        resolver=PythonResolver(progress_callback=count), repo_cache=into, timeout=_CONNECT_TIMEOUT_S
    )
    path: Path = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    return path


def ensure_jars(cache: Path, *, lock: JarLock | None = None, fetch: Fetch = fetch_with_jgo) -> list[Path]:
    """Return the class path, after fetching what is missing or damaged.

    Only one process fetches at a time; each file appears whole or not at all. Raises
    `EnvironmentError_` when there is no network, no room, or a file keeps being wrong.
    """
    lock = lock or read_lock()
    folder = cache / f"kafka-{lock.version}"
    class_path = [folder / jar.file_name for jar in lock.jars]
    with disk_errors(f"Apache Kafka ({_mb(lock.size_bytes)})", folder):
        if not missing(lock, folder):
            return class_path
        guard = FolderLock(folder)
        if not guard.acquire(_LOCK_TIMEOUT_S):
            raise EnvironmentError_(f"Process {guard.holder()} is still filling {folder}; end it and start again.")
        try:
            wanted = missing(lock, folder)  # the other process may have fetched them while we waited
            if wanted:
                _fetch_all(lock.version, wanted, folder, fetch)
        finally:
            guard.release()
    return class_path


def _fetch_all(version: str, wanted: Sequence[Jar], folder: Path, fetch: Fetch) -> None:
    for left_over in folder.glob(".fetch-*"):  # of a run that was killed; we hold the lock
        shutil.rmtree(left_over)
    with (
        tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary,
        _progress(version, wanted) as advance,
        ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool,
    ):
        jobs = [
            pool.submit(_fetch_one, jar, folder, Path(temporary, str(number)), fetch, advance)
            for number, jar in enumerate(wanted)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for archive in folder.glob("classes-*.jsa"):
        # The JVM takes an archive only with the very files it was made of; a stale one would never be made anew.
        archive.unlink(missing_ok=True)


def _fetch_one(jar: Jar, folder: Path, temporary: Path, fetch: Fetch, advance: Callable[[int, int], None]) -> None:
    damage = ""
    for attempt in range(1, _ATTEMPTS + 1):
        into = temporary / str(attempt)
        into.mkdir(parents=True)
        received: list[int] = []
        try:
            path = fetch(jar, into, partial(_note, received, advance))
        except (requests.RequestException, RuntimeError) as error:
            damage = _cause(error)
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest == jar.sha256:
                path.replace(folder / jar.file_name)
                advance(0, 1)
                return
            damage = f"its SHA-256 is {digest[:12]}…, not the {jar.sha256[:12]}… that was locked"
        advance(-sum(received), 0)
    raise EnvironmentError_(
        f"{jar.file_name} of Apache Kafka could not be fetched: {damage}. The first run needs the network; "
        "connect it, or set KAFKA_BOOTSTRAP_SERVERS to a Kafka that already runs.",
        jar=jar.file_name,
    )


def _note(received: list[int], advance: Callable[[int, int], None], count: int) -> None:
    received.append(count)
    advance(count, 0)


def _cause(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "the repository does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "the certificate of the repository is not trusted (REQUESTS_CA_BUNDLE names the file of those that are)"
    if isinstance(error, requests.ConnectionError):
        return "the repository cannot be reached"
    return "the repository does not give it out"


@contextlib.contextmanager
def _progress(version: str, wanted: Sequence[Jar]) -> Iterator[Callable[[int, int], None]]:
    """Show bytes and files: a bar on a terminal, two lines elsewhere. Yields advance(bytes, files)."""
    console = Console(stderr=True)
    total_bytes = sum(jar.size_bytes for jar in wanted)
    title = f"Fetching Apache Kafka {version}"
    if not console.is_terminal:
        files = "1 file" if len(wanted) == 1 else f"{len(wanted)} files"
        console.print(f"{title}: {files}, {_mb(total_bytes)}", highlight=False)
        yield lambda _bytes, _files: None
        console.print(f"{title}: done", highlight=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TextColumn("{task.fields[files]}"), console=console) as progress:
        task = progress.add_task(title, total=total_bytes, files="")
        done = 0

        def advance(count_bytes: int, files: int) -> None:
            nonlocal done
            done += files
            progress.update(task, advance=count_bytes, files=f"{done}/{len(wanted)} files")

        yield advance


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
