"""The stream of an execution's events as server-sent events: what has happened so far, then what happens."""

import asyncio
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.adapters.execution_reader import Page, Row
from app.errors import Unavailable
from app.http import problems
from app.http.execution_index import ExecutionIndex
from app.metrics import HTTP_REQUESTS
from config.http import ExecutionsSettings

ROUTE: Final = "/api/v1/executions/{execution_id}/stream"
_PREFIX: Final = "/api/v1/executions/"
_SUFFIX: Final = "/stream"
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy in between passes each event on at once
]


class StreamRoutes:
    """Answers streams itself and gives every other request to `rest`.

    A stream holds one page of events and nothing else: what a slow client has not taken yet is not read yet, and one
    that takes nothing for `stream_stalled_s` is closed. It resumes after `Last-Event-ID`.
    """

    def __init__(self, rest: ASGIApp, index: ExecutionIndex, settings: ExecutionsSettings) -> None:
        self._rest = rest
        self._index = index
        self._settings = settings
        self._streams: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        execution_id = _wanted(scope)
        if execution_id is None:
            await self._rest(scope, receive, send)
            return
        try:
            if scope["method"] == "GET":
                code = await self._answer(execution_id, scope, receive, send)
            else:
                code = await _not_served(scope, receive, send)
        except Unavailable as error:
            code = 503
            await _refuse(scope, receive, send, code, str(error))
        HTTP_REQUESTS.labels(ROUTE, str(code)).inc()

    def close(self) -> None:
        """End every stream; their clients come again with the last event they have."""
        for task in self._streams:
            task.cancel()

    async def _answer(self, execution_id: str, scope: Scope, receive: Receive, send: Send) -> int:
        after = _last_event(scope)
        if after is None:
            return await _refuse(scope, receive, send, 400, "Last-Event-ID is the number of an event.")
        if len(self._streams) >= self._settings.streams_max:
            return await _refuse(scope, receive, send, 503, "Too many streams are open.")
        row = await self._index.row(execution_id)
        if row is None:
            return await _refuse(scope, receive, send, 404, f"No execution {execution_id} is known.")
        if row.final and after >= row.last_seq:
            # An EventSource that comes again after the end is told so to stop.
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return 204
        stream = asyncio.create_task(self._stream(execution_id, after, send), name=f"stream {execution_id}")
        gone = asyncio.create_task(_disconnected(receive), name="disconnect")
        self._streams.add(stream)
        try:
            await asyncio.wait({stream, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.discard(stream)
            listens = not gone.done()
            for task in (stream, gone):
                task.cancel()
            ended = await asyncio.gather(stream, gone, return_exceptions=True)
        if listens and isinstance(ended[0], asyncio.CancelledError | Unavailable):
            # `close`, or an index that is away: a whole response, after which the client comes again.
            await self._give(send, {"type": "http.response.body", "body": b""})
        if isinstance(ended[0], Exception) and not isinstance(ended[0], TimeoutError | Unavailable | OSError):
            raise ended[0]
        return 200

    async def _stream(self, execution_id: str, after: int, send: Send) -> None:
        settings = self._settings
        await self._give(send, {"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with self._index.watching(execution_id) as watcher:
            while True:
                page, row = await self._index.ask(self._read, execution_id, after)
                if page is None:
                    break  # forgotten meanwhile
                if page.events:
                    body = b"".join(map(_event, range(after + 1, page.last_seq + 1), page.events))
                    await self._give(send, {"type": "http.response.body", "body": body, "more_body": True})
                    after = page.last_seq
                if row is not None and row.final and after >= row.last_seq:
                    break
                if not page.more and not await watcher.changed(settings.stream_heartbeat_s):
                    await self._give(send, {"type": "http.response.body", "body": b": alive\n\n", "more_body": True})
        await self._give(send, {"type": "http.response.body", "body": b""})

    def _read(self, execution_id: str, after: int) -> tuple[Page | None, Row | None]:
        """The row first: what it says has ended is whole in the page."""
        reader = self._index.reader
        row = reader.get(execution_id)
        return reader.history(execution_id, after, self._settings.stream_page_events), row

    async def _give(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(self._settings.stream_stalled_s):
            await send(message)


def _event(seq: int, body: bytes) -> bytes:
    kind = body.split(b'"type":"', 1)[-1].split(b'"', 1)[0]
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, kind, body)


def _wanted(scope: Scope) -> str | None:
    """The execution's id, None for what others answer."""
    if scope["type"] != "http":
        return None
    path: str = scope["path"]
    if not path.startswith(_PREFIX) or not path.endswith(_SUFFIX):
        return None
    execution_id = path[len(_PREFIX) : -len(_SUFFIX)]
    return execution_id if execution_id and "/" not in execution_id else None


def _last_event(scope: Scope) -> int | None:
    """The number of the last event that the client has; -1 for none, None for nonsense."""
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            return int(value) if value.isdigit() and len(value) < 10 else None
    return -1


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _not_served(scope: Scope, receive: Receive, send: Send) -> int:
    """405, and 204 to who asks for what is served."""
    method, headers = scope["method"], {"Allow": "GET, OPTIONS"}
    if method == "OPTIONS":
        await Response(status_code=204, headers=headers)(scope, receive, send)
        return 204
    detail = f"{method} is not served at {scope['path']}."
    await problems.response(405, detail, scope["path"], headers=headers)(scope, receive, send)
    return 405


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> int:
    headers = {"Retry-After": "1"} if status == 503 else None
    await problems.response(status, detail, scope["path"], headers=headers)(scope, receive, send)
    return status
