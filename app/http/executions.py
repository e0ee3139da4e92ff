"""Routes of executions: search, detail, history, and orders to one of them."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
import orjson
from fastapi import APIRouter, Body, Header, HTTPException, Path, Query
from starlette.responses import Response

from app.adapters.execution_reader import Page, Row, Wanted
from app.domain.workflow.commands import Cancel, Command, Pause, Resume, RetryExecution, Signal
from app.domain.workflow.definition import APPROVAL, Workflow
from app.http.execution_schemas import (
    Action,
    CancelOrder,
    ExecutionDetail,
    ExecutionsPage,
    HistoryPage,
    RetryOrder,
    Status,
    ToldView,
)
from app.http.paging import decode_cursor, encode_cursor
from app.http.problems import NOT_FOUND, RESPONSES, UNAVAILABLE, Problem
from app.http.query import Cursor, Instant, Limit, instant_ms
from app.http.strict import StrictRoute
from app.http.workflow_access import Access, command_id, missing

ExecutionId = Annotated[
    str, Path(description="Id of the execution.", examples=["019a9b2e-7c40-7c3a-9f6b-2f1d7c0a5b11"], max_length=200)
]
OfWorkflow = Annotated[str | None, Query(description="Only executions of this workflow.", examples=["press-overheat"])]
OfStatus = Annotated[
    list[Status] | None, Query(description="Only in this status; may be repeated.", examples=[["failed"]])
]
OfKey = Annotated[str | None, Query(description="Only with this concurrency key.", examples=["press-0001"])]
CommandId = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="A repeat with the same key has no effect.", max_length=200),
]
CONFLICT: Final[dict[int | str, dict[str, Any]]] = {
    409: {"model": Problem, "description": "The execution is not in a state for it."}
}
_ORDER: Final[dict[int | str, dict[str, Any]]] = {**RESPONSES, **NOT_FOUND, **CONFLICT, **UNAVAILABLE}
Order = Cancel | Pause | Resume | RetryExecution | Signal
Route = TypeVar("Route", bound=Callable[..., Awaitable[dict[str, str]]])
_JSON: Final = "application/json"
_LIVE: Final[frozenset[str]] = frozenset({"queued", "running", "paused"})
# What an action can apply to, by the status that the index knows.
APPLIES: Final[Mapping[Action, frozenset[str]]] = {
    "cancel": _LIVE,
    "pause": frozenset({"queued", "running"}),
    "resume": frozenset({"paused"}),
    "signal": _LIVE,
    "retry": frozenset({"failed", "timed_out", "cancelled"}),
}


def executions_router(access: Access) -> APIRouter:
    """The routes below /api/v1/executions."""
    router = APIRouter(prefix="/api/v1/executions", tags=["executions"], route_class=StrictRoute)
    _add_reads(router, access)
    _add_orders(router, access)
    return router


def _add_reads(router: APIRouter, access: Access) -> None:
    index = access.index

    @router.get("", response_model=ExecutionsPage, responses=RESPONSES | UNAVAILABLE, summary="Search, newest first")
    async def list_executions(
        workflow: OfWorkflow = None,
        status: OfStatus = None,
        since: Instant = None,
        until: Instant = None,
        key: OfKey = None,
        cursor: Cursor = None,
        limit: Limit = None,
    ) -> Response:
        wanted = Wanted(
            workflow=workflow,
            statuses=tuple(dict.fromkeys(status or ())),
            key=key,
            since=instant_ms(since, "since"),
            until=instant_ms(until, "until"),
        )
        after, most = decode_cursor(cursor, (int, str)), access.limit(limit)
        complete = index.complete
        rows = await index.ask(index.reader.page, wanted, after, most + 1)
        return _json(_page(rows, most) | {"complete": complete})

    @router.get(
        "/{execution_id}",
        response_model=ExecutionDetail,
        responses=RESPONSES | NOT_FOUND | UNAVAILABLE,
        summary="Show one execution with its input, result and tasks",
    )
    async def show_execution(execution_id: ExecutionId) -> Response:
        found = await index.known(index.reader.detail, execution_id)
        if found is None:
            raise missing(execution_id)
        # A result may be nested as deep as orjson writes, and here it lies one level deeper.
        return Response(msgspec.json.encode(found), media_type=_JSON)

    @router.get(
        "/{execution_id}/history",
        response_model=HistoryPage,
        responses=RESPONSES | NOT_FOUND | UNAVAILABLE,
        summary="The events of one execution, in order",
    )
    async def history(
        execution_id: ExecutionId,
        after_seq: Annotated[int, Query(description="Only events after this one.", ge=-1, le=1 << 31)] = -1,
        limit: Limit = None,
    ) -> Response:
        most = min(limit or access.settings.page_size, access.settings.executions.history_page_max)
        found = await index.known(index.reader.history, execution_id, after_seq, most)
        if found is None:
            raise missing(execution_id)
        return Response(_history(execution_id, found), media_type=_JSON)


def _add_orders(router: APIRouter, access: Access) -> None:
    def order(path: str, summary: str) -> Callable[[Route], Route]:
        return router.post(path, status_code=202, response_model=ToldView, responses=_ORDER, summary=summary)

    @order("/{execution_id}/cancel", "Cancel: running tasks are asked to stop, then ended")
    async def cancel(
        execution_id: ExecutionId, body: CancelOrder | None = None, key: CommandId = None
    ) -> dict[str, str]:
        reason = body.reason if body else ""
        return await _tell(
            access, "cancel", Cancel(execution_id=execution_id, command_id=command_id(key), reason=reason)
        )

    @order("/{execution_id}/pause", "Pause: begin no further task")
    async def pause(execution_id: ExecutionId, key: CommandId = None) -> dict[str, str]:
        return await _tell(access, "pause", Pause(execution_id=execution_id, command_id=command_id(key)))

    @order("/{execution_id}/resume", "Resume after a pause")
    async def resume(execution_id: ExecutionId, key: CommandId = None) -> dict[str, str]:
        return await _tell(access, "resume", Resume(execution_id=execution_id, command_id=command_id(key)))

    @order("/{execution_id}/retry", "Retry from the failed tasks, or again from any task")
    async def retry(execution_id: ExecutionId, body: RetryOrder | None = None, key: CommandId = None) -> dict[str, str]:
        task = body.from_task if body else None
        return await _tell(
            access, "retry", RetryExecution(execution_id=execution_id, command_id=command_id(key), from_task=task)
        )

    @order("/{execution_id}/signal/{name}", "Signal an approval; the body is what it results in")
    async def signal(
        execution_id: ExecutionId,
        name: Annotated[str, Path(description="What the approval waits for.", examples=["approve"], max_length=200)],
        payload: Annotated[Any, Body(description="The task's result.", examples=[{"approved": True}])] = None,
        key: CommandId = None,
    ) -> dict[str, str]:
        _check_payload(access, payload)
        command = Signal(execution_id=execution_id, command_id=command_id(key), name=name, payload=payload)
        return await _tell(access, "signal", command)


async def _tell(
    access: Access, action: Action, command: Cancel | Pause | Resume | RetryExecution | Signal
) -> dict[str, str]:
    row = await access.row(command.execution_id)
    refusal = refused(row, action, command, access.workflow(row))
    if refusal is not None:
        raise refusal
    await access.tell([command])
    return {"execution_id": row.id, "action": action, "command_id": command.command_id}


def refused(row: Row, action: Action, command: Command, workflow: Workflow | None) -> HTTPException | None:
    """Why an action cannot apply, as far as is known here: what happens meanwhile is the owner's to judge."""
    allowed = APPLIES[action]
    if isinstance(command, RetryExecution) and command.from_task is not None:
        allowed |= {"succeeded"}
        if workflow is not None and command.from_task not in workflow.tasks:
            return HTTPException(404, f"Workflow {row.workflow} has no task {command.from_task}.")
    if row.status not in allowed:
        return HTTPException(409, f"The execution is {row.status}; {action} applies to {_listed(allowed)}.")
    if isinstance(command, Signal) and workflow is not None and not _awaited(workflow, command.name):
        return HTTPException(404, f"No approval of workflow {row.workflow} waits for a signal {command.name}.")
    return None


def _awaited(workflow: Workflow, name: str) -> bool:
    """Whether an approval waits for it, by its definition; a name with an expression in it may be any."""
    for task in workflow.tasks.values():
        if task.type == APPROVAL:
            signal = task.params.get("signal", task.name)
            if signal == name or (isinstance(signal, str) and "${" in signal):
                return True
    return False


def _check_payload(access: Access, payload: Any) -> None:
    most = access.starter.input_bytes
    if len(orjson.dumps(payload)) > most:
        raise HTTPException(413, f"The payload may hold {most} bytes at most.")


def _listed(statuses: frozenset[str]) -> str:
    return " or ".join(sorted(statuses))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type=_JSON)


def _page(rows: list[Row], most: int) -> dict[str, Any]:
    last = rows[most - 1] if len(rows) > most else None
    return {
        "items": [row.document() for row in rows[:most]],
        "next_cursor": None if last is None else encode_cursor((last.order, last.id)),
    }


def _history(execution_id: str, page: Page) -> bytes:
    """The events are passed on as they were written."""
    go_on = b"%d" % page.last_seq if page.more else b"null"
    name = orjson.dumps(execution_id)
    return b'{"execution_id":%b,"events":[%b],"next_after_seq":%b}' % (name, b",".join(page.events), go_on)
