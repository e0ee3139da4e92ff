"""What only files do: torn lines, unacknowledged tails, rotation, half-written files."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.sinks.jsonl import JsonlLimits, JsonlSink
from app.adapters.sinks.parquet import ParquetSink
from app.errors import SinkUnavailable
from app.ports import SinkRow
from tests.helpers.sinks import FixedClock, a_rollup, a_signal, json_lines, parquet_records, some_readings

CURRENT = "device.rollups-0.jsonl"
STATE = "device.rollups-0.state"


def lines_sink(folder: Path, clock: FixedClock | None = None, limits: JsonlLimits | None = None) -> JsonlSink:
    return JsonlSink("t", folder, clock or FixedClock(), limits)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.jsonl"))


def offsets(folder: Path) -> list[int]:
    return [document["source"][2] for document in json_lines(folder)]


async def append(folder: Path, *rows: SinkRow) -> None:
    sink = lines_sink(folder)
    await sink.open()
    await sink.write(rows)
    await sink.close()


async def test_a_torn_last_line_is_cut_off_at_open(tmp_path: Path) -> None:
    await append(tmp_path, a_rollup(0), a_rollup(1))
    whole = (tmp_path / CURRENT).read_bytes()
    with (tmp_path / CURRENT).open("ab") as file:
        file.write(whole[:37])
    await lines_sink(tmp_path).open()
    assert (tmp_path / CURRENT).read_bytes() == whole


async def test_lines_that_were_never_acknowledged_are_written_once(tmp_path: Path) -> None:
    """The crash came after the lines were on disk and before the state said so."""
    await append(tmp_path, a_rollup(0))
    state = (tmp_path / STATE).read_bytes()
    await append(tmp_path, a_rollup(1), a_rollup(2))
    (tmp_path / STATE).write_bytes(state)
    await append(tmp_path, a_rollup(1), a_rollup(2))
    assert offsets(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("left", [None, b"", b"{", b"[]", b'{"length": 1}'])
async def test_without_a_readable_state_the_lines_speak_for_themselves(tmp_path: Path, left: bytes | None) -> None:
    await append(tmp_path, a_rollup(0), a_rollup(1))
    if left is None:
        (tmp_path / STATE).unlink()
    else:
        (tmp_path / STATE).write_bytes(left)
    with (tmp_path / CURRENT).open("ab") as file:
        file.write(b'{"kind": "roll')
    await append(tmp_path, a_rollup(1), a_rollup(2))
    assert offsets(tmp_path) == [0, 1, 2]


async def test_a_file_of_its_size_is_followed_by_another(tmp_path: Path) -> None:
    sink = lines_sink(tmp_path, limits=JsonlLimits(rotate_bytes=1500))
    for index in range(12):
        await sink.write([a_rollup(index)])
    files = names(tmp_path)
    assert len(files) == 3
    assert files[:2] == ["device.rollups-0.20251121-000001.jsonl", "device.rollups-0.20251121-000002.jsonl"]
    assert sorted(offsets(tmp_path)) == list(range(12))
    await sink.write([a_rollup(index) for index in range(12)])
    assert sorted(offsets(tmp_path)) == list(range(12))


async def test_midnight_begins_another_file(tmp_path: Path) -> None:
    clock = FixedClock()
    sink = lines_sink(tmp_path, clock)
    await sink.write([a_rollup(0)])
    clock.ms += 86_400_000
    await sink.write([a_rollup(1)])
    finished = tmp_path / "device.rollups-0.20251121-000001.jsonl"
    assert [json.loads(line)["source"][2] for line in finished.read_bytes().splitlines()] == [0]
    assert [json.loads(line)["source"][2] for line in (tmp_path / CURRENT).read_bytes().splitlines()] == [1]


async def test_a_crash_between_the_new_name_and_its_state_loses_and_overwrites_nothing(tmp_path: Path) -> None:
    await append(tmp_path, a_rollup(0))
    (tmp_path / CURRENT).rename(tmp_path / "device.rollups-0.20251121-000001.jsonl")
    sink = lines_sink(tmp_path, limits=JsonlLimits(rotate_bytes=1))
    for rows in ([a_rollup(0), a_rollup(1)], [a_rollup(2)], [a_rollup(3)]):
        await sink.write(rows)
    assert sorted(offsets(tmp_path)) == [0, 1, 2, 3]


async def test_a_finished_file_is_never_overwritten_when_the_state_is_lost(tmp_path: Path) -> None:
    limits = JsonlLimits(rotate_bytes=1)
    for index in range(4):
        sink = lines_sink(tmp_path, limits=limits)
        await sink.write([a_rollup(index)])
        (tmp_path / STATE).unlink()
    assert sorted(offsets(tmp_path)) == [0, 1, 2, 3]


async def test_two_owners_of_a_partition_one_after_the_other_continue_each_others_file(tmp_path: Path) -> None:
    first, second = lines_sink(tmp_path), lines_sink(tmp_path)
    await first.write([a_rollup(0)])
    await second.write([a_rollup(0), a_rollup(1)])
    await first.write([a_rollup(1), a_rollup(2)])
    assert offsets(tmp_path) == [0, 1, 2]


async def test_each_partition_of_each_topic_has_its_own_file(tmp_path: Path) -> None:
    other = a_rollup(0)._replace(source=("device.rollups", 3, 0))
    await append(tmp_path, a_rollup(0), other, a_signal(0), *some_readings())
    assert names(tmp_path) == [
        "device.rollups-0.jsonl", "device.rollups-3.jsonl", "device.signals-0.jsonl", "device.telemetry-0.jsonl",
    ]  # fmt: skip


async def test_a_folder_that_is_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for sink in (lines_sink(tmp_path / "file"), ParquetSink("t", tmp_path / "file")):
        with pytest.raises(SinkUnavailable):
            await sink.open()
        with pytest.raises(SinkUnavailable):
            await sink.write([a_rollup(0)])


crashes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 400), st.integers(0, 8), st.booleans()), max_size=8)


@settings(max_examples=40, deadline=None)
@given(crashes)
def test_every_offset_is_there_once_after_any_crashes(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[tuple[int, int, int, bool]]
) -> None:
    """Each step writes rows, maybe crashes with a torn tail or an old state, and begins again a little earlier."""
    folder = tmp_path_factory.mktemp("lines")

    async def run() -> int:
        begin = end = 0
        for count, torn_bytes, back, is_state_old in crashes:
            state = (folder / STATE).read_bytes() if (folder / STATE).exists() else None
            acknowledged = begin
            end = max(end, begin + count)
            await append(folder, *(a_rollup(index) for index in range(begin, begin + count)))
            if is_state_old and state is not None:
                (folder / STATE).write_bytes(state)
                begin = max(0, acknowledged - back)
            else:
                with (folder / CURRENT).open("ab") as file:
                    file.write(b'{"kind":"rollups"}\n{"torn'[: torn_bytes % 27])
                begin = max(0, begin + count - back)
        await append(folder, *(a_rollup(index) for index in range(begin, end + 1)))
        return end + 1

    end = asyncio.run(run())
    assert offsets(folder) == list(range(end))


def files_of(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "rollups").iterdir())


def name(first: int, last: int) -> str:
    return f"device.rollups-0-{first:020d}-{last:020d}.parquet"


async def test_a_parquet_file_is_named_by_its_offsets_and_complete(tmp_path: Path) -> None:
    sink = ParquetSink("t", tmp_path)
    await sink.write([a_rollup(i) for i in range(5, 9)])
    assert files_of(tmp_path) == [name(5, 8)]
    assert sorted(record["source_offset"] for _, record in parquet_records(tmp_path)) == [5, 6, 7, 8]


async def test_what_a_crash_left_under_a_hidden_name_is_no_file_and_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "rollups").mkdir()
    (tmp_path / "rollups" / f".{name(0, 1)}.new").write_bytes(b"PAR1 half a file")
    sink = ParquetSink("t", tmp_path)
    await sink.open()
    assert parquet_records(tmp_path) == []
    await sink.write([a_rollup(0), a_rollup(1)])
    assert files_of(tmp_path) == [name(0, 1)]


async def test_a_repeat_that_begins_and_ends_elsewhere_adds_only_what_is_missing(tmp_path: Path) -> None:
    sink = ParquetSink("t", tmp_path)
    await sink.write([a_rollup(i) for i in range(10, 20)])
    await sink.write([a_rollup(i) for i in range(5, 25)])
    await sink.write([a_rollup(i) for i in range(5, 25)])
    assert files_of(tmp_path) == [name(5, 9), name(10, 19), name(20, 24)]
    assert sorted(record["source_offset"] for _, record in parquet_records(tmp_path)) == list(range(5, 25))


async def test_topics_whose_names_begin_alike_do_not_hide_each_other(tmp_path: Path) -> None:
    sink = ParquetSink("t", tmp_path)
    sources = [("a", 1, 0), ("a-1", 1, 0), ("a", 11, 0), ("a-1-1", 1, 0)]
    for source in sources:
        await sink.write([a_rollup(0)._replace(source=source)])
    assert len(parquet_records(tmp_path)) == len(sources)


async def test_all_rows_of_one_sample_are_in_the_file(tmp_path: Path) -> None:
    sink = ParquetSink("t", tmp_path)
    await sink.write([*some_readings(1, offset=7), *some_readings(2, offset=8)])
    await sink.write([*some_readings(1, offset=7), *some_readings(2, offset=8)])
    assert len(parquet_records(tmp_path)) == 4
    assert {record["source_offset"] for _, record in parquet_records(tmp_path)} == {7, 8}
