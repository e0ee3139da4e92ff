"""Routes of the schedules: what starts workflows by the clock."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path, Query

from app.domain.workflow.cadence import Cadence
from app.domain.workflow.schedule import (
    ScheduleDelete,
    SchedulePause,
    SchedulePut,
    ScheduleResume,
    ScheduleRunNow,
    ScheduleSpec,
)
from app.http.entities import EntityOrder, Summary, checked_name, known_workflow, listed, summaries, summary, told
from app.http.entity_schemas import ScheduleOrder, ScheduleTold, ScheduleView
from app.http.executions import CommandId
from app.http.paging import decode_cursor
from app.http.problems import NOT_FOUND, RESPONSES, UNAVAILABLE
from app.http.query import Cursor, Limit
from app.http.reads import paged
from app.http.schemas import Page
from app.http.strict import StrictRoute
from app.http.workflow_access import Access, command_id

KIND: Final = "schedule"
Name = Annotated[str, Path(description="Name of the schedule.", examples=["nightly"], max_length=100)]
OfWorkflow = Annotated[str | None, Query(description="Only those of this workflow.", examples=["press-report"])]
Paused = Annotated[bool | None, Query(description="Only those that are paused, or are not.")]
_ORDER: Final[dict[int | str, dict[str, Any]]] = {**RESPONSES, **NOT_FOUND, **UNAVAILABLE}
Made = Callable[[str, str], EntityOrder]


def schedules_router(access: Access) -> APIRouter:
    """The routes below /api/v1/schedules."""
    router = APIRouter(prefix="/api/v1/schedules", tags=["schedules"], route_class=StrictRoute)
    _add_reads(router, access)

    @router.put(
        "/{name}",
        status_code=202,
        response_model=ScheduleTold,
        responses=RESPONSES | UNAVAILABLE,
        summary="Create or change a schedule",
    )
    async def put_schedule(name: Name, order: ScheduleOrder, key: CommandId = None) -> dict[str, Any]:
        checked_name(name)
        spec = _spec(order)
        problem = spec.problem()
        if problem is not None:
            raise HTTPException(422, problem)
        await known_workflow(access, spec.workflow, spec.version)
        put = SchedulePut(entity_id=f"{KIND}:{name}", command_id=command_id(key), spec=spec, paused=order.paused)
        return await told(access, KIND, name, put)

    _add_orders(router, access)
    return router


def _add_reads(router: APIRouter, access: Access) -> None:
    @router.get("", response_model=Page[ScheduleView], responses=RESPONSES | UNAVAILABLE, summary="List by name")
    async def list_schedules(
        workflow: OfWorkflow = None, paused: Paused = None, cursor: Cursor = None, limit: Limit = None
    ) -> dict[str, Any]:
        def wanted(each: Summary) -> bool:
            return workflow in {None, each["workflow"]} and paused in {None, each["paused"]}

        after = decode_cursor(cursor, (str,))
        return paged(_documents(listed(summaries(access, KIND), wanted, after, access.limit(limit))))

    @router.get("/{name}", response_model=ScheduleView, responses=NOT_FOUND | UNAVAILABLE, summary="Show a schedule")
    async def show_schedule(name: Name) -> Summary:
        return await summary(access, KIND, name)


def _add_orders(router: APIRouter, access: Access) -> None:
    def orders(path: str, what: str, make: Made) -> Callable[[str, str | None], Awaitable[dict[str, Any]]]:
        async def order(name: Name, key: CommandId = None) -> dict[str, Any]:
            await summary(access, KIND, name)
            return await told(access, KIND, name, make(f"{KIND}:{name}", command_id(key)))

        method = "DELETE" if not path else "POST"
        router.add_api_route(
            f"/{{name}}{path}",
            order,
            methods=[method],
            status_code=202,
            response_model=ScheduleTold,
            responses=_ORDER,
            summary=what,
            operation_id=f"{what.split(maxsplit=1)[0].lower()}_schedule",
        )
        return order

    orders("", "Delete a schedule; what runs goes on", lambda of, key: ScheduleDelete(entity_id=of, command_id=key))
    orders("/pause", "Pause a schedule", lambda of, key: SchedulePause(entity_id=of, command_id=key))
    orders(
        "/resume",
        "Resume a schedule; what was due meanwhile is passed over",
        lambda of, key: ScheduleResume(entity_id=of, command_id=key),
    )
    orders("/run", "Run once, now, also while paused", lambda of, key: ScheduleRunNow(entity_id=of, command_id=key))


def _documents(found: tuple[list[Summary], Any]) -> tuple[list[dict[str, Any]], Any]:
    return [dict(each) for each in found[0]], found[1]


def _spec(order: ScheduleOrder) -> ScheduleSpec:
    every_ms = None if order.every_s is None else round(order.every_s * 1000)
    return ScheduleSpec(
        workflow=order.workflow,
        version=order.version,
        cadence=Cadence(cron=order.cron, every_ms=every_ms, timezone=order.timezone),
        input=order.input,
        overlap=order.overlap,
        catch_up=order.catch_up,
        catch_up_limit=order.catch_up_limit,
    )
