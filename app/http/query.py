"""Query parameters that every list shares, and how instants and windows are written in them."""

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import HTTPException, Query

Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=2000)]
Limit = Annotated[int | None, Query(description="Most items of the page.", ge=1)]
Instant = Annotated[
    str | None,
    Query(description="Milliseconds since 1970 UTC, or RFC 3339.", examples=["1763689000000"], max_length=40),
]
WindowSize = Annotated[
    str | None, Query(description="10s, 1m, 5m, 1h, or milliseconds.", examples=["10s"], max_length=20)
]

# The years 1 and 9999: what is written as a time, and fits into the keys of every index.
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
_UNITS_MS = {"ms": 1, "": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_WINDOW = re.compile(r"(\d{1,12})(ms|s|m|min|h|d|)")


def instant_ms(text: str | None, name: str) -> int | None:
    """Milliseconds UTC; a time without a zone is taken as UTC. Raises HTTP 400."""
    if text is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        at_ms = int(text)
    else:
        try:
            # A "+" of an offset arrives as a blank where the caller did not encode it.
            at = datetime.fromisoformat(text.replace(" ", "+") if re.search(r"T.* ", text) else text)
        except ValueError as error:
            raise HTTPException(400, f"{name} is neither milliseconds nor an RFC 3339 time.") from error
        at_ms = round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    if not _FIRST_MS <= at_ms <= _LAST_MS:
        raise HTTPException(400, f"{name} is not within the years 1 and 9999.")
    return at_ms


def window_ms(text: str | None) -> int | None:
    if text is None:
        return None
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise HTTPException(400, "window is written as 10s, 1m, 5m, 1h, or in milliseconds.")
    return int(found[1]) * _UNITS_MS[found[2]]
