"""The routes that start executions, as bare ASGI: at thousands a second every layer of a framework counts."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import PublishFailed, Unavailable
from app.http import problems
from app.http.asgi import client_of
from app.http.execution_ids import repeatable_id
from app.http.rate import Rates
from app.http.start import (
    Accepted,
    Asked,
    Refused,
    Starter,
    check_repeat,
    check_workflow_id,
    parsed,
    priority_option,
    read_body,
    read_item,
    text_option,
)
from app.http.strict import wrong_type
from app.metrics import HTTP_DURATION, HTTP_REQUESTS
from app.ports import OutRecord

log = logging.getLogger(__name__)

SINGLE: Final = "/api/v1/workflows/{workflow_id}/execute"
BATCH: Final = "/api/v1/workflows/{workflow_id}/execute:batch"
_PREFIXES: Final = ("/api/v1/workflows/", "/workflows/")
_OPTIONS: Final = frozenset({"version", "wait", "priority", "key", "raw"})
_ALLOW: Final = ((b"allow", b"OPTIONS, POST"),)
_TRACEPARENT_CHARS: Final = 55
_TURN: Final = 100  # starts of a batch made ready without a breath: 2 ms
_BODY_SLACK_BYTES: Final = 4096  # what an envelope may add to the input


class Answer(NamedTuple):
    """A response before it is sent."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"


class Results(Protocol):
    """What is known of executions here."""

    async def final(self, execution_id: str, timeout_s: float) -> bytes | None:
        """The execution as JSON once it has ended, None when it has not within `timeout_s`."""

    async def first(self, execution_id: str) -> Accepted | None:
        """The execution whose id is this, or this with its partition; None when none is known here."""


class Requested(NamedTuple):
    """What the head of a request says."""

    workflow: str
    options: Mapping[str, str]
    idempotency_key: str | None
    traceparent: str | None
    client: str


class StartRoutes:
    """Answers starts itself and gives every other request to `rest`."""

    def __init__(
        self,
        rest: ASGIApp,
        starter: Starter,
        results: Results | None,
        *,
        read_timeout_s: float,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rest = rest
        self._starter = starter
        self._results = results
        self._read_timeout_s = read_timeout_s
        self._monotonic_s = monotonic_s
        settings = starter.settings
        self._rates = Rates(settings.rate_per_s, settings.rate_burst) if settings.rate_per_s else None
        self._counters: dict[tuple[str, int], Any] = {}
        self._durations = {route: HTTP_DURATION.labels(route) for route in (SINGLE, BATCH)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = start_route(scope)
        if found is None:
            await self._rest(scope, receive, send)
            return
        route, workflow = found
        started_s = time.perf_counter()
        code = 500
        try:
            answer = await self._answer(route, workflow, scope, receive)
            code = answer.status
            await _send(answer, send)
        finally:
            counter = self._counters.get((route, code))
            if counter is None:
                counter = self._counters[route, code] = HTTP_REQUESTS.labels(route, str(code))
            counter.inc()
            self._durations[route].observe(time.perf_counter() - started_s)

    async def _answer(self, route: str, workflow: str, scope: Scope, receive: Receive) -> Answer:
        try:
            if scope["method"] == "OPTIONS":
                return Answer(204, b"", _ALLOW)
            if scope["method"] != "POST":
                raise Refused(405, f"{scope['method']} is not served at {scope['path']}.")
            check_workflow_id(workflow)
            requested = _requested(workflow, scope)
            handle = self._one if route == SINGLE else self._many
            return await handle(requested, scope, receive)
        except Refused as refused:
            return _problem(refused, scope["path"])
        except (Unavailable, PublishFailed) as error:
            return _problem(Refused(503, str(error), retry_after_s=1), scope["path"])
        except Exception as error:
            log.exception(
                "request failed", extra={"action": "http_request_failed", "path": scope["path"], "method": "POST"}
            )
            return _problem(Refused(500, "The server failed to answer; its log says why."), scope["path"], error)

    # ---- one start ----

    async def _one(self, requested: Requested, scope: Scope, receive: Receive) -> Answer:
        starter, options = self._starter, requested.options
        self._grant(requested.client, 1)
        body = await self._body(scope, receive, starter.input_bytes + _BODY_SLACK_BYTES)
        asked = read_body(body, raw=_flag(options.get("raw"), "raw"))
        if options or requested.idempotency_key is not None:
            asked = _with_options(asked, requested)
        wait_s = _wait(options.get("wait"), starter.settings.wait_max_s)
        accepted = await self._first(requested.workflow, asked) or await starter.start(
            requested.workflow, asked, requested.traceparent
        )
        if wait_s and self._results is not None:
            document = await self._results.final(accepted.execution_id, wait_s)
            if document is not None:
                return Answer(200, document, _replayed(accepted))
        return Answer(202, _accepted(accepted), (*_location(accepted), *_replayed(accepted)))

    async def _first(self, workflow: str, asked: Asked) -> Accepted | None:
        """The execution of the same Idempotency-Key, when this node knows it. Raises `Refused` 422."""
        if asked.idempotency_key is None or self._results is None:
            return None
        found = await self._results.first(repeatable_id(workflow, asked.idempotency_key))
        if found is not None:
            check_repeat(asked, found.input_print)
        return found

    # ---- many ----

    async def _many(self, requested: Requested, scope: Scope, receive: Receive) -> Answer:
        settings = self._starter.settings
        if requested.idempotency_key is not None:
            raise Refused(400, "In a batch each start has its own idempotency_key.", field="Idempotency-Key")
        items = _items(await self._body(scope, receive, settings.batch_body_limit_bytes), settings.batch_max)
        self._grant(requested.client, len(items))
        partitions = await self._starter.partitions()
        outcomes: list[dict[str, Any]] = []
        sent: list[tuple[Asked, Accepted]] = []
        records: list[OutRecord] = []
        for index, item in enumerate(items):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            try:
                asked = read_item(item)
                version = asked.version or requested.options.get("version")
                workflow = await self._starter.workflow(requested.workflow, version)
                accepted, record = await self._first(workflow.id, asked), None
                if accepted is None:
                    accepted, record = self._starter.prepare(workflow, asked, partitions, requested.traceparent)
            except Refused as refused:
                outcomes.append({"index": index, "code": refused.status, "detail": refused.detail})
                continue
            if record is not None:
                records.append(record)
                sent.append((asked, accepted))
            outcomes.append({"index": index, "code": 202, **_shown(accepted)})
        if records:
            await self._starter.publish(records)
        for asked, accepted in sent:
            self._starter.remember(asked, accepted)
        return _batch_answer(outcomes, scope["path"])

    # ---- what both need ----

    def _grant(self, client: str, count: int) -> None:
        if self._rates is None:
            return
        wait_s = self._rates.take(client, count, self._monotonic_s())
        if wait_s > 0:
            settings = self._starter.settings
            detail = f"More than {settings.rate_per_s:g} starts a second; try again in {wait_s:.1f} s."
            raise Refused(429, detail, retry_after_s=wait_s + 0.5)

    async def _body(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """The whole body. Raises `Refused` 413 or, when its sender stops in the middle, 408."""
        try:
            async with asyncio.timeout(self._read_timeout_s):
                message = await receive()
                body: bytes = message.get("body", b"")
                if message.get("more_body", False):
                    body = await self._rest_of(body, _declared(scope), receive, limit)
                elif message["type"] == "http.disconnect":
                    raise _broken_off()
        except TimeoutError as error:
            raise Refused(408, f"The body did not arrive within {self._read_timeout_s:g} s.") from error
        return _within(body, limit)

    async def _rest_of(self, begin: bytes, declared: int, receive: Receive, limit: int) -> bytes:
        """A body that comes in parts; no more of it is taken than may be."""
        _within(begin, limit, declared)
        parts, size, more = [begin], len(begin), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _broken_off()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            _within(parts[-1], limit, size)
            more = message.get("more_body", False)
        return b"".join(parts)


def start_route(scope: Scope) -> tuple[str, str] | None:
    """The template and the workflow's id, None for what others answer."""
    if scope["type"] != "http":
        return None
    path: str = scope["path"]
    if path.endswith("/execute"):
        route, rest = SINGLE, path[:-8]
    elif path.endswith("/execute:batch"):
        route, rest = BATCH, path[:-14]
    else:
        return None
    for prefix in _PREFIXES:
        if rest.startswith(prefix):
            return route, rest[len(prefix) :]
    return None


def _requested(workflow: str, scope: Scope) -> Requested:
    """Raises `Refused` 400 for an option that there is not, 415 for a body that is not JSON."""
    key = traceparent = None
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            key = text_option(value.decode("latin-1"), "Idempotency-Key")
        elif name == b"traceparent" and len(value) == _TRACEPARENT_CHARS and value.isascii():
            traceparent = value.decode()
        elif name == b"content-type" and (wrong := wrong_type(value.decode("latin-1"))) is not None:
            raise Refused(415, wrong, field="Content-Type")
    query = scope["query_string"]
    options = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {}
    if unknown := options.keys() - _OPTIONS:
        known = ", ".join(sorted(_OPTIONS))
        raise Refused(400, f"There is no option {min(unknown)}; there are {known}.", field=f"query.{min(unknown)}")
    return Requested(workflow, options, key, traceparent, client_of(scope))


def _with_options(asked: Asked, requested: Requested) -> Asked:
    """The start with what query and header say; they go before the envelope."""
    options = requested.options
    priority = options.get("priority")
    return asked._replace(
        key=text_option(options.get("key"), "query.key") or asked.key,
        priority=asked.priority if priority is None else priority_option(_whole(priority)),
        version=text_option(options.get("version"), "query.version"),
        idempotency_key=requested.idempotency_key,
    )


def _whole(text: str) -> Any:
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 10 else text


def _flag(text: str | None, name: str) -> bool:
    if text not in {None, "", "true", "false", "1", "0"}:
        raise Refused(400, f"{name} is true or false.", field=f"query.{name}")
    return text in {"", "true", "1"}


def _wait(text: str | None, most_s: float) -> float:
    """Seconds to wait for the end; more than allowed is as much as allowed."""
    if text is None:
        return 0.0
    try:
        wait_s = float(text.removesuffix("s"))
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s < float("inf"):
        raise Refused(400, "wait is a number of seconds.", field="query.wait")
    return min(wait_s, most_s)


def _items(body: bytes, most: int) -> list[Any]:
    """The starts of a batch: a list, or {"starts": [...]}."""
    value = parsed(body)
    items = value.get("starts") if isinstance(value, dict) and value.keys() == {"starts"} else value
    if not isinstance(items, list) or not items:
        raise Refused(400, 'A batch is a list of starts, or {"starts": [...]}.', field="body")
    if len(items) > most:
        raise Refused(413, f"A batch may hold {most} starts at most, and this one holds {len(items)}.", field="body")
    return items


def _within(body: bytes, limit: int, size: int = 0) -> bytes:
    """The body. Raises `Refused` 413 when it, or the `size` known of it, is over the limit."""
    if max(size, len(body)) > limit:
        raise Refused(413, f"The body may hold {limit} bytes at most.", field="body")
    return body


def _broken_off() -> Refused:
    return Refused(400, "The body ended before it was whole.", field="body")


def _declared(scope: Scope) -> int:
    value: bytes = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(value) if value.isdigit() else 0


def _shown(accepted: Accepted) -> dict[str, str]:
    return {
        "execution_id": accepted.execution_id,
        "workflow": accepted.workflow,
        "version": accepted.version,
        "status": "queued",
        "status_url": f"/api/v1/executions/{accepted.execution_id}",
    }


def _accepted(accepted: Accepted) -> bytes:
    return orjson.dumps(_shown(accepted))


def _location(accepted: Accepted) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"location", f"/api/v1/executions/{accepted.execution_id}".encode()),)


def _replayed(accepted: Accepted) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"idempotent-replayed", b"true"),) if accepted.known else ()


def _batch_answer(outcomes: list[dict[str, Any]], path: str) -> Answer:
    """202 when any start was accepted, each with its own status; else the problem of all."""
    accepted = sum(outcome["code"] == 202 for outcome in outcomes)
    if accepted:
        body = {"accepted": accepted, "refused": len(outcomes) - accepted, "items": outcomes}
        return Answer(202, orjson.dumps(body))
    statuses = {outcome["code"] for outcome in outcomes}
    status = statuses.pop() if len(statuses) == 1 else 422
    errors = [{"field": f"body[{each['index']}]", "message": each["detail"]} for each in outcomes]
    retry = ((b"retry-after", b"1"),) if status == 503 else ()
    document = problems.document(status, f"None of {len(outcomes)} starts is accepted.", path, errors=errors)
    return Answer(status, document, retry, problems.CONTENT_TYPE.encode())


def _problem(refused: Refused, path: str, cause: Exception | None = None) -> Answer:
    errors = [{"field": refused.field, "message": refused.detail}] if refused.field and cause is None else []
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if refused.status in {429, 503}:
        headers = ((b"retry-after", str(max(1, round(refused.retry_after_s))).encode()),)
    if refused.status == 405:
        headers = _ALLOW
    document = problems.document(
        refused.status, refused.detail, path, errors=errors, title=HTTPStatus(refused.status).phrase
    )
    return Answer(refused.status, document, headers, problems.CONTENT_TYPE.encode())


async def _send(answer: Answer, send: Callable[[Any], Awaitable[None]]) -> None:
    headers = list(answer.headers)
    if answer.status != 204:
        headers += [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
