"""Routes of the signals: raised and cleared, newest first."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.http.paging import decode_cursor
from app.http.problems import RESPONSES
from app.http.query import Cursor, Instant, Limit, instant_ms
from app.http.reads import Reads, paged
from app.http.rollups import OfDevice
from app.http.schemas import Page, SignalView
from app.http.strict import StrictRoute

OfRule = Annotated[str | None, Query(description="Only this rule.", max_length=200)]
OfSeverity = Annotated[str | None, Query(description="Only this severity.", max_length=50)]
OfState = Annotated[Literal["raised", "cleared"] | None, Query(description="Only signals raised, or only cleared.")]


def signals_router(reads: Reads) -> APIRouter:
    """The route /api/v1/signals."""
    router = APIRouter(prefix="/api/v1/signals", tags=["signals"], route_class=StrictRoute)

    @router.get("", response_model=Page[SignalView], responses=RESPONSES, summary="List signals, newest first")
    async def list_signals(
        device_id: OfDevice = None,
        rule: OfRule = None,
        severity: OfSeverity = None,
        state: OfState = None,
        since: Instant = None,
        until: Instant = None,
        cursor: Cursor = None,
        limit: Limit = None,
    ) -> dict[str, Any]:
        found = reads.model.signals(
            device_id=device_id,
            rule=rule,
            severity=severity,
            state=state,
            since=instant_ms(since, "since"),
            until=instant_ms(until, "until"),
            after=decode_cursor(cursor, (int, str, str)),
            limit=reads.limit(limit),
        )
        return paged(found)

    return router
