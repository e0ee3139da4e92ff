"""How large a value is as JSON, about, without writing it."""

from collections.abc import Mapping
from typing import Any


def weight(value: Any, limit: int) -> int:
    """Bytes of `value` as JSON, to about a tenth; counting stops once it is over `limit`."""
    total = 0
    waiting = [value]
    while waiting and total <= limit:
        each = waiting.pop()
        if isinstance(each, str):
            total += 2 + (len(each) if each.isascii() else len(each.encode(errors="replace")))
        elif isinstance(each, Mapping):
            total += 2
            for key, inner in each.items():
                total += 4 + len(str(key))
                waiting.append(inner)
        elif isinstance(each, list | tuple):
            total += 2 + len(each)
            waiting.extend(each)
        else:
            total += 4 if each is None or isinstance(each, bool) else len(repr(each))
    return total
