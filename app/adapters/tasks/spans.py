"""The spans of what a task asks of others: a query, a publish to Kafka, an HTTP call.

The attempt that a coroutine works for is found in its context, so that task types need not pass it on. Where traces
are off there is none, and a call costs one look.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from app.adapters.tasks.secrets import REFERENCE
from app.domain.trace import Kind, Span, TraceContext, Value, parse
from app.domain.workflow.orders import TaskOrder
from app.errors import TaskFailed
from app.ports import Tracing
from config.redact import REDACTED, redact_text

if TYPE_CHECKING:
    import httpx

_TEXT_CHARS: Final = 2_000


class _Attempt(NamedTuple):
    """`hides_url`: the definition put a secret into the URL."""

    tracing: Tracing
    context: TraceContext
    hides_url: bool


class Described(NamedTuple):
    """What a call was."""

    name: str
    attributes: dict[str, Value]


class CallSpan:
    """One call, a span once it is over; further `attributes` may be added while it lasts."""

    __slots__ = ("_attempt", "_describe", "_kind", "_start_ns", "attributes", "context")

    def __init__(self, attempt: _Attempt, kind: Kind, describe: Callable[[], Described]) -> None:
        self.attributes: dict[str, Value] = {}
        self.context = attempt.context
        self._attempt = attempt
        self._kind = kind
        self._describe = describe
        self._start_ns = 0

    @property
    def header(self) -> str:
        """The `traceparent` that goes with the call."""
        return self.context.header()

    @property
    def hides_url(self) -> bool:
        """Whether path and query of a URL are a secret's."""
        return self._attempt.hides_url

    def __enter__(self) -> Self:
        if self.context.is_sampled:
            self.context = self.context.at(os.urandom(8).hex())
            self._start_ns = time.time_ns()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not self.context.is_sampled:
            return
        name, found = self._describe()
        attributes = {**found, **self.attributes}
        if error is not None:
            attributes["error.type"] = _type_of(error)
        self._attempt.tracing.ended(
            Span(
                context=self.context,
                parent_id=self._attempt.context.span_id,
                name=name,
                kind=self._kind,
                start_ns=self._start_ns,
                end_ns=max(self._start_ns, time.time_ns()),
                attributes=attributes,
                # Its text may quote what was sent; the span of the attempt has it without secrets.
                error=None if error is None else "",
            )
        )


_attempt: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)
_OFF: Final[AbstractContextManager[None]] = nullcontext()


def enter(tracing: Tracing, order: TaskOrder) -> None:
    """From now on calls of this coroutine are below the attempt of the order."""
    context = parse(order.traceparent)
    if context is not None:
        hides_url = REFERENCE.search(str(order.params.get("url", ""))) is not None
        _attempt.set(_Attempt(tracing, context, hides_url))


def call_span(kind: Kind, describe: Callable[[], Described]) -> AbstractContextManager[CallSpan | None]:
    """A span round one call, described once it is over; None where there is no trace."""
    attempt = _attempt.get()
    return _OFF if attempt is None else CallSpan(attempt, kind, describe)


# ---- by OpenTelemetry's semantic conventions ----


def http_call(method: str, url: "httpx.URL", *, hides_url: bool) -> Described:
    """A request: its URL without user and query and, when a secret is in it, without its path."""
    port = "" if url.port is None else f":{url.port}"
    path = f"/{REDACTED}" if hides_url else url.path
    query = "" if not url.query else f"?{REDACTED}"
    attributes: dict[str, Value] = {
        "http.request.method": method,
        "url.full": redact_text(f"{url.scheme}://{url.host}{port}{path}{query}"),
        "server.address": url.host,
        "server.port": url.port or (443 if url.scheme == "https" else 80),
    }
    return Described(method, attributes)


def sql_call(url: str, operation: str, table: str | None = None, text: str | None = None) -> Described:
    """A statement: never user, password or values; of SQLite not the path of the file."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - a vendor in need
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - a vendor in need

    attributes: dict[str, Value] = {"db.system.name": "other_sql", "db.operation.name": operation}
    try:
        place = make_url(url)
    except (ArgumentError, ValueError):
        return Described(operation, attributes)
    attributes["db.system.name"] = place.get_backend_name()
    if place.host:
        attributes["server.address"] = place.host
        if place.port is not None:
            attributes["server.port"] = place.port
        if place.database:
            attributes["db.namespace"] = place.database
    if table is not None:
        attributes["db.collection.name"] = table
    if text is not None:
        attributes["db.query.text"] = redact_text(text)[:_TEXT_CHARS]
    target = table or attributes.get("db.namespace")
    return Described(operation if target is None else f"{operation} {target}", attributes)


def kafka_call(topic: str, operation: str, kind: str, count: int | None = None) -> Described:
    """A publish, or a slice that is read."""
    attributes: dict[str, Value] = {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": topic,
    }
    if count is not None:
        attributes["messaging.batch.message_count"] = count
    return Described(f"{operation} {topic}", attributes)


def first_word(statement: str) -> str:
    """What a statement does, as SELECT or WITH."""
    words: list[Any] = statement.split(None, 1)
    word = str(words[0]).upper() if words else ""
    return word if word.isalpha() else "QUERY"


def _type_of(error: BaseException) -> str:
    if not isinstance(error, TaskFailed):
        return type(error).__name__
    return str(error.detail["status"]) if error.type == "HttpStatus" else error.type
