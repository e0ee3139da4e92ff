"""What a node says of itself, as JSON: on the topic `cluster.members`, in heartbeats and from child to supervisor."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.domain.cluster import GroupSeat, NodeView

# A record of a broker is bounded by a megabyte; a node of a thousand partitions says a tenth of that.
VIEW_BYTES: Final = 1 << 20

_views: Final = msgspec.json.Decoder(NodeView)


def node_document(view: NodeView) -> dict[str, Any]:
    """The fields of `view`, made of dicts, lists, texts, numbers and booleans."""
    return {
        "node_id": view.node_id,
        "epoch": view.epoch,
        "version": view.version,
        "state": view.state,
        "beats": view.beats,
        "api": view.api,
        "clock_ms": view.clock_ms,
        "processes": [
            {
                "role": process.role,
                "pid": process.pid,
                "ready": process.ready,
                "seats": [seat_document(seat) for seat in process.seats],
            }
            for process in view.processes
        ],
        "facts": dict(view.facts),
    }


def seat_document(seat: GroupSeat) -> dict[str, Any]:
    return {
        "group": seat.group,
        "member_id": seat.member_id,
        "generation": seat.generation,
        "partitions": list(seat.partitions),
        "standbys": list(seat.standbys),
    }


def encode_node(view: NodeView) -> bytes:
    return msgspec.json.encode(node_document(view))


def decode_node(value: bytes) -> NodeView:
    """A view; what a newer node adds is passed over. Raises ValueError, which names the field that is not right."""
    if len(value) > VIEW_BYTES:
        raise ValueError(f"what a node says of itself has {len(value)} bytes, more than {VIEW_BYTES}")
    try:
        return _checked(_views.decode(value))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"what a node says of itself cannot be read: {error}") from error


def node_of(document: Mapping[str, Any]) -> NodeView:
    """A view of parsed JSON. Raises ValueError."""
    try:
        return _checked(msgspec.convert(document, NodeView))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"what a node says of itself cannot be read: {error}") from error


def seat_of(document: Mapping[str, Any]) -> GroupSeat:
    """A seat of parsed JSON. Raises ValueError."""
    try:
        return msgspec.convert(document, GroupSeat)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"a seat in a group cannot be read: {error}") from error


def _checked(view: NodeView) -> NodeView:
    if not view.node_id:
        raise ValueError("a node without a node_id")
    return view
