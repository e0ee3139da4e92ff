"""Laws of results: JSON or a precise refusal, and files that stand for the large ones."""

import asyncio
import datetime as dt
import os
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch  # noqa: PT013 - a type

from app.adapters.tasks.payload import (
    CHUNK_ITEMS,
    PAYLOAD,
    NotJson,
    PayloadGone,
    Payloads,
    TooLarge,
    dumps,
    encode,
    encode_in_thread,
    is_plain,
    is_reference,
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
async def test_json_value_comes_back(value: Any) -> None:
    assert orjson.loads(await encode(value, 1 << 30)) == value


@given(json_values)
def test_plain_value_is_its_own_json(value: Any) -> None:
    if is_plain(value):
        assert orjson.loads(dumps(value)) == value
        assert len(dumps(value)) < 10_000


@pytest.mark.parametrize("items", [CHUNK_ITEMS, CHUNK_ITEMS + 1, 5 * CHUNK_ITEMS])
async def test_long_list_is_encoded_in_parts_and_is_the_same_list(items: int) -> None:
    value = [{"n": n} for n in range(items)]
    assert orjson.loads(await encode(value, 1 << 30)) == value


LONG = [{"n": n, "none": None} for n in range(5 * CHUNK_ITEMS)]


@pytest.mark.parametrize(
    "value",
    [
        {"rows": LONG, "more": {"deep": [LONG, 1, LONG]}, "none": None},
        {str(n): n for n in range(3 * CHUNK_ITEMS)},
        {str(n): LONG[:n] for n in range(CHUNK_ITEMS - 2, CHUNK_ITEMS + 3)},
        [[], LONG, {}, {"x": LONG}, "x" * 200_000],
        [["x" * 200] * 20 for _ in range(1_500)],
    ],
)
async def test_long_value_lets_the_loop_turn_and_is_the_same(value: Any) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    encoded = await encode(value, 1 << 30)
    counting.cancel()
    assert orjson.loads(encoded) == value
    assert orjson.loads(encode_in_thread(value, 1 << 30)) == value
    # Each part is of a moderate size, a text excepted.
    assert turns >= len(encoded) // 500_000


@given(json_values)
async def test_parts_of_any_size_make_the_same_json(value: Any) -> None:
    value = {"a": [value] * 3, "b": {"c": value, "d": [value]}}
    with MonkeyPatch.context() as patch:
        patch.setattr("app.adapters.tasks.payload.CHUNK_ITEMS", 1)
        patch.setattr("app.adapters.tasks.payload.PART_BYTES", 3)
        assert orjson.loads(await encode(value, 1 << 30)) == value
        assert orjson.loads(encode_in_thread(value, 1 << 30)) == value


async def test_long_text_is_refused_before_it_is_written() -> None:
    for value in ("x" * 300_000, {"rows": [1, {"text": "x" * 300_000}]}):
        with pytest.raises(TooLarge) as raised:
            await encode(value, 200_000)
        assert raised.value.size >= 300_000


async def test_long_list_stops_at_the_limit() -> None:
    with pytest.raises(TooLarge, match="at least") as raised:
        await encode(list(range(10_000)), 1_000)
    assert raised.value.limit == 1_000
    assert raised.value.size > 1_000


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"rows": [{"a": 1}, {"b": {1, 2}}]}, "result.rows[1].b"),
        ({1: "x"}, "result"),
        (object(), "result"),
        ([b"bytes"], "result[0]"),
        ([2**70], "result[0]"),
        ({"text": "\ud800"}, "result.text"),
        ((1, [complex(1, 2)]), "result[1][0]"),
        (_cycle(), "result[0][0]"),
        ([*range(CHUNK_ITEMS), {1}], f"result[{CHUNK_ITEMS}]"),
        ({"rows": [*range(CHUNK_ITEMS), {"x": {1}}]}, f"result.rows[{CHUNK_ITEMS}].x"),
        ({"a": list(range(CHUNK_ITEMS + 1)), 2: 1}, "result"),
        ({"value": float("nan")}, "result.value"),
        ([None, 1.5, float("-inf")], "result[2]"),
        ({"rows": [*range(CHUNK_ITEMS), {"mean": (None, float("nan"))}]}, f"result.rows[{CHUNK_ITEMS}].mean[1]"),
    ],
)
async def test_what_is_not_json_is_refused_with_its_place(value: Any, where: str) -> None:
    with pytest.raises(NotJson) as raised:
        await encode(value, 1 << 30)
    assert raised.value.where.startswith(where)


def test_times_and_uuids_become_text_and_subclasses_their_base() -> None:
    class Name(str):
        __slots__ = ()

    moment = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    number = uuid.UUID(int=1)
    assert orjson.loads(dumps([moment, number, Name("n")])) == ["2026-01-02T03:04:05+00:00", str(number), "n"]


def test_large_result_comes_back_by_its_reference(tmp_path: Path) -> None:
    payloads = Payloads(tmp_path, 3_600)
    content = dumps({"rows": list(range(1_000))})
    reference = payloads.store(content)
    assert is_reference(reference)
    assert reference[PAYLOAD]["bytes"] == len(content)
    assert payloads.load(reference) == {"rows": list(range(1_000))}
    assert payloads.store(content) == reference
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_reference_leads_nowhere_else_than_into_the_folder(tmp_path: Path) -> None:
    payloads = Payloads(tmp_path / "payloads", 3_600)
    (tmp_path / "other.json").write_text("1")
    for told in ({"path": "../other.json", "sha256": "../other"}, {"path": "x", "sha256": "0" * 64}, {}):
        with pytest.raises(PayloadGone):
            payloads.load({PAYLOAD: told})


def test_damaged_file_is_not_taken_for_the_result(tmp_path: Path) -> None:
    payloads = Payloads(tmp_path, 3_600)
    reference = payloads.store(b"[1]")
    (tmp_path / reference[PAYLOAD]["path"]).write_bytes(b"[2]")
    with pytest.raises(PayloadGone, match="damaged"):
        payloads.load(reference)


def test_old_files_are_deleted_and_young_ones_kept(tmp_path: Path) -> None:
    young = Payloads(tmp_path, 3_600)
    old, new = young.store(b"[1]"), young.store(b"[2]")
    os.utime(tmp_path / old[PAYLOAD]["path"], (0, 0))
    reference = Payloads(tmp_path, 3_600).store(b"[3]")
    assert Payloads(tmp_path, 3_600).load(new) == [2]
    assert Payloads(tmp_path, 3_600).load(reference) == [3]
    with pytest.raises(PayloadGone):
        young.load(old)
