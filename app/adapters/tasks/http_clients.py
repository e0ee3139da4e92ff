"""The HTTP connections of tasks: so many requests at once, over a client that is replaced before it can jam."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx

REPLACED_AFTER: Final = 32


class _Shared:
    """One client, how many use it, and how many of its requests were broken off."""

    def __init__(self, client: "httpx.AsyncClient") -> None:
        self.client = client
        self.users = 0
        self.broken_off = 0


class HttpClients:
    """Gives `limit` requests at once a client each, all the same one.

    Whoever has to wait does so here: in httpcore's pool each request that waits is compared with each connection
    whenever any request begins or ends, and 600 of them took a whole core for 20 requests a second. And the pool
    (1.0) loses a connection's place when a request is cancelled between being given it and using it: after a burst of
    time-outs a pool of 100 was jammed for good. So the pool is no limit, and after `REPLACED_AFTER` requests that
    were broken off the next one gets a new client; the old one is closed by the last who uses it.
    """

    def __init__(self, build: "Callable[[], httpx.AsyncClient]", limit: int) -> None:
        self._build = build
        self._turns = asyncio.Semaphore(limit)
        self._shared: _Shared | None = None

    @contextlib.asynccontextmanager
    async def turn(self) -> "AsyncIterator[httpx.AsyncClient]":
        """One request: send it and read its answer within this block."""
        async with self._turns:
            if self._shared is None:
                self._shared = _Shared(self._build())
            shared = self._shared
            shared.users += 1
            try:
                yield shared.client
            except asyncio.CancelledError:
                shared.broken_off += 1
                if shared.broken_off >= REPLACED_AFTER and self._shared is shared:
                    self._shared = None
                raise
            finally:
                shared.users -= 1
                if self._shared is not shared and not shared.users:
                    await shared.client.aclose()

    async def close(self) -> None:
        """A request that is still under way fails."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.client.aclose()
