"""Task functions that end the process they run in."""

import os
from typing import Any


async def leave(_: list[Any]) -> None:
    """Nothing catches this."""
    os._exit(3)


async def stay(rows: list[Any]) -> int:
    """The one beside it."""
    return len(rows)
