"""The HTTP connections of tasks: so many requests at once, over a client that is replaced before it can jam."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from app.adapters.tasks.turns import turn
from app.errors import TaskFailed

if TYPE_CHECKING:
    import httpx

REPLACED_AFTER: Final = 256
CLOSE_S: Final = 2.0

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Shared:
    """One client, how many use it, and how many of its requests were broken off."""

    client: "httpx.AsyncClient"
    users: int = 0
    broken_off: int = 0


class HttpClients:
    """Gives `limit` requests at once a client each, all the same one.

    Whoever has to wait does so here: in httpcore's pool each request that waits is compared with each connection
    whenever any request begins or ends, and 600 of them took a whole core for 20 requests a second. And the pool
    (1.0) loses a connection's place when a request is cancelled between being given it and using it: after a burst of
    time-outs a pool of 100 was jammed for good. So the pool is no limit, and after `REPLACED_AFTER` requests that
    were broken off the next one gets a new client; the old one is closed once nobody uses it, and nobody waits for
    that.
    """

    def __init__(self, build: "Callable[[], httpx.AsyncClient]", limit: int) -> None:
        self._build = build
        self._turns = asyncio.Semaphore(limit)
        self._shared: _Shared | None = None
        self._living: set[_Shared] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._closed = False

    @contextlib.asynccontextmanager
    async def turn(self) -> "AsyncIterator[httpx.AsyncClient]":
        """One request: send it and read its answer within this block. Raises `TaskFailed` once this is closed."""
        async with turn(self._turns):
            if self._closed:
                raise TaskFailed("HttpUnavailable", "the process stops")
            if self._shared is None:
                self._shared = _Shared(self._build())
                self._living.add(self._shared)
            shared = self._shared
            shared.users += 1
            try:
                yield shared.client
            except (asyncio.CancelledError, TimeoutError):
                shared.broken_off += 1
                if shared.broken_off >= REPLACED_AFTER and self._shared is shared:
                    self._shared = None
                raise
            finally:
                shared.users -= 1
                if self._shared is not shared and not shared.users:
                    self._let_go(shared)

    def _let_go(self, shared: _Shared) -> None:
        if shared in self._living:
            self._living.remove(shared)
            closing = asyncio.create_task(_close(shared.client), name="close an HTTP client")
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)

    async def close(self) -> None:
        """A request that is still under way fails, and so does one that waits for its turn."""
        self._closed, self._shared = True, None
        for shared in tuple(self._living):
            self._let_go(shared)
        if self._closings:
            await asyncio.wait(self._closings, timeout=CLOSE_S)


async def _close(client: "httpx.AsyncClient") -> None:
    try:
        await client.aclose()
    except Exception as error:  # noqa: BLE001 - whatever a peer did: nobody needs these connections any more
        log.info("an HTTP client did not close in order: %r", error, extra={"action": "http_client_unclosed"})
