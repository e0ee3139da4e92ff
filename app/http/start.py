"""Starting executions: from a request to a command that every in-sync replica holds."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol

import orjson
from starlette.exceptions import HTTPException

from app.domain.workflow.definition import Workflow
from app.domain.workflow.expressions import ExpressionError, Expressions
from app.errors import BrokerUnavailable
from app.http.execution_ids import MAX_CHARS, is_workflow_id, new_id, repeatable_id
from app.http.strict import NotJson, strict_json
from app.ports import Definitions, OutRecord, Publisher
from app.workflow_starts import start_of, start_record
from config.http import StartsSettings
from config.topics import WORKFLOW_COMMANDS

_ENVELOPE: Final = frozenset({"input", "priority", "key"})
_BATCH_ENVELOPE: Final = _ENVELOPE | {"version", "idempotency_key"}
_PRIORITY_MAX: Final = 1_000_000
_ENVELOPE_BYTES: Final = 4096
_REMEMBERED: Final = 100_000
_TRIGGER: Final[Mapping[str, Any]] = {"kind": "http"}


class CommandPublisher(Publisher, Protocol):
    """Sends commands to the partitions of their executions."""

    async def partitions(self, topic: str) -> int:
        """How many partitions `topic` has."""


class Asked(NamedTuple):
    """One start as it was asked for; `input_bytes` is an upper bound of the input's size as JSON."""

    input: Any
    key: str | None = None
    priority: int | None = None
    version: str | None = None
    idempotency_key: str | None = None
    input_bytes: int = 0


class Accepted(NamedTuple):
    """A start that is on its way; `known` when the same start was accepted before.

    `input_print` is the fingerprint of the input it began with, empty where that is not known.
    """

    execution_id: str
    workflow: str
    version: str
    known: bool = False
    input_print: bytes = b""


class Refused(Exception):
    """A start that cannot be accepted: the HTTP status and one sentence."""

    def __init__(self, status: int, detail: str, *, field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s

    def as_http(self) -> HTTPException:
        """The same for routes of the framework."""
        headers = {"Retry-After": str(max(1, round(self.retry_after_s)))} if self.status in {429, 503} else None
        return HTTPException(self.status, self.detail, headers)


First = Callable[[str], "asyncio.Future[Accepted | None]"]
"""Looks the first execution of an idempotent start up, by what its id begins with."""


@dataclass(slots=True)
class Starter:
    """Accepts starts. `publisher` is set once there is a broker; `definitions` and `expressions` with it."""

    settings: StartsSettings
    input_bytes: int
    now_ms: Callable[[], int]
    definitions: Definitions | None = None
    expressions: Expressions | None = None
    publisher: CommandPublisher | None = None
    in_flight: int = 0
    _complete: bool = False
    _repeats: OrderedDict[str, Accepted] = field(default_factory=OrderedDict)
    _prints: OrderedDict[str, bytes] = field(default_factory=OrderedDict)

    async def workflow(self, workflow: str, version: str | None) -> Workflow:
        """The definition that a start means. Raises `Refused` 404 only when everything was read, else 503."""
        # While the topic is first read, `latest` may still be one that was replaced long ago.
        found = self._find(workflow, version) if self._complete else None
        if found is None:
            await self._catch_up()
            found = self._find(workflow, version)
        if found is None:
            raise Refused(404, self._missing(workflow, version), field="version" if version else "workflow")
        if not found.http:
            raise Refused(403, f"Workflow {workflow} has triggers, and http is not among them.", field="workflow")
        return found

    def _find(self, workflow: str, version: str | None) -> Workflow | None:
        if self.definitions is None:
            return None
        return self.definitions.latest(workflow) if version is None else self.definitions.get(workflow, version)

    async def _catch_up(self) -> None:
        try:
            async with asyncio.timeout(self.settings.definitions_wait_ms / 1000):
                if self.definitions is None:
                    raise TimeoutError
                await self.definitions.caught_up()
                self._complete = True
        except TimeoutError as error:
            raise Refused(503, "The definitions have not all been read yet.", retry_after_s=1) from error

    def _missing(self, workflow: str, version: str | None) -> str:
        if version is not None and self._find(workflow, None) is not None:
            return f"Workflow {workflow} has no version {version}."
        return f"No workflow {workflow} is registered."

    async def start(self, workflow: str, asked: Asked, traceparent: str | None = None) -> Accepted:
        """Accept one start: durable when this returns. Raises `Refused`."""
        accepted, record = self.prepare(
            await self.workflow(workflow, asked.version), asked, await self.partitions(), traceparent
        )
        if record is not None:
            await self.publish([record])
            self.remember(asked, accepted)
        return accepted

    async def partitions(self) -> int:
        """The number of partitions executions live on. Raises `Refused` 503."""
        if self.publisher is None:
            raise Refused(503, "The broker has not been reached yet.", retry_after_s=1)
        try:
            async with asyncio.timeout(self.settings.acknowledge_timeout_s):
                return await self.publisher.partitions(WORKFLOW_COMMANDS.name)
        except TimeoutError as error:
            raise Refused(503, "The broker does not answer.", retry_after_s=1) from error

    def prepare(
        self, workflow: Workflow, asked: Asked, partitions: int, traceparent: str | None
    ) -> tuple[Accepted, OutRecord | None]:
        """What to answer and what to send; nothing is sent for a start that was accepted before."""
        if asked.input_bytes > self.input_bytes:
            raise Refused(413, f"The input may hold {self.input_bytes} bytes at most.", field="input")
        execution_id = new_id(at_ms := self.now_ms())
        if asked.idempotency_key is not None:
            execution_id = repeatable_id(workflow.id, asked.idempotency_key)
            check_repeat(asked, self._prints.get(execution_id, b""))
            if (known := self._repeats.get(execution_id)) is not None:
                return known, None
        if self.expressions is None:
            raise Refused(503, "Expressions cannot be evaluated yet.", retry_after_s=1)
        try:
            command = start_of(
                workflow,
                execution_id,
                asked.input,
                _TRIGGER,
                self.expressions,
                partitions,
                at_ms=at_ms,
                key=asked.key,
                traceparent=traceparent,
            )
        except ExpressionError as error:
            raise Refused(422, f"The input gives no concurrency key: {error}", field="input") from error
        if asked.priority is not None:
            command = replace(command, priority=asked.priority)
        if asked.idempotency_key is not None:
            # From here on, for it may arrive even when its sender is told that it has not been acknowledged.
            self._prints[execution_id] = fingerprint(asked.input)
            if len(self._prints) > _REMEMBERED:
                self._prints.popitem(last=False)
        accepted = Accepted(command.execution_id, workflow.id, workflow.version)
        return accepted, start_record(command, partitions, at_ms)

    async def publish(self, records: Sequence[OutRecord]) -> None:
        """Return when all are acknowledged. Raises `Refused` 503, after which they may arrive all the same."""
        if self.publisher is None:
            raise BrokerUnavailable("The broker has not been reached yet.")
        if self.in_flight + len(records) > self.settings.in_flight_max and self.in_flight:
            raise Refused(503, "Too many starts wait for the broker.", retry_after_s=1)
        self.in_flight += len(records)
        try:
            async with asyncio.timeout(self.settings.acknowledge_timeout_s):
                await self.publisher.publish(records)
        except TimeoutError as error:
            raise Refused(
                503,
                f"The broker has not acknowledged within {self.settings.acknowledge_timeout_s:g} s;"
                " repeat with the same Idempotency-Key.",
                retry_after_s=1,
            ) from error
        finally:
            self.in_flight -= len(records)

    def remember(self, asked: Asked, accepted: Accepted) -> None:
        """A repeat of an idempotent start is answered as the first was, also when `latest` has moved."""
        if asked.idempotency_key is None:
            return
        self._repeats[repeatable_id(accepted.workflow, asked.idempotency_key)] = accepted._replace(known=True)
        if len(self._repeats) > _REMEMBERED:
            self._repeats.popitem(last=False)


def read_body(body: bytes, *, raw: bool) -> Asked:
    """A body of one start: the input itself, or an envelope of `input` beside `priority` and `key`.

    `raw` takes the body for the input whatever it looks like. Raises `Refused` 400.
    """
    if not body:
        return Asked({})
    value = parsed(body)
    if raw or not _is_envelope(value, _ENVELOPE):
        return Asked(value, input_bytes=len(body))
    return _from_envelope(value, len(body) if len(body) < _ENVELOPE_BYTES else None)


def read_item(value: Any) -> Asked:
    """One start of a batch: an envelope, or the input itself. Raises `Refused` 400."""
    if not _is_envelope(value, _BATCH_ENVELOPE):
        return Asked(value, input_bytes=len(orjson.dumps(value)))
    return _from_envelope(value, None)


def parsed(body: bytes) -> Any:
    """The JSON of a body. Raises `Refused` 400 with the place of the mistake."""
    try:
        return strict_json(body)
    except NotJson as error:
        raise Refused(400, str(error), field="body") from error


def text_option(value: Any, name: str) -> str | None:
    """An option that is text of 1 to 200 characters. Raises `Refused` 400."""
    if value is None or (isinstance(value, str) and 0 < len(value) <= MAX_CHARS and value.isprintable()):
        return value
    raise Refused(400, f"{name} is text of 1 to {MAX_CHARS} printable characters.", field=name)


def fingerprint(given: Any) -> bytes:
    """The same for inputs that are the same, whatever the order of their fields."""
    return hashlib.blake2b(orjson.dumps(given, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def check_repeat(asked: Asked, first: bytes) -> None:
    """Raises `Refused` 422 for a repeat that is none: the first start of its key had another input."""
    if first and first != fingerprint(asked.input):
        detail = "This Idempotency-Key was used with another input; a new start needs a new key."
        raise Refused(422, detail, field="Idempotency-Key")


def check_workflow_id(workflow: str) -> None:
    """Raises `Refused` 400 for what can be no id."""
    if not is_workflow_id(workflow):
        raise Refused(400, "A workflow's id is letters, digits, dots, dashes and underscores.", field="workflow")


def priority_option(value: Any) -> int | None:
    """A priority. Raises `Refused` 400."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _PRIORITY_MAX):
        return value
    raise Refused(400, f"priority is a whole number from -{_PRIORITY_MAX} to {_PRIORITY_MAX}.", field="priority")


def _is_envelope(value: Any, names: frozenset[str]) -> bool:
    return isinstance(value, dict) and "input" in value and value.keys() <= names


def _from_envelope(value: dict[str, Any], input_bytes: int | None) -> Asked:
    given = value["input"]
    return Asked(
        given,
        text_option(value.get("key"), "key"),
        priority_option(value.get("priority")),
        text_option(value.get("version"), "version"),
        text_option(value.get("idempotency_key"), "idempotency_key"),
        len(orjson.dumps(given)) if input_bytes is None else input_bytes,
    )
