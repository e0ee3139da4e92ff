"""Settings of the replay of recorded data."""

from typing import Literal

from config.section import Section, setting


class ReplaySettings(Section):
    """How rows of recorded files become samples again."""

    speed: float = setting(
        1.0,
        ge=0.0,
        le=1_000_000.0,
        unit="times",
        description="1 replays at the recorded pace, 10 ten times as fast, 0 as fast as possible.",
    )
    times: Literal["now", "keep"] = setting(
        "now",
        description="Shift the recorded times to now (at speed 1 the first row, faster the last row) or keep them.",
    )
    chunk_rows: int = setting(
        1000, ge=1, le=1_000_000, unit="rows", description="Rows read from a file at a time, off the event loop."
    )
    retry_ms: int = setting(
        5, ge=1, le=10_000, unit="ms", description="Wait before a row is offered again to a producer that is full."
    )
