"""source.file and sink.file: formats, limits, and a folder that no path leaves."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.task_calls import Tasks, tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


@pytest.fixture
async def run(folder: Path) -> AsyncIterator[Tasks]:
    async with tasks(folder) as types:
        yield types


ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "ü"}]


async def test_every_format_is_read(run: Tasks, folder: Path) -> None:
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "r.json").write_text(json.dumps(ROWS))
    (folder / "r.csv").write_text("\ufeffa,b\r\n1,x\r\n2,ü\r\n")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "r.parquet")
    for suffix in ("jsonl", "json", "parquet"):
        assert await run.run("source.file", path=f"r.{suffix}") == ROWS
    assert await run.run("source.file", path="./r.csv", numbers=True) == ROWS
    assert await run.run("source.file", path="r.csv", columns=["a"]) == [{"a": "1"}, {"a": "2"}]
    assert await run.run("source.file", path="r.parquet", columns=["b"]) == [{"b": "x"}, {"b": "ü"}]


async def test_only_what_is_a_number_becomes_one(run: Tasks, folder: Path) -> None:
    cells = ["1", "-2.5", "1e3", "007", "1_000", "nan", "", "x", "-", "1.2.3", "1e999", "0", "-0.5"]
    (folder / "n.csv").write_text("v,w\n" + "".join(f"{cell},\n" for cell in cells))
    rows = await run.run("source.file", path="n.csv", numbers=True)
    expected = [1, -2.5, 1000.0, "007", "1_000", "nan", None, "x", "-", "1.2.3", None, 0, -0.5]
    assert [row["v"] for row in rows] == expected


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "",
        "link",
        "linked/secret",
        "..",
        "a\0b",
        "x" * 2_000,
        "pipe",
        "inner",
    ],
)
async def test_no_path_leaves_the_folder(run: Tasks, folder: Path, path: str) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("[1]")
    (folder.parent / "secret").write_text("[1]")
    (folder / "link").symlink_to(outside / "secret")
    (folder / "linked").symlink_to(outside)
    (folder / "inner").mkdir()
    os.mkfifo(folder / "pipe")
    if path:
        failed = await run.failure("source.file", path=path, format="json")
        assert (failed.type, failed.retryable) == ("PathRefused", False), failed
        if path != "pipe":
            failed = await run.failure("sink.file", [{"a": 1}], path=path)
            assert failed.type == "PathRefused", failed
    assert sorted(one.name for one in outside.iterdir()) == ["secret"]
    assert (outside / "secret").read_text() == "[1]"


async def test_a_file_that_is_missing_or_broken_says_so(run: Tasks, folder: Path) -> None:
    for path in ("no/such.json", "such.json"):
        failed = await run.failure("source.file", path=path)
        assert (failed.type, failed.detail) == ("FileMissing", {"path": path.replace("/such.json", "")})
    assert (await run.failure("source.file", path="no-suffix")).type == "InvalidParams"
    broken = {
        "b.json": b"{", "b.jsonl": b'{"a": 1}\n{\n', "b.parquet": b"PAR1", "b.csv": b"a,b\n1\n",
        "c.csv": b'a,b\n"1,2\n',
        "d.csv": b"a,a\n1,2\n", "e.csv": b"a\n\xff\n", "empty.json": b"",
    }  # fmt: skip
    for name, content in broken.items():
        (folder / name).write_bytes(content)
        failed = await run.failure("source.file", path=name)
        assert (failed.type, failed.retryable) == ("InvalidFile", False), (name, failed)
    (folder / "f.csv").write_text("a,b\n")
    assert (await run.failure("source.file", path="f.csv", columns=["c"])).type == "UnknownColumn"


async def test_reading_is_bounded(folder: Path) -> None:
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 50))
    (folder / "r.json").write_text(json.dumps(ROWS * 50))
    (folder / "long.jsonl").write_bytes(b'"' + b"x" * 100_000)
    async with tasks(folder, source_bytes=10_000, source_rows=100) as run:
        for name in ("r.jsonl", "r.json"):
            assert (await run.failure("source.file", path=name, max_rows=99)).type == "TooManyRows"
            assert len(await run.run("source.file", path=name, max_rows=99, on_more="cut")) == 99
            assert len(await run.run("source.file", path=name)) == 100
        assert (await run.failure("source.file", path="long.jsonl")).type in {"InvalidFile", "TooLarge"}
    async with tasks(folder, source_bytes=1_024) as run:
        assert (await run.failure("source.file", path="r.json")).type == "TooLarge"
        assert (await run.failure("source.file", path="r.jsonl")).type == "TooLarge"


# ---- sink.file


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_lines_of_an_effect_are_appended_once(run: Tasks, folder: Path) -> None:
    for effect, repeated in (("e1/t", False), ("e1/t", True), ("e2/t", False), ("e1/t", True)):
        told = await run.run("sink.file", ROWS, effect=effect, path="out/r.jsonl")
        assert told == {"file": "out/r.jsonl", "rows": 2, "repeated": repeated}
    assert lines(folder / "out/r.jsonl") == ROWS * 2


async def test_another_process_knows_the_effects_too(run: Tasks, folder: Path) -> None:
    await run.run("sink.file", ROWS, effect="e1/t", path="r.jsonl")
    async with tasks(folder) as other:
        assert (await other.run("sink.file", ROWS, effect="e1/t", path="r.jsonl"))["repeated"]
        await other.run("sink.file", ROWS, effect="e2/t", path="r.jsonl")
    assert (await run.run("sink.file", ROWS, effect="e2/t", path="r.jsonl"))["repeated"]
    assert len(lines(folder / "r.jsonl")) == 4


@pytest.mark.parametrize("left", ["half a line", "lines without a note", "half a note"])
async def test_what_a_crash_left_is_cut_off_and_made_again(folder: Path, left: str) -> None:
    async with tasks(folder) as run:
        await run.run("sink.file", ROWS, effect="e1/t", path="r.jsonl")
    with (folder / "r.jsonl").open("ab") as file:
        file.write(b'{"a": ' if left == "half a line" else b'{"a": 3}\n')
    if left == "half a note":
        with (folder / ".r.jsonl.effects").open("ab") as journal:
            journal.write(b"0123")
    async with tasks(folder) as run:
        assert not (await run.run("sink.file", [{"a": 3}], effect="e2/t", path="r.jsonl"))["repeated"]
        assert (await run.run("sink.file", ROWS, effect="e1/t", path="r.jsonl"))["repeated"]
    assert lines(folder / "r.jsonl") == [*ROWS, {"a": 3}]


async def test_a_file_that_was_there_before_is_kept(run: Tasks, folder: Path) -> None:
    (folder / "r.jsonl").write_text('{"old": true}\n')
    await run.run("sink.file", ROWS, effect="e1/t", path="r.jsonl")
    assert lines(folder / "r.jsonl") == [{"old": True}, *ROWS]
    (folder / "r.jsonl").write_text("")
    failed = await run.failure("sink.file", ROWS, effect="e2/t", path="r.jsonl")
    assert (failed.type, failed.retryable) == ("FileChanged", False)


async def test_a_file_of_its_own_is_there_whole_and_once(run: Tasks, folder: Path) -> None:
    rows = [{"a": 1, "b": None, "c": {"x": [1]}}, {"a": 2.5, "b": "x", "d": True}]
    for form in ("parquet", "json"):
        told = await run.run("sink.file", rows, effect="e1/t", path="own", format=form)
        assert await run.run("sink.file", rows, effect="e1/t", path="own", format=form) == {**told, "repeated": True}
        await run.run("sink.file", rows, effect="e2/t", path="own", format=form)
    assert len(list((folder / "own").iterdir())) == 4
    (found, _) = sorted((folder / "own").glob("*.parquet"))
    assert pq.ParquetFile(found).read().to_pylist() == [
        {"a": 1.0, "b": None, "c": '{"x":[1]}', "d": None},
        {"a": 2.5, "b": "x", "c": None, "d": True},
    ]


async def test_rows_that_make_no_file_leave_none(run: Tasks, folder: Path) -> None:
    wrong: list[list[Any]] = [[1], [{}], [{"a": 1}, {"a": "x"}]]
    for rows in wrong:
        failed = await run.failure("sink.file", rows, path="own", format="parquet")
        assert (failed.type, failed.retryable) == ("InvalidRow", False)
    assert (await run.failure("sink.file", [{"a": object()}], path="r.jsonl")).type == "InvalidRow"
    assert not (folder / "own").exists()
    assert (await run.run("sink.file", [], path="none.jsonl"))["rows"] == 0
    assert not (folder / "none.jsonl").exists()
