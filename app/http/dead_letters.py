"""Routes of the engine's dead letters: what was given up and why, and the way back."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from app.adapters.dead_letters import Place
from app.adapters.workflow_letters import Kind, LetterIndex, SentBack, WantedLetters, WorkflowLetter, redrive
from app.errors import BrokerUnavailable
from app.http.paging import decode_cursor, page
from app.http.problems import NOT_FOUND, RESPONSES, UNAVAILABLE
from app.http.query import Cursor, Instant, Limit, instant_ms
from app.http.reads import paged
from app.http.schedules import OfWorkflow
from app.http.schemas import Page
from app.http.strict import StrictRoute
from app.http.workflow_access import Access
from config.topics import WORKFLOW_COMMANDS

PlaceId = Annotated[
    str, Path(description="Its place: partition:offset.", examples=["0:42"], pattern=r"^\d{1,6}:\d{1,19}$")
]
OfKind = Annotated[Kind | None, Query(description="Executions that failed, commands or records that were refused.")]
OfReason = Annotated[str | None, Query(description="Only this reason.", examples=["HttpStatus"], max_length=200)]
IsRedriven = Annotated[bool | None, Query(description="Only those that were redriven, or were not.")]
_SHOWN: Final = 100
_EXAMPLE: Final[dict[str, Any]] = {
    "id": "0:42",
    "at": 1763689000950,
    "kind": "execution",
    "workflow": "press-overheat",
    "reason": "HttpStatus",
    "detail": "the receiver answered 500",
    "execution_id": "019a9b2e-7c40-7c3a-9f6b-2f1d7c0a5b11",
    "task": "notify",
    "origin": None,
    "value_bytes": 0,
    "redriven": False,
}


class DeadLetterView(BaseModel):
    """One dead letter; times in ms UTC."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str = Field(description="Its place on workflow.deadletter, partition:offset.")
    at: int
    kind: Kind
    workflow: str | None
    reason: str
    detail: str
    execution_id: str | None
    task: str | None
    origin: str | None = Field(description="Where a command or record was read: topic partition:offset.")
    value_bytes: int
    redriven: bool


class DeadLetterDetail(DeadLetterView):
    """One dead letter with the command or record that was refused, as text."""

    value: str | None


class RedriveOrder(BaseModel):
    """Which dead letters to send back: by ids, by a filter, or all."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"ids": ["0:42"]}, {"workflow": "press-overheat", "dry_run": True}]},
    )

    ids: list[str] | None = Field(None, max_length=10_000)
    kind: Kind | None = None
    workflow: str | None = Field(None, max_length=128)
    reason: str | None = Field(None, max_length=200)
    since: int | str | None = None
    until: int | str | None = None
    all: bool = False
    dry_run: bool = False
    limit: int = Field(10_000, ge=1, le=50_000)


class RedriveView(BaseModel):
    """What was, or would be, sent back; what was redriven before and records of triggers never are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "matched": 2,
                    "executions": 2,
                    "commands": 0,
                    "gone": 0,
                    "more": False,
                    "dry_run": False,
                    "ids": ["0:42", "3:7"],
                }
            ]
        }
    )

    matched: int
    executions: int
    commands: int
    gone: int = Field(description="Commands of which only the beginning was kept.")
    more: bool
    dry_run: bool
    ids: list[str] = Field(description="The first 100.")


def dead_letters_router(access: Access, index: LetterIndex) -> APIRouter:
    """The routes below /api/v1/dead-letters, and POST /api/v1/dead-letters:redrive."""
    router = APIRouter(tags=["dead letters"], route_class=StrictRoute)
    _add_reads(router, access, index)

    @router.post(
        "/api/v1/dead-letters:redrive",
        status_code=202,
        responses=RESPONSES | UNAVAILABLE,
        summary="Retry executions that failed and send refused commands again, each once",
    )
    async def redrive_letters(order: RedriveOrder) -> RedriveView:
        wanted = _wanted(order)
        await _refreshed(access, index)
        found = index.to_redrive(wanted)
        chosen, more = found[: order.limit], len(found) > order.limit
        if order.dry_run:
            executions = sum(each.kind == "execution" for each in chosen)
            done = SentBack(executions, len(chosen) - executions)
        else:
            done = await _redriven(access, index, chosen)
        return RedriveView(
            matched=len(chosen),
            executions=done.executions,
            commands=done.commands,
            gone=done.gone,
            more=more,
            dry_run=order.dry_run,
            ids=[str(each.place) for each in chosen[:_SHOWN]],
        )

    return router


def _add_reads(router: APIRouter, access: Access, index: LetterIndex) -> None:
    @router.get(
        "/api/v1/dead-letters",
        response_model=Page[DeadLetterView],
        responses=RESPONSES | UNAVAILABLE,
        summary="List dead letters, newest first",
    )
    async def list_letters(
        kind: OfKind = None,
        workflow: OfWorkflow = None,
        reason: OfReason = None,
        redriven: IsRedriven = None,
        since: Instant = None,
        until: Instant = None,
        cursor: Cursor = None,
        limit: Limit = None,
    ) -> dict[str, Any]:
        wanted = WantedLetters(
            frozenset(), kind, workflow, reason, instant_ms(since, "since"), instant_ms(until, "until")
        )
        after = decode_cursor(cursor, (int, int, int))
        await _refreshed(access, index)
        found = (each for each in index.find(wanted) if redriven in {None, index.redriven(each.place)})
        items, go_on = page(
            found, lambda each: (-each.at_ms, -each.place[0], -each.place[1]), after, access.limit(limit)
        )
        return paged(([_document(each, index) for each in items], go_on))

    @router.get(
        "/api/v1/dead-letters/{place}",
        response_model=DeadLetterDetail,
        responses=RESPONSES | NOT_FOUND | UNAVAILABLE,
        summary="Show one dead letter",
    )
    async def show_letter(place: PlaceId) -> dict[str, Any]:
        await _refreshed(access, index)
        found = next(index.find(WantedLetters(frozenset({_place(place)}))), None)
        if found is None:
            raise HTTPException(404, f"There is no dead letter {place}.")
        value = None if found.kind == "execution" else await index.original(found)
        return {**_document(found, index), "value": None if value is None else value.decode(errors="backslashreplace")}


async def _refreshed(access: Access, index: LetterIndex) -> None:
    timeout_s = access.settings.starts.acknowledge_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            await index.refresh()
    except TimeoutError as error:
        raise BrokerUnavailable(f"The dead letters could not be read within {timeout_s:g} s.") from error


async def _redriven(access: Access, index: LetterIndex, chosen: list[WorkflowLetter]) -> SentBack:
    starter = access.starter
    if starter.publisher is None:
        raise BrokerUnavailable("The broker has not been reached yet.")
    partitions = await starter.publisher.partitions(WORKFLOW_COMMANDS.name)
    steps = redrive(index, starter.publisher, chosen, partitions, now_ms=starter.now_ms)
    return ([SentBack()] + [done async for done in steps])[-1]


def _wanted(order: RedriveOrder) -> WantedLetters:
    """Raises HTTP 400 for what would reach more than was meant."""
    filters = (order.kind, order.workflow, order.reason, order.since, order.until)
    filtered = any(each is not None for each in filters)
    if order.ids is not None and (order.all or filtered):
        raise HTTPException(400, "Name dead letters by ids, or a filter, not both.")
    if not order.ids and not order.all and not filtered:
        raise HTTPException(400, "Name a filter or ids, or say all: true.")
    since, until = (None if each is None else str(each) for each in (order.since, order.until))
    return WantedLetters(
        frozenset(map(_place, order.ids or ())),
        order.kind,
        order.workflow,
        order.reason,
        instant_ms(since, "since"),
        instant_ms(until, "until"),
    )


def _place(text: str) -> Place:
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal() and len(text) <= 30):
        raise HTTPException(400, f"{text[:30]}: an id of a dead letter is partition:offset, as in 0:42.")
    return Place(int(partition), int(offset))


def _document(letter: WorkflowLetter, index: LetterIndex) -> dict[str, Any]:
    origin = letter.origin
    return {
        "id": str(letter.place),
        "at": letter.at_ms,
        "kind": letter.kind,
        "workflow": letter.workflow,
        "reason": letter.reason,
        "detail": letter.detail,
        "execution_id": letter.execution_id,
        "task": letter.task,
        "origin": None if origin is None else f"{origin[0]} {origin[1]}:{origin[2]}",
        "value_bytes": letter.value_bytes,
        "redriven": index.redriven(letter.place),
    }
