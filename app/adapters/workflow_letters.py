"""Reads `workflow.deadletter` and sends back what was given up: executions are retried, commands are sent again.

What was sent back is marked on the topic itself, as in `app.adapters.dead_letters`: a record without a value in the
partition of the dead letter, whose header names its offset. A selection that is repeated sends nothing twice.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal, NamedTuple

import orjson

from app.adapters.dead_letters import MARK, ORIGIN, Place, marked
from app.adapters.topic_reader import Offsets, TopicReader
from app.domain.workflow.commands import RetryExecution
from app.domain.workflow.placement import WRONG_PARTITION, partition_of
from app.ports import InRecord, OutRecord, Publisher
from app.workflow_wire import encode_command
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER

Kind = Literal["execution", "command", "trigger"]
KINDS: Final[tuple[Kind, ...]] = ("execution", "command", "trigger")
LETTERS_MAX: Final = 50_000
VALUE_KEPT_BYTES: Final = 2_048
CHUNK: Final = 200


class WorkflowLetter(NamedTuple):
    """One dead letter.

    An execution that failed names itself; a command or a record of a trigger names where it was read. `value` is its
    original bytes where they are few, None where they must be read again.
    """

    place: Place
    at_ms: int
    kind: Kind
    workflow: str | None
    reason: str
    detail: str
    execution_id: str | None
    task: str | None
    origin: tuple[str, int, int] | None
    key: bytes | None
    value: bytes | None
    value_bytes: int


class WantedLetters(NamedTuple):
    """Which dead letters; what is None or empty does not restrict."""

    places: frozenset[Place] = frozenset()
    kind: Kind | None = None
    workflow: str | None = None
    reason: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def matches(self, letter: WorkflowLetter) -> bool:
        return (
            (not self.places or letter.place in self.places)
            and self.kind in {None, letter.kind}
            and self.workflow in {None, letter.workflow}
            and self.reason in {None, letter.reason}
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms <= self.until_ms)
        )


class SentBack(NamedTuple):
    """What a redrive did: letters settled by kind, and originals that are no longer whole."""

    executions: int = 0
    commands: int = 0
    gone: int = 0


class LetterIndex:
    """The newest dead letters in memory; each `refresh` reads only what has come since the one before."""

    def __init__(self, reader: TopicReader, topic: str = WORKFLOW_DEADLETTER.name, most: int = LETTERS_MAX) -> None:
        self.reader = reader
        self.topic = topic
        self._most = most
        self._letters: dict[Place, WorkflowLetter] = {}
        self._redriven: set[Place] = set()
        self._next: Offsets = {}
        self._turn = asyncio.Lock()

    async def refresh(self) -> None:
        """Read up to the end of now. Raises `UserError` without the topic, `BrokerUnavailable` without a broker."""
        async with self._turn:
            ends = await self.reader.ends(self.topic)
            if self._next.keys() != ends.keys() or any(at > ends[partition] for partition, at in self._next.items()):
                self._letters.clear()  # first read, or another topic under the old name
                self._redriven.clear()
                begins, share = await self.reader.begins(self.topic), self._most // len(ends)
                self._next = {at: max(begins[at], end - share) for at, end in ends.items()}
            if self._next == ends:
                return
            async with aclosing(self.reader.read(self.topic, self._next, ends)) as batches:
                async for batch in batches:
                    for record in batch:
                        self._take(record)
            self._next = ends
            while len(self._letters) > self._most:
                del self._letters[next(iter(self._letters))]
            self._redriven &= self._letters.keys()

    def _take(self, record: InRecord) -> None:
        mark = marked(record)
        if mark is not None:
            self._redriven.add(mark)
        elif (letter := read_letter(record)) is not None:
            self._letters[letter.place] = letter

    def redriven(self, place: Place) -> bool:
        return place in self._redriven

    def find(self, wanted: WantedLetters) -> Iterator[WorkflowLetter]:
        """Those that match, in no order."""
        if wanted.places:
            named = (self._letters.get(place) for place in wanted.places)
            return (letter for letter in named if letter is not None and wanted.matches(letter))
        return filter(wanted.matches, self._letters.values())

    def to_redrive(self, wanted: WantedLetters) -> list[WorkflowLetter]:
        """What a redrive would send, oldest first: not what was redriven, nor records that triggers refused."""
        found = (each for each in self.find(wanted) if each.kind != "trigger" and each.place not in self._redriven)
        return sorted(found, key=lambda each: (each.at_ms, each.place))

    async def original(self, letter: WorkflowLetter) -> bytes | None:
        """The value of a refused command or record, None when not all of it was kept."""
        value = letter.value
        if value is None:
            record = await self.reader.one(self.topic, letter.place.partition, letter.place.offset)
            value = None if record is None else _value(orjson.loads(record.value or b"{}"))
        return value if value is not None and len(value) == letter.value_bytes else None


def read_letter(record: InRecord) -> WorkflowLetter | None:
    """The dead letter in a record; None when there is none."""
    try:
        found: Any = orjson.loads(record.value or b"")
        kind = found["kind"]
        if kind not in KINDS:
            return None
        place = Place(record.partition, record.offset)
        if kind == "execution":
            error = found.get("error") or {}
            status = str(found.get("status", "failed"))
            reason, detail = str(error.get("type") or status), str(error.get("message") or "")
            origin, value = None, b""
        else:
            reason, detail = str(found["reason"]), str(found["detail"])
            origin = (str(found["topic"]), int(found["partition"]), int(found["offset"]))
            value = _value(found)
        return WorkflowLetter(
            place=place,
            at_ms=int(found["at"]),
            kind=kind,
            workflow=found.get("workflow"),
            reason=reason,
            detail=detail,
            execution_id=found.get("execution_id"),
            task=found.get("task"),
            origin=origin,
            key=record.key,
            value=value if len(value) <= VALUE_KEPT_BYTES else None,
            value_bytes=int(found.get("value_bytes", len(value))),
        )
    except (orjson.JSONDecodeError, binascii.Error, KeyError, TypeError, ValueError, AttributeError):
        return None


def _value(document: Mapping[str, Any]) -> bytes:
    return base64.b64decode(document.get("value") or "", validate=True)


async def redrive(
    index: LetterIndex,
    publisher: Publisher,
    letters: Sequence[WorkflowLetter],
    partitions: int,
    *,
    now_ms: Callable[[], int],
    stopped: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[SentBack, None]:
    """Send letters back, chunk by chunk, and tell after each what was done so far.

    (1) the retries and commands of a chunk are acknowledged; (2) their marks are. An end between the two makes a repeat
    send a chunk again, which the engine ignores: a retry is known by its `command_id`, and so are commands.
    """
    done = SentBack()
    retried: set[str] = set()
    for begin in range(0, len(letters), CHUNK):
        chunk = letters[begin : begin + CHUNK]
        sent: list[OutRecord] = []
        marks: list[OutRecord] = []
        at_ms = now_ms()
        for letter in chunk:
            if letter.kind == "execution":
                sent += _retry(letter, retried, partitions, at_ms)
                done = done._replace(executions=done.executions + 1)
            elif (original := await index.original(letter)) is not None:
                sent.append(_again(letter, original, partitions, at_ms))
                done = done._replace(commands=done.commands + 1)
            else:
                done = done._replace(gone=done.gone + 1)
                continue
            headers = [(MARK, str(letter.place.offset).encode())]
            marks.append(OutRecord(index.topic, letter.key, None, at_ms, headers, letter.place.partition))
        await publisher.publish(sent)  # 1
        await publisher.publish(marks)  # 2
        yield done
        if stopped():
            return


def _retry(letter: WorkflowLetter, retried: set[str], partitions: int, at_ms: int) -> Collection[OutRecord]:
    """The order to go on with an execution; of several letters of one execution the first brings it."""
    name = letter.execution_id or ""
    if name in retried:
        return ()
    retried.add(name)
    command = RetryExecution(execution_id=name, command_id=f"redrive-{letter.place}")
    return (
        OutRecord(
            WORKFLOW_COMMANDS.name,
            name.encode(),
            encode_command(command),
            at_ms,
            (),
            partition_of(name, partitions),
        ),
    )


def _again(letter: WorkflowLetter, original: bytes, partitions: int, at_ms: int) -> OutRecord:
    assert letter.origin is not None, "commands and records were read somewhere"
    topic, partition, _ = letter.origin
    if letter.reason == WRONG_PARTITION and letter.key is not None:
        partition = partition_of(letter.key.decode(errors="replace"), partitions)
    return OutRecord(topic, letter.key, original, at_ms, ((ORIGIN, str(letter.place).encode()),), partition)
