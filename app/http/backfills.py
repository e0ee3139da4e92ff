"""Routes of the backfills: an execution for every due time of a range."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path, Query

from app.domain.workflow.backfill import RUNS_MAX, BackfillCancel, BackfillSpec, BackfillStart, Status
from app.domain.workflow.cadence import Cadence
from app.http.entities import Summary, checked_name, known_workflow, listed, summaries, summary, told
from app.http.entity_schemas import BackfillOrder, BackfillTold, BackfillView, CancelBackfill
from app.http.execution_ids import new_id, repeatable_id
from app.http.executions import CommandId
from app.http.paging import decode_cursor
from app.http.problems import NOT_FOUND, RESPONSES, UNAVAILABLE, Problem
from app.http.query import Cursor, Limit, instant_ms
from app.http.reads import paged
from app.http.schedules import OfWorkflow
from app.http.schemas import Page
from app.http.strict import StrictRoute
from app.http.workflow_access import Access, command_id

KIND: Final = "backfill"
Name = Annotated[str, Path(description="Name of the backfill.", examples=["november"], max_length=100)]
OfStatus = Annotated[Status | None, Query(description="Only in this status.")]
_CONFLICT: Final[dict[int | str, dict[str, Any]]] = {409: {"model": Problem, "description": "The name is used."}}


def backfills_router(access: Access) -> APIRouter:
    """The routes below /api/v1/backfills."""
    router = APIRouter(prefix="/api/v1/backfills", tags=["backfills"], route_class=StrictRoute)
    _add_reads(router, access)

    @router.post(
        "",
        status_code=202,
        response_model=BackfillTold,
        responses=RESPONSES | _CONFLICT | UNAVAILABLE,
        summary="Start a backfill",
    )
    async def start_backfill(order: BackfillOrder, key: CommandId = None) -> dict[str, Any]:
        name = checked_name(order.id or _made_name(access, key))
        there = summaries(access, KIND).get(name)
        if there is not None and there["command_id"] == key:
            return {"id": name, "command_id": key, "applied": True, KIND: there}
        if there is not None:
            raise HTTPException(409, f"There is a backfill {name} already; a name is used once.")
        spec = await _spec(access, order)
        await known_workflow(access, spec.workflow, spec.version)
        total = await _total(spec)
        start = BackfillStart(entity_id=f"{KIND}:{name}", command_id=command_id(key), spec=spec, total=total)
        return await told(access, KIND, name, start)

    @router.post(
        "/{name}/cancel",
        status_code=202,
        response_model=BackfillTold,
        responses=RESPONSES | NOT_FOUND | UNAVAILABLE,
        summary="Start no further execution of a backfill",
    )
    async def cancel_backfill(name: Name, order: CancelBackfill | None = None, key: CommandId = None) -> dict[str, Any]:
        await summary(access, KIND, name)
        running = order is None or order.running
        cancel = BackfillCancel(entity_id=f"{KIND}:{name}", command_id=command_id(key), running=running)
        return await told(access, KIND, name, cancel)

    return router


def _add_reads(router: APIRouter, access: Access) -> None:
    @router.get("", response_model=Page[BackfillView], responses=RESPONSES | UNAVAILABLE, summary="List by name")
    async def list_backfills(
        workflow: OfWorkflow = None, status: OfStatus = None, cursor: Cursor = None, limit: Limit = None
    ) -> dict[str, Any]:
        def wanted(each: Summary) -> bool:
            return workflow in {None, each["workflow"]} and status in {None, each["status"]}

        after = decode_cursor(cursor, (str,))
        items, go_on = listed(summaries(access, KIND), wanted, after, access.limit(limit))
        return paged(([dict(each) for each in items], go_on))

    @router.get("/{name}", response_model=BackfillView, responses=NOT_FOUND | UNAVAILABLE, summary="Show a backfill")
    async def show_backfill(name: Name) -> Summary:
        return await summary(access, KIND, name)


def _made_name(access: Access, key: str | None) -> str:
    """A new name, the same for the same Idempotency-Key."""
    return f"backfill-{new_id(access.starter.now_ms()) if key is None else repeatable_id(KIND, key)}"


async def _spec(access: Access, order: BackfillOrder) -> BackfillSpec:
    """What is asked for; a schedule lends what is not given. Raises HTTP 400, 404 and 422."""
    lent: Summary = {} if order.schedule is None else await summary(access, "schedule", order.schedule)
    workflow = order.workflow or lent.get("workflow")
    if workflow is None:
        raise HTTPException(422, "workflow, or a schedule that has one, must be given.")
    cron, every_s = order.cron, order.every_s
    if cron is None and every_s is None:
        cron, every_s = lent.get("cron"), lent.get("every_s")
    begin, end = instant_ms(str(order.begin), "from"), instant_ms(str(order.end), "to")
    assert begin is not None, "it is given"
    assert end is not None, "it is given"
    spec = BackfillSpec(
        workflow=workflow,
        version=order.version if order.workflow or order.version else lent.get("version"),
        cadence=Cadence(
            cron=cron,
            every_ms=None if every_s is None else round(every_s * 1000),
            timezone=order.timezone or lent.get("timezone") or "UTC",
        ),
        from_ms=begin,
        to_ms=end,
        input=order.input if order.input is not None else lent.get("input", {}),
        concurrency=order.concurrency,
    )
    problem = spec.problem()
    if problem is not None:
        raise HTTPException(422, problem)
    return spec


async def _total(spec: BackfillSpec) -> int:
    """How many executions there will be; counted on a thread, for it may take half a second."""
    total = await asyncio.to_thread(spec.runs)
    if total == 0:
        raise HTTPException(422, "Nothing is due in this range.")
    if total > RUNS_MAX:
        raise HTTPException(422, f"More than {RUNS_MAX} are due in this range; split it.")
    return total
