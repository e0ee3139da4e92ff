"""What the routes work with: the read model, whether it is complete, the way to Kafka, and the page limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from app.errors import BrokerUnavailable
from app.http.paging import Key, encode_cursor
from app.http.read_model import Document, ReadModel
from app.ports import OutRecord, Publisher
from config.http import HttpSettings


@dataclass(slots=True)
class Reads:
    """Shared by all routes. `publisher` is set once the broker has been reached."""

    model: ReadModel
    settings: HttpSettings
    now_ms: Callable[[], int]
    complete: Callable[[], bool]
    publisher: Publisher | None = None

    def limit(self, asked: int | None) -> int:
        return min(asked or self.settings.page_size, self.settings.page_size_max)

    def missing(self, device_id: str) -> HTTPException:
        """404, or 503 while the model has not read everything: never a wrong 404."""
        if self.complete():
            return HTTPException(404, f"No device {device_id} is known.")
        return HTTPException(503, "The devices have not all been read yet.", headers={"Retry-After": "1"})

    async def publish(self, record: OutRecord) -> None:
        """Return when the record is acknowledged; raises `Unavailable` or `PublishFailed`, both answered 503."""
        if self.publisher is None:
            raise BrokerUnavailable("The broker has not been reached yet.")
        await self.publisher.publish([record])


def paged(found: tuple[list[Document], Key | None]) -> dict[str, Any]:
    items, go_on = found
    return {"items": items, "next_cursor": None if go_on is None else encode_cursor(go_on)}
