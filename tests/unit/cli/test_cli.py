"""Laws of the command line: its list is whole, its errors are sentences, its answers are for programs too."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.cli import COMMANDS, Entry, explain, main
from app.errors import BrokerUnavailable, ConfigError, EnvironmentError_


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    file = tmp_path / "h.yaml"
    file.write_text("producer:\n  batch_size: many\n  bach_size: 1\n", encoding="utf-8")
    return file


def test_help_names_every_command_and_the_exit_codes(capsys) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert "Exit codes" in out
        for entry in COMMANDS:
            assert f"  {entry.name} " in out


def test_every_listed_command_has_its_module() -> None:
    missing = [entry.module for entry in COMMANDS if importlib.util.find_spec(entry.module) is None]
    assert missing == []


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_explains_itself(capsys, entry: Entry) -> None:
    code, out, _ = run(capsys, entry.name, "--help")
    assert code == 0
    assert f"Usage: headrace {entry.name}" in out


def test_help_loads_no_command() -> None:
    program = (
        "import sys; from app.cli import main; sys.argv = ['headrace', '--help']\n"
        "try: main()\nfinally: print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for name in ("pydantic", "aiokafka", "fastapi", "rich"):
        assert f"'{name}'" not in done.stdout


def test_an_unknown_command_is_answered_with_the_nearest(capsys) -> None:
    code, _, err = run(capsys, "confg")
    assert code == 2
    assert "Did you mean 'config'" in err


def test_wrong_settings_are_told_at_once_without_a_traceback(capsys, broken: Path) -> None:
    code, out, err = run(capsys, "config", "check", "--config", str(broken))
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "headrace: the settings have 2 problems:",
        f"{broken}:2: producer.batch_size: expected a whole number of records, not 'many'",
        f"{broken}:3: producer.bach_size: unknown key; did you mean 'batch_size'?",
    ]


def test_check_answers_programs_with_json_and_the_same_exit_code(capsys, broken: Path) -> None:
    code, out, err = run(capsys, "config", "check", "--config", str(broken), "--json")
    answer = json.loads(out)
    assert (code, err, answer["valid"], len(answer["problems"])) == (2, "", False, 2)
    code, out, _ = run(capsys, "config", "check", "--json")
    assert (code, json.loads(out)["valid"]) == (0, True)


def test_show_tells_value_unit_and_origin(capsys, tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("producer:\n  batch_size: 5\nkafka: {sasl_password: hunter2}\n", encoding="utf-8")
    code, out, _ = run(capsys, "config", "show", "producer.batch_size", "-c", str(file))
    assert (code, out.split()) == (0, ["producer.batch_size", "5", "records", f"{file}:2"])
    code, out, _ = run(capsys, "config", "show", "-c", str(file), "--set", "device.count=3", "--json")
    answer = json.loads(out)
    assert answer["settings"]["kafka"]["sasl_password"] == "[REDACTED]"
    assert answer["origins"]["device.count"] == "--set device.count"
    assert answer["origins"]["tables.directory"] == "default"
    assert len(answer["hash"]) == 64
    code, out, _ = run(capsys, "config", "show", "-c", str(file))
    assert code == 0
    assert "hunter2" not in out
    code, _, err = run(capsys, "config", "show", "producr")
    assert (code, err) == (2, "headrace: producr: there is no such section or key; did you mean 'producer'?\n")


def test_the_reference_is_a_file_to_start_from(capsys, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "config", "reference")
    file = tmp_path / "h.yaml"
    file.write_text(out, encoding="utf-8")
    assert code == 0
    assert run(capsys, "config", "check", "-c", str(file))[0] == 0


def test_an_error_of_ours_is_one_sentence_with_its_exit_code(capsys, tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    told = f"headrace: {absent}: there is no such file\n"
    assert run(capsys, "config", "show", "-c", str(absent)) == (2, "", told)
    assert explain(EnvironmentError_("Port 8080 is taken.")) == "headrace: Port 8080 is taken."
    assert explain(BrokerUnavailable()) == "headrace: No Kafka broker answers."
    assert explain(ConfigError(["only one"])) == "headrace: only one"


def test_the_version_is_the_package_version(capsys) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "headrace")


def test_an_argument_that_is_no_text_is_named(capsys) -> None:
    code, out, err = run(capsys, "trigger", "hot", "-i", "x=\udcff")
    assert (code, out) == (2, "")
    assert err == "headrace: Argument 4 is not UTF-8 text: x=\\udcff\n"


@pytest.mark.parametrize("command", [["--version"], ["config", "reference"]], ids=["less", "more"])
def test_a_reader_that_has_left_is_no_traceback(command: list[str]) -> None:
    """`headrace executions list | head`: what is printed is less than a buffer, or more."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as left:
        ended = started(*command, stdout=left)
    assert ended.stderr == ""


def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = started("--version", stdout=full)
    told = f"headrace: what was to be printed could not be written: {os.strerror(errno.ENOSPC)}\n"
    assert (ended.returncode, ended.stderr) == (1, told)


def test_a_bug_keeps_its_traceback_on_a_full_disk() -> None:
    program = (
        "import app.cli\n"
        "def broken(_): print('some of it'); raise ZeroDivisionError\n"
        "app.cli._check_text = broken\n"
        "app.cli.main()"
    )
    with Path("/dev/full").open("wb") as full:
        ended = started(stdout=full, python=("-c", program))
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_an_output_that_was_closed_before_the_start_is_no_traceback(tmp_path: Path) -> None:
    assert closed("--version") == (0, "")
    absent = tmp_path / "absent.yaml"
    assert closed("config", "show", "-c", str(absent)) == (2, f"headrace: {absent}: there is no such file\n")


def started(*command: str, python: Sequence[str] = ("-m", "app"), **more: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, whose output waits in a buffer."""
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    called = [sys.executable, *python, *command]
    return subprocess.run(called, env=buffered, stderr=subprocess.PIPE, text=True, check=False, **more)


def closed(*command: str) -> tuple[int, str]:
    """Exit code and errors of the command without any standard output."""
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "app", *command]
    ended = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    return ended.returncode, ended.stderr
