"""How large a value is as JSON, about, without writing it."""

from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any


def weight(value: Any, limit: int) -> int:
    """Bytes of `value` as JSON, to a few percent; counting stops once it is over `limit`."""
    total = 0
    waiting = [value]
    while waiting and total <= limit:
        each = waiting.pop()
        if isinstance(each, str):
            total += _text(each)
        elif isinstance(each, Mapping):
            total += 2
            for key, inner in each.items():
                total += 2 + _text(str(key))
                waiting.append(inner)
        elif isinstance(each, list | tuple):
            total += 2 + len(each)
            waiting.extend(each)
        else:
            total += 4 if each is None or isinstance(each, bool) else len(repr(each))
    return total


def _text(text: str) -> int:
    """With its quotes, and with what is escaped: a control character is six bytes."""
    written = encode_basestring(text)
    return len(written) if written.isascii() else len(written.encode(errors="replace"))
