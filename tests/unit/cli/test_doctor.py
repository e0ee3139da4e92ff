"""Laws of the doctor: each lack is found, told with what to do, and decides the exit code."""

import asyncio
import json
import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from app import doctor
from app.adapters.broker_probe import Advertised, connection_problem
from app.adapters.embedded.jars import read_lock
from config.settings import Settings
from tests.helpers.cli import said


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    """A machine without anything: an empty cache, empty folders, free ports."""
    values: dict[str, Any] = {
        "http": {"port": 0},
        "health": {"port": 0},
        "metrics": {"port": 0},
        "embedded": {"port": 0, "cache_dir": str(folder / "cache"), "data_dir": str(folder / "kafka")},
        "tables": {"directory": str(folder / "tables")},
    }
    return Settings(**{name: values.get(name, {}) | sections.get(name, {}) for name in {**values, **sections}})


def found(of: Settings, subject: str) -> list[doctor.Finding]:
    return [each for each in doctor.examine(of, ()) if each.subject == subject]


def test_a_bare_machine_fails_nothing_and_says_what_will_be_fetched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    findings = list(doctor.examine(settings(tmp_path), ()))
    assert [each for each in findings if each.status == "fail"] == []
    warned = {each.subject: each for each in findings if each.status == "warn" and each.subject != "disk"}
    assert warned.keys() == {"Java", "Kafka jars"}
    assert all("fetches" in each.advice for each in warned.values())
    assert not (tmp_path / "cache").exists(), "nothing is fetched by looking"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_every_finding_that_is_not_well_says_what_to_do(tmp_path: Path) -> None:
    for each in doctor.examine(settings(tmp_path, kafka={"bootstrap_servers": "127.0.0.1:1"}), ("x.yaml:1: wrong",)):
        assert (each.status == "ok") == (not each.advice), each


def test_a_java_that_is_too_old_or_broken_is_named(tmp_path: Path) -> None:
    java = tmp_path / "old" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    (one,) = found(settings(tmp_path, embedded={"java_home": str(tmp_path / "old")}), "Java")
    assert (one.status, "is version 11" in one.detail) == ("fail", True)
    (one,) = found(settings(tmp_path, embedded={"java_home": str(tmp_path / "none")}), "Java")
    assert (one.status, "does not run" in one.detail) == ("fail", True)


def test_damaged_jars_are_told_from_missing_ones(tmp_path: Path) -> None:
    lock = read_lock()
    folder = tmp_path / "cache" / f"kafka-{lock.version}"
    folder.mkdir(parents=True)
    (folder / lock.jars[0].file_name).write_bytes(b"no jar")
    (one,) = found(settings(tmp_path), "Kafka jars")
    assert (one.status, lock.jars[0].file_name in one.detail) == ("warn", True)


def test_with_another_kafka_java_and_jars_are_not_needed(tmp_path: Path) -> None:
    findings = list(doctor.examine(settings(tmp_path, kafka={"bootstrap_servers": "127.0.0.1:1"}), ()))
    assert not {"Java", "Kafka jars"} & {each.subject for each in findings}
    (broker,) = [each for each in findings if each.subject == "broker"]
    assert broker.status == "fail"


def test_a_taken_port_is_told_with_its_holder_unless_it_is_ours(taken: int) -> None:
    one = doctor.port_finding("http.port", taken, lambda _port: False)
    assert (one.status, one.subject) == ("fail", f"port {taken}")
    assert "python" in one.detail or "pytest" in one.detail
    assert "set http.port" in one.advice
    assert doctor.port_finding("http.port", taken, lambda _port: True).status == "ok"


def test_a_running_headrace_is_known_by_its_answer(tmp_path: Path) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "ok", "checks": {}, "roles": []}).encode())

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = server.server_address[1]
        (one,) = found(settings(tmp_path, http={"port": port}), f"port {port}")
        assert one == doctor.Finding("ok", f"port {port}", "http.port: a running Headrace answers there")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_disk_without_room_and_a_folder_that_cannot_be_written_fail(tmp_path: Path) -> None:
    disks = found(settings(tmp_path, embedded={"min_free_mib": 1 << 30}), "disk")
    assert [each.status for each in disks].count("fail") == 1
    blocked = tmp_path / "file"
    blocked.write_text("")
    (one,) = found(settings(tmp_path, tables={"directory": str(blocked)}), "RocksDB")
    assert (one.status, "tables.directory" in one.advice) == ("fail", True)


def test_packages_are_held_against_what_is_required() -> None:
    assert doctor.package_problem("aiokafka", "==", "0.0.1") is not None
    assert doctor.package_problem("orjson", ">=", "999") is not None
    assert doctor.package_problem("orjson", ">=", "3.0") is None
    assert doctor.package_problem("no-such-package", ">=", "1") == "no-such-package is missing"


def test_what_a_broker_advertises_must_work_from_here(taken: int) -> None:
    well = doctor.advertised_finding(Advertised(1, "127.0.0.1", taken, None), "127.0.0.1:9092")
    assert well.status == "ok"
    away = doctor.advertised_finding(Advertised(1, "127.0.0.1", 1, "refused"), "kafka.example:9092")
    assert (away.status, "its own machine" in away.advice) == ("fail", True)
    assert asyncio.run(connection_problem("127.0.0.1", taken)) is None
    assert "cannot be connected to" in (asyncio.run(connection_problem("127.0.0.1", 1)) or "")
    assert "cannot be resolved" in (asyncio.run(connection_problem("no.such.host.invalid", 1)) or "")


def test_wrong_settings_are_a_finding_and_not_the_end(capsys, tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("device: {count: many}\n")
    answer = said(capsys, "doctor", "-c", str(file), "--json")
    assert answer.code == 1
    assert not answer.json["ok"]
    one = next(each for each in answer.json["findings"] if each["subject"] == "settings")
    assert (one["status"], f"{file}:1" in one["detail"]) == ("fail", True)
    assert {"Python", "packages", "RocksDB", "broker"} <= {each["subject"] for each in answer.json["findings"]}


def test_each_line_is_a_status_a_subject_and_what_to_do(capsys, tmp_path: Path) -> None:
    answer = said(capsys, "doctor", "--bootstrap", "127.0.0.1:1", f"--set=tables.directory={tmp_path}")
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert lines[0].startswith("ok   Python ")
    at = next(n for n, line in enumerate(lines) if line.startswith("fail broker"))
    assert lines[at + 1].strip().startswith("→ Start it")
    assert lines[-1].endswith("to look at.")
