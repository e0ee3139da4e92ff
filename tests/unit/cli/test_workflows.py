"""Laws of `headrace workflows validate`, which needs no running system."""

import io
import json
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import refused, said

GOOD = "id: good\ntasks: {a: {type: wait, with: {seconds: 1}}}\n"
BAD = "id: bad\ntasks:\n  a: {type: wait, with: {second: 1}}\n  b: {typ: wait}\n"
DOUBTFUL = 'id: doubtful\ntasks: {a: {type: sink.http, with: {url: "https://me:pw@x"}}}\n'


def test_every_problem_of_every_file_is_printed_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"good.yaml": GOOD, "bad.yml": BAD, "doubtful.yaml": DOUBTFUL, "notes.txt": "x"}.items():
        Path(name).write_text(text)
    answer = said(capsys, "workflows", "validate", ".")
    assert answer.code == 2
    assert answer.out.splitlines()[:4] == [
        "bad.yml:3:19 tasks.a.with: a wait has either seconds or until",
        "bad.yml:3:26 tasks.a.with.second: unknown field; did you mean seconds?",
        "bad.yml:4:3 tasks.b.type: is required",
        "bad.yml:4:7 tasks.b.typ: unknown field; did you mean type?",
    ]
    assert "doubtful.yaml:2:37 warning: tasks.a.with.url: has a password in clear" in answer.out
    assert "good.yaml: good is valid, version " in answer.out
    assert answer.err == "headrace: 1 of 3 files are not valid.\n"


def test_valid_files_end_well_and_programs_get_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "good.json"
    file.write_text(json.dumps({"id": "good", "tasks": {"a": {"type": "wait", "with": {"seconds": 1}}}}))
    answer = said(capsys, "workflows", "validate", str(file), "--json")
    assert answer.code == 0
    [item] = answer.json["items"]
    assert (item["file"], item["id"], item["problems"], len(item["version"])) == (str(file), "good", [], 12)


def test_a_definition_can_come_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BAD.encode())))
    answer = said(capsys, "workflows", "validate", "-")
    assert answer.out.startswith("standard input:3:")
    assert answer.err == "headrace: standard input is not valid.\n"


def test_what_is_not_there_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such file" in refused(capsys, "workflows", "validate", str(tmp_path / "absent.yaml"))
    assert "files in this folder" in refused(capsys, "workflows", "validate", str(tmp_path))
    nobody = ("--url", "http://127.0.0.1:9")
    assert "No Headrace answers" in refused(capsys, "workflows", "list", *nobody, code=4)
