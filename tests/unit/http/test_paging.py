"""Laws of pages."""

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from app.http.paging import decode_cursor, encode_cursor, page
from app.http.read_model import ReadModel
from config.http import ReadModelSettings
from tests.helpers.reads import rollup, signal

keys = st.lists(st.tuples(st.integers(-100, 100), st.text(max_size=3)), unique=True, max_size=60)


def _walk(ask, limit):
    after, seen = None, []
    while True:
        items, after = ask(after, limit)
        seen += items
        assert len(items) <= limit
        if after is None:
            return seen


@given(keys, st.integers(1, 10))
def test_pages_give_every_item_once_in_order(items, limit):
    assert _walk(lambda after, n: page(items, lambda item: item, after, n), limit) == sorted(items)


@given(keys, keys, st.integers(1, 10))
def test_what_arrives_between_pages_moves_no_other_item(items, more, limit):
    first, after = page(items, lambda item: item, None, limit)
    if after is None:
        return
    later = sorted(set(items) | set(more))
    rest = _walk(lambda key, n: page(later, lambda item: item, key or after, n), limit)
    assert set(items) <= set(first) | set(rest)
    assert not set(first) & set(rest)


@given(st.tuples(st.integers(-(2**53), 2**53), st.text()))
def test_a_cursor_comes_back_as_the_key_it_was_made_of(key):
    assert decode_cursor(encode_cursor(key), (int, str)) == key


@pytest.mark.parametrize("cursor", ["zzz", "!", "é", encode_cursor((1,)), encode_cursor(("a", 1)), "bnVsbA", "e30"])
def test_a_cursor_of_no_page_is_refused(cursor):
    with pytest.raises(HTTPException) as refused:
        decode_cursor(cursor, (int, str))
    assert refused.value.status_code == 400


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from("tv"), st.sampled_from([10, 60]))),
    st.integers(1, 7),
    st.sampled_from([None, "press-1"]),
)
def test_rollups_are_paged_newest_first_without_loss(windows, limit, device_id):
    model = ReadModel(ReadModelSettings())
    for start, number, metric, size in windows:
        model.take(*rollup(f"press-{number}", metric, start * 60, size))
    found = _walk(lambda after, n: model.rollups(device_id=device_id, after=after, limit=n), limit)
    got = [(r["window_start"], r["window_ms"], r["device_id"], r["metric"]) for r in found]
    wanted = {(s * 60, w, f"press-{n}", m) for s, n, m, w in windows if device_id in {None, f"press-{n}"}}
    assert got == sorted(wanted, key=lambda key: (-key[0], *key[1:]))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), unique=True), st.integers(1, 7))
def test_signals_are_paged_newest_first_without_loss(raised, limit):
    model = ReadModel(ReadModelSettings())
    for at, number in raised:
        model.take(*signal(f"{at}-{number}", at))
    found = _walk(lambda after, n: model.signals(after=after, limit=n), limit)
    assert [(s["at"], s["signal_id"]) for s in found] == sorted(
        ((at, f"{at}-{number}") for at, number in raised), key=lambda key: (-key[0], key[1])
    )
