"""Laws of the jar cache: verified at every start, filled whole or not at all, by one process at a time."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from app.adapters.embedded import jars
from app.adapters.embedded.jars import Jar, JarLock
from app.errors import EnvironmentError_


def content(jar_name: str) -> bytes:
    return jar_name.encode() * 1000


def a_jar(name: str) -> Jar:
    return Jar("org.example", name, "1.0", len(content(name)), hashlib.sha256(content(name)).hexdigest())


LOCK = JarLock("9.9", tuple(a_jar(name) for name in ("first", "second", "third")))


class Repository:
    """Gives out the right bytes, after as many failures as it is told, and counts what was asked."""

    def __init__(self, *failures: Exception | bytes) -> None:
        self.asked: list[str] = []
        self._failures = list(failures)
        self._guard = threading.Lock()

    def __call__(self, jar: Jar, into: Path, advance: Callable[[int], None]) -> Path:
        with self._guard:
            self.asked.append(jar.artifact)
            failure = self._failures.pop(0) if self._failures else content(jar.artifact)
        if isinstance(failure, Exception):
            raise failure
        path = into / "download.jar"
        path.write_bytes(failure)
        advance(len(failure))
        return path


def ensure(cache: Path, repository: Repository) -> list[Path]:
    return jars.ensure_jars(cache, lock=LOCK, fetch=repository)


def test_empty_cache_is_filled_in_class_path_order(tmp_path: Path) -> None:
    paths = ensure(tmp_path, Repository())
    assert [path.name for path in paths] == ["first-1.0.jar", "second-1.0.jar", "third-1.0.jar"]
    assert [path.read_bytes() for path in paths] == [content(name) for name in ("first", "second", "third")]


def test_intact_cache_asks_for_nothing(tmp_path: Path) -> None:
    ensure(tmp_path, Repository())
    again = Repository()
    ensure(tmp_path, again)
    assert again.asked == []


@pytest.mark.parametrize("damage", [b"", b"x" * len(content("second"))], ids=["cut short", "other bytes"])
def test_damaged_jar_alone_is_fetched_again(tmp_path: Path, damage: bytes) -> None:
    paths = ensure(tmp_path, Repository())
    paths[1].write_bytes(damage)
    again = Repository()
    ensure(tmp_path, again)
    assert again.asked == ["second"]
    assert paths[1].read_bytes() == content("second")


def test_a_jar_that_is_fetched_again_takes_the_class_archive_with_it(tmp_path: Path) -> None:
    paths = ensure(tmp_path, Repository())
    archive = paths[0].with_name("classes-java17-0123456789ab.jsa")
    archive.write_bytes(b"made of the jars as they were")
    ensure(tmp_path, Repository())
    assert archive.exists()
    paths[1].write_bytes(b"damaged")
    ensure(tmp_path, Repository())
    assert not archive.exists()


def test_wrong_download_is_repeated(tmp_path: Path) -> None:
    repository = Repository(b"a proxy's login page", requests.ConnectionError("reset"))
    ensure(tmp_path, repository)
    assert len(repository.asked) == len(LOCK.jars) + 2


def test_jar_that_stays_wrong_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    lock = JarLock("9.9", LOCK.jars[:1])
    with pytest.raises(EnvironmentError_, match=r"first-1\.0\.jar .* its SHA-256 is .*locked") as caught:
        jars.ensure_jars(tmp_path, lock=lock, fetch=Repository(b"1", b"2", b"3"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "kafka-9.9").iterdir()] == ["in-use.lock"]


def test_no_network_is_one_sentence(tmp_path: Path) -> None:
    down = [requests.ConnectionError("no route")] * 9
    with pytest.raises(EnvironmentError_, match=r"cannot be reached\. The first run needs the network"):
        ensure(tmp_path, Repository(*down))


def test_a_certificate_that_is_not_trusted_is_named_as_the_cause(tmp_path: Path) -> None:
    refused = [requests.exceptions.SSLError("self-signed certificate") for _ in range(20)]
    with pytest.raises(EnvironmentError_, match="certificate of the repository is not trusted"):
        ensure(tmp_path, Repository(*refused))


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EnvironmentError_, match="cannot be a folder for Apache Kafka"):
        ensure(tmp_path / "cache", Repository())


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError_, match=r"The disk of .* is full: Apache Kafka"):
        ensure(tmp_path, Repository(OSError(28, "No space left on device")))


def test_left_overs_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    left_over = tmp_path / "kafka-9.9" / ".fetch-killed"
    left_over.mkdir(parents=True)
    ensure(tmp_path, Repository())
    assert not left_over.exists()


def test_two_first_runs_fetch_each_jar_once(tmp_path: Path) -> None:
    repository = Repository()
    threads = [threading.Thread(target=ensure, args=(tmp_path, repository)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(repository.asked) == ["first", "second", "third"]


def test_committed_lock_holds_the_broker_and_its_log() -> None:
    names = {jar.artifact for jar in jars.read_lock().jars}
    assert {"kafka_2.13", "kafka-clients", "log4j-core", "log4j-slf4j-impl"} <= names
