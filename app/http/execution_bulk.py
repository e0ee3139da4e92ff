"""Orders to every execution that matches a filter."""

from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Path

from app.adapters.execution_reader import Row, Wanted
from app.domain.workflow.commands import Cancel, Command, Pause, Resume, RetryExecution, Signal
from app.http.execution_index import Behind
from app.http.execution_schemas import Action, BulkOrder, BulkView
from app.http.executions import APPLIES, CommandId, refused
from app.http.problems import RESPONSES, UNAVAILABLE
from app.http.query import instant_ms
from app.http.strict import StrictRoute
from app.http.workflow_access import Access, command_id

Ordered = Annotated[Action, Path(description="What they are told.", examples=["cancel"])]
_SHOWN: Final = 100
_PAGE: Final = 1000


def bulk_router(access: Access) -> APIRouter:
    """POST /api/v1/executions:cancel and its like."""
    router = APIRouter(tags=["executions"], route_class=StrictRoute)

    @router.post(
        "/api/v1/executions:{action}",
        status_code=202,
        responses=RESPONSES | UNAVAILABLE,
        summary="Cancel, pause, resume, retry or signal every execution that matches",
    )
    async def bulk(action: Ordered, order: BulkOrder, key: CommandId = None) -> BulkView:
        _check(action, order)
        most = min(order.limit or access.settings.executions.bulk_max, access.settings.executions.bulk_max)
        rows, more = await _matching(access, action, order, most)
        if not order.dry_run:
            name = command_id(key)
            commands = [_command(action, order, row.id, name) for row in rows]
            for begin in range(0, len(commands), _PAGE):
                await access.tell(commands[begin : begin + _PAGE])
        return BulkView(
            action=action,
            matched=len(rows),
            sent=0 if order.dry_run else len(rows),
            more=more,
            dry_run=order.dry_run,
            execution_ids=[row.id for row in rows[:_SHOWN]],
        )

    return router


def _check(action: Action, order: BulkOrder) -> None:
    """Raises HTTP 400 for what would reach more than was meant."""
    filters = (order.workflow, order.status, order.key, order.since, order.until)
    if order.ids is not None and (order.all or any(each is not None for each in filters)):
        raise HTTPException(400, "Name executions by ids, or a filter, not both.")
    if order.ids is None and not order.all and all(each is None for each in filters):
        raise HTTPException(400, "Name a filter or ids, or say all: true.")
    if action == "signal" and not order.signal:
        raise HTTPException(400, "signal says which signal is meant.")
    if wrong := set(order.status or ()) - _allowed(action, order):
        raise HTTPException(400, f"{action} does not apply to executions that are {min(wrong)}.")


def _allowed(action: Action, order: BulkOrder) -> frozenset[str]:
    rerun = action == "retry" and order.from_task is not None
    return APPLIES[action] | ({"succeeded"} if rerun else frozenset())


async def _matching(access: Access, action: Action, order: BulkOrder, most: int) -> tuple[list[Row], bool]:
    """At most so many, newest first, and whether there are more. Raises `Behind` where a filter would miss some."""
    if order.ids is not None:
        found = [await access.row(execution_id) for execution_id in dict.fromkeys(order.ids)]
        return _fit(access, action, order, found)[:most], False
    if not access.index.complete:
        raise Behind("The index of executions has not read everything yet: a filter would miss some.")
    wanted = Wanted(
        workflow=order.workflow,
        # Rerunning what succeeded must be asked for by its status.
        statuses=tuple(order.status or sorted(APPLIES[action])),
        key=order.key,
        since=_instant(order.since, "since"),
        until=_instant(order.until, "until"),
    )
    rows: list[Row] = []
    after: tuple[int, str] | None = None
    while len(rows) <= most:
        page = await access.index.ask(access.index.reader.page, wanted, after, _PAGE)
        rows += _fit(access, action, order, page)
        if len(page) < _PAGE:
            return rows[:most], len(rows) > most
        after = page[-1].order, page[-1].id
    return rows[:most], True


def _fit(access: Access, action: Action, order: BulkOrder, rows: Sequence[Row]) -> list[Row]:
    """Those that the action can apply to."""
    return [
        row for row in rows if refused(row, action, _command(action, order, row.id, ""), access.workflow(row)) is None
    ]


def _instant(value: str | int | None, name: str) -> int | None:
    return instant_ms(None if value is None else str(value), name)


def _command(action: Action, order: BulkOrder, execution_id: str, name: str) -> Command:
    if action == "cancel":
        return Cancel(execution_id=execution_id, command_id=name, reason=order.reason)
    if action == "pause":
        return Pause(execution_id=execution_id, command_id=name)
    if action == "resume":
        return Resume(execution_id=execution_id, command_id=name)
    if action == "retry":
        return RetryExecution(execution_id=execution_id, command_id=name, from_task=order.from_task)
    return Signal(execution_id=execution_id, command_id=name, name=order.signal or "", payload=order.payload)
