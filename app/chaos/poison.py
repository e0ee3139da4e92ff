"""A task that fails in every way there is before it ends well, and records that nobody can read."""

import os
import time
from typing import Any, Final

RIGHT_AT: Final = 5
HANGS_S: Final = 60.0


def crash(_: list[Any], attempt: int) -> int:
    """Ends its process, raises, hangs, takes its process down by a signal, and at the fifth attempt returns."""
    if attempt == 1:
        os._exit(17)
    if attempt == 2:
        raise RuntimeError("poison")
    if attempt == 3:
        time.sleep(HANGS_S)
    if attempt < RIGHT_AT:
        os.abort()
    return attempt


def letters() -> list[tuple[bytes | None, bytes | None]]:
    """Key and value of records that no reader of commands can make sense of."""
    return [
        (b"poison-1", b"{"),
        (b"poison-2", b"\xff\xfe\x00"),
        (b"poison-3", b'{"type": "start"}'),
        (b"poison-4", b'{"type": "no such command", "execution_id": "poison-4"}'),
        (b"poison-5", b"[" * 5_000),
        (b"poison-6", b'"' + b"x" * 500_000 + b'"'),
        (None, b"{}"),
        (b"poison-7", b""),
    ]
