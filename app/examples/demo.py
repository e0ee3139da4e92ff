"""The task that fails on purpose, for the example `demo-needs-retry`."""

from collections.abc import Sequence
from typing import Any

from app.errors import TaskFailed


async def calibrate(rows: Sequence[dict[str, Any]], attempt: int, execution_id: str) -> list[dict[str, Any]]:
    """The rows, calibrated; the first attempt fails and says what to do."""
    if attempt == 1:
        raise TaskFailed(
            "OnPurpose",
            f"this demonstration fails on its first try; put it right: headrace executions retry {execution_id}",
            retryable=False,
        )
    return [{**row, "calibrated": True} for row in rows]
