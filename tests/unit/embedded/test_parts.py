"""Laws of the embedded Kafka's parts that need no JVM: ports, folders, locks, ties."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.adapters.embedded import kraft
from app.adapters.embedded.archive import SharedArchive
from app.adapters.embedded.cache import FolderLock, cache_folder
from app.adapters.embedded.java import Java
from app.adapters.embedded.kraft import NodePlan
from app.adapters.embedded.ports import FREE, choose_ports
from app.errors import EnvironmentError_
from config.embedded import EmbeddedSettings

TIED = Path(kraft.__file__).with_name("tied.py")
PATIENCE_S = 20


@contextlib.contextmanager
def a_listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_free_ports_differ() -> None:
    assert len(set(choose_ports([(0, "embedded.port")] * 6))) == 6


def test_taken_port_is_named_with_the_setting_that_changes_it() -> None:
    with a_listener() as port, pytest.raises(EnvironmentError_) as caught:
        choose_ports([(port, "embedded.port")])
    assert f"Port {port} is taken" in str(caught.value)
    assert "HEADRACE_EMBEDDED__PORT" in str(caught.value)


def test_every_listener_is_on_loopback(tmp_path: Path) -> None:
    plan = NodePlan(1, 5001, 5002, tmp_path)
    properties = kraft.broker_properties(plan, [plan], EmbeddedSettings(), {})
    for name in ("listeners", "advertised.listeners", "controller.quorum.voters"):
        assert all("127.0.0.1:" in one for one in properties[name].split(","))


def test_three_nodes_keep_three_copies_and_need_two(tmp_path: Path) -> None:
    plans = [NodePlan(number, 5000 + number, 6000 + number, tmp_path) for number in (1, 2, 3)]
    properties = kraft.broker_properties(plans[0], plans, EmbeddedSettings(), {})
    assert (properties["default.replication.factor"], properties["min.insync.replicas"]) == ("3", "2")


def test_overrides_come_last(tmp_path: Path) -> None:
    plan = NodePlan(1, 5001, 5002, tmp_path)
    assert kraft.broker_properties(plan, [plan], EmbeddedSettings(), {"node.id": "7"})["node.id"] == "7"


def test_folder_formatted_from_a_kept_checkpoint_belongs_to_its_cluster(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.checkpoint").write_bytes(b"features")
    plan = NodePlan(1, 5001, 5002, tmp_path / "node-1")
    kraft.write_configuration(plan, {})
    assert kraft.cluster_id_of(plan) is None
    kraft.format_folder(plan, "cluster", ["false"], tmp_path)
    assert kraft.cluster_id_of(plan) == "cluster"
    assert (plan.data / "bootstrap.checkpoint").read_bytes() == b"features"


def test_kafka_uuids_are_22_characters_without_a_leading_dash() -> None:
    made = {kraft.new_kafka_uuid() for _ in range(200)}
    assert len(made) == 200
    assert all(len(one) == 22 and one[0] != "-" for one in made)


def test_lock_file_of_a_dead_process_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "in-use.lock").write_text("999999\n")
    lock = FolderLock(tmp_path)
    assert lock.acquire(0)
    assert lock.holder() == str(os.getpid())
    lock.release()


def test_lock_is_held_until_released(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.acquire(0)
    assert not second.acquire(0)
    first.release()
    assert second.acquire(0)
    second.release()


def test_cache_follows_the_setting_then_xdg_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(None) == tmp_path / ".cache" / "headrace"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(None) == tmp_path / "xdg" / "headrace"
    assert cache_folder(str(tmp_path / "set")) == tmp_path / "set"


def test_class_archive_is_made_once_and_kept_only_whole(tmp_path: Path) -> None:
    java = Java(Path(sys.executable), 17, "banner")
    half = tmp_path / f"{SharedArchive(tmp_path, java, []).path.name}.999999"
    half.write_bytes(b"of a process that died")
    archive = SharedArchive(tmp_path, java, [])
    (making,) = [flag for flag in archive.flags() if "ArchiveClassesAtExit" in flag]
    assert not half.exists()
    Path(making.partition("=")[2]).write_bytes(b"whole")
    archive.keep()
    assert archive.path.read_bytes() == b"whole"
    assert f"-XX:SharedArchiveFile={archive.path}" in archive.flags()
    assert archive.discard()
    assert not archive.discard()


def test_other_java_has_another_class_archive(tmp_path: Path) -> None:
    one, other = (SharedArchive(tmp_path, Java(Path("java"), 17, banner), []) for banner in ("17.0.1", "17.0.2"))
    assert one.path != other.path


def test_program_tied_by_a_pipe_ends_when_the_pipe_closes() -> None:
    command = [sys.executable, "-I", "-S", str(TIED), "pipe", str(os.getpid()), "/bin/sleep", "600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as tied:
        assert tied.stdin is not None
        tied.stdin.close()
        assert tied.wait(PATIENCE_S) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_program_tied_by_signal_ends_with_its_starter() -> None:
    code = (
        "import os, subprocess, sys\n"
        f"tied = subprocess.Popen([sys.executable, '-I', '-S', {str(TIED)!r}, 'signal', str(os.getpid()),"
        " '/bin/sleep', '600'], start_new_session=True)\n"
        "print(tied.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        tied = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
        starter.wait()
    psutil.wait_procs([tied], timeout=PATIENCE_S)
    assert not tied.is_running() or tied.status() == psutil.STATUS_ZOMBIE


def test_a_free_port_is_none_that_the_kernel_gives_to_outgoing_connections() -> None:
    assert all(port in FREE for port in choose_ports([(0, "embedded.port")] * 20))
