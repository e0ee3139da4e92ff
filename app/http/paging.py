"""Pages of a list in a fixed order, each continued after the key of its last item."""

import base64
import binascii
import heapq
from collections.abc import Callable, Iterable
from typing import TypeVar

import orjson
from fastapi import HTTPException

T = TypeVar("T")
Key = tuple[int | str, ...]
_KEY_MAX = 1 << 63


def encode_cursor(key: Key) -> str:
    """Opaque to callers, so that its content may change."""
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=")


def decode_cursor(cursor: str | None, shape: tuple[type, ...]) -> Key | None:
    """The key of the last item seen; raises HTTP 400 when no page of this list gave this cursor."""
    if not cursor:
        return None
    try:
        key = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, "The cursor is not one that a page of this list gave.") from error
    if not isinstance(key, list) or tuple(type(part) for part in key) != shape or not _fits(key):
        raise HTTPException(400, "The cursor is not one that a page of this list gave.")
    return tuple(key)


def _fits(key: list[int | str]) -> bool:
    """Whether its numbers have 64 bits, as those of every key."""
    return all(isinstance(part, str) or abs(part) < _KEY_MAX for part in key)


def page(items: Iterable[T], key_of: Callable[[T], Key], after: Key | None, limit: int) -> tuple[list[T], Key | None]:
    """The `limit` smallest items whose key is past `after`, and the key to go on from (None: that was all).

    Items that come or go between two pages never move another item to a place twice or not at all,
    because a page starts at a key and not at a count.
    """
    rest = items if after is None else (item for item in items if key_of(item) > after)
    found = heapq.nsmallest(limit + 1, rest, key=key_of)
    if len(found) <= limit:
        return found, None
    return found[:limit], key_of(found[limit - 1])
