"""Routes of the devices: what is known of them, and commands to them."""

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Query

from app.codec import encode_command
from app.domain.command import CommandRefused, DeviceCommand, read_command
from app.http.paging import decode_cursor
from app.http.problems import NOT_FOUND, RESPONSES, UNAVAILABLE
from app.http.query import Cursor, Limit
from app.http.reads import Reads, paged
from app.http.schemas import Accepted, DeviceOrder, DeviceView, GroupOrder, Page
from app.http.strict import StrictRoute
from app.ports import OutRecord
from config.topics import DEVICE_COMMANDS

DeviceId = Annotated[str, Path(description="Identity of the device.", examples=["press-0001"], max_length=200)]
State = Annotated[Literal["ONLINE", "OFFLINE", "UNKNOWN"] | None, Query(description="Only devices in this state.")]
Type = Annotated[str | None, Query(alias="type", description="Only devices of this type.", examples=["press"])]
Site = Annotated[str | None, Query(description="Only devices of this site.")]


def devices_router(reads: Reads) -> APIRouter:
    """The routes below /api/v1/devices."""
    router = APIRouter(prefix="/api/v1/devices", tags=["devices"], route_class=StrictRoute)

    @router.get("", response_model=Page[DeviceView], responses=RESPONSES, summary="List devices by id")
    async def list_devices(
        device_type: Type = None, site: Site = None, state: State = None, cursor: Cursor = None, limit: Limit = None
    ) -> dict[str, Any]:
        found = reads.model.devices(
            reads.now_ms(),
            device_type=device_type,
            site=site,
            state=state,
            after=decode_cursor(cursor, (str,)),
            limit=reads.limit(limit),
        )
        return paged(found)

    @router.get("/{device_id}", response_model=DeviceView, responses=NOT_FOUND | UNAVAILABLE, summary="Show one device")
    async def show_device(device_id: DeviceId) -> dict[str, Any]:
        found = reads.model.device(device_id, reads.now_ms())
        if found is None:
            raise reads.missing(device_id)
        return found

    @router.post(
        "/commands",
        status_code=202,
        response_model=Accepted,
        responses=RESPONSES | UNAVAILABLE,
        summary="Command a group of devices",
    )
    async def command_group(order: GroupOrder) -> DeviceCommand:
        return await _send(reads, order, order.scope, order.target)

    @router.post(
        "/{device_id}/commands",
        status_code=202,
        response_model=Accepted,
        responses=RESPONSES | NOT_FOUND | UNAVAILABLE,
        summary="Command one device",
    )
    async def command_device(device_id: DeviceId, order: DeviceOrder) -> DeviceCommand:
        if not reads.model.knows(device_id):
            raise reads.missing(device_id)
        return await _send(reads, order, "device", device_id)

    return router


async def _send(reads: Reads, order: DeviceOrder, scope: str, target: str | None) -> DeviceCommand:
    """Check by the rules that the devices obey, and return once the broker has acknowledged."""
    at_ms = reads.now_ms()
    fields = order.model_dump(exclude={"scope", "target"}, exclude_none=True)
    raw = {**fields, "command_id": str(uuid.uuid4()), "scope": scope, "target": target, "issued_at": at_ms}
    command = read_command(raw)
    if isinstance(command, CommandRefused):
        raise HTTPException(422, f"The command cannot be obeyed: {command.detail}.")
    key = (target or scope).encode()
    await reads.publish(OutRecord(DEVICE_COMMANDS.name, key, encode_command(command), at_ms))
    return command
