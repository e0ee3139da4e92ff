"""What a node says of itself survives its way through JSON, and nothing unreadable gets in."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster_wire import VIEW_BYTES, decode_node, encode_node, node_document, node_of, seat_document, seat_of
from app.domain.cluster import GroupSeat, NodeState, NodeView, ProcessView

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNTS = st.integers(0, 2**53)
SEATS = st.builds(
    GroupSeat,
    group=TEXTS,
    member_id=TEXTS,
    generation=st.integers(-1, 2**31 - 1),
    partitions=st.lists(TEXTS, max_size=3).map(tuple),
    standbys=st.lists(TEXTS, max_size=3).map(tuple),
)
PROCESSES = st.builds(
    ProcessView, role=TEXTS, pid=COUNTS, ready=st.booleans(), seats=st.lists(SEATS, max_size=2).map(tuple)
)
VIEWS = st.builds(
    NodeView,
    node_id=TEXTS.filter(bool),
    epoch=COUNTS,
    version=TEXTS,
    state=st.sampled_from(get_args(NodeState)),
    beats=TEXTS,
    api=TEXTS,
    clock_ms=COUNTS,
    processes=st.lists(PROCESSES, max_size=3).map(tuple),
    facts=st.dictionaries(TEXTS, TEXTS, max_size=3),
)


@given(VIEWS)
def test_what_a_node_says_comes_back_as_it_was(view: NodeView):
    assert decode_node(encode_node(view)) == view
    assert node_of(node_document(view)) == view


@given(SEATS)
def test_a_seat_comes_back_as_it_was(seat: GroupSeat):
    assert seat_of(json.loads(json.dumps(seat_document(seat)))) == seat


@given(VIEWS, st.dictionaries(TEXTS.map(lambda name: "new_" + name), st.integers(), min_size=1))
def test_what_a_newer_node_adds_is_passed_over(view: NodeView, more: dict[str, int]):
    assert node_of({**node_document(view), **more}) == view


def test_only_what_identifies_a_node_has_to_be_there():
    view = node_of({"node_id": "a", "epoch": 1, "version": "0.1.0", "state": "ready"})
    assert (view.processes, view.seats, view.roles, dict(view.facts)) == ((), (), (), {})


@pytest.mark.parametrize(
    "changed",
    [
        {"node_id": ""},
        {"node_id": 7},
        {"epoch": "yesterday"},
        {"state": "asleep"},
        {"processes": [{"role": "worker"}]},
        {"processes": [{"role": "worker", "pid": 1, "seats": [{"group": "g"}]}]},
        {"facts": {"a": 1}},
    ],
)
def test_what_is_not_a_node_is_a_value_error(changed: dict[str, Any]):
    document = {"node_id": "a", "epoch": 1, "version": "0.1.0", "state": "ready", **changed}
    with pytest.raises(ValueError, match="node"):
        node_of(document)
    with pytest.raises(ValueError, match="node"):
        decode_node(json.dumps(document).encode())


@given(st.binary(max_size=64))
def test_any_bytes_are_a_node_or_a_value_error(value: bytes):
    try:
        decode_node(value)
    except ValueError:
        return


def test_deep_and_long_values_are_refused():
    with pytest.raises(ValueError, match="node"):
        decode_node(b"[" * 10_000)
    with pytest.raises(ValueError, match="bytes"):
        decode_node(b" " * (VIEW_BYTES + 1))
