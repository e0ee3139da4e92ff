"""Routes of the rollups: the latest revision of each window, newest first."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.http.paging import decode_cursor
from app.http.problems import RESPONSES
from app.http.query import Cursor, Instant, Limit, WindowSize, instant_ms, window_ms
from app.http.reads import Reads, paged
from app.http.schemas import Page, RollupView
from app.http.strict import StrictRoute

OfDevice = Annotated[str | None, Query(description="Only this device.", examples=["press-0001"], max_length=200)]
OfMetric = Annotated[str | None, Query(description="Only this metric.", examples=["temperature"], max_length=200)]


def rollups_router(reads: Reads) -> APIRouter:
    """The route /api/v1/rollups."""
    router = APIRouter(prefix="/api/v1/rollups", tags=["rollups"], route_class=StrictRoute)

    @router.get("", response_model=Page[RollupView], responses=RESPONSES, summary="List rollups, newest window first")
    async def list_rollups(
        device_id: OfDevice = None,
        metric: OfMetric = None,
        window: WindowSize = None,
        since: Instant = None,
        until: Instant = None,
        cursor: Cursor = None,
        limit: Limit = None,
    ) -> dict[str, Any]:
        found = reads.model.rollups(
            device_id=device_id,
            metric=metric,
            window_ms=window_ms(window),
            since=instant_ms(since, "since"),
            until=instant_ms(until, "until"),
            after=decode_cursor(cursor, (int, int, str, str)),
            limit=reads.limit(limit),
        )
        return paged(found)

    return router
