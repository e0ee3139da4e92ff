"""Bytes of the workflow topics and the commands, runs of events and orders that they are."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from app.domain.workflow.commands import (
    Cancel,
    ChildEnded,
    Command,
    Heartbeat,
    Pause,
    Report,
    Resume,
    RetryExecution,
    Signal,
    Start,
)
from app.domain.workflow.events import EVENT_TYPES, Event
from app.domain.workflow.orders import Recall, TaskOrder

EXECUTION_ID_LENGTH: Final = 200  # of `workflow.commands`: longer ones would not fit names derived from them

Told = Start | Report | Heartbeat | ChildEnded | Cancel | Pause | Resume | Signal | RetryExecution
"""The commands that come by topic; `Admit` and `TimerFired` are made by an execution's owner alone."""


class Run(NamedTuple):
    """The events of one decision of one execution: one record of `workflow.events`."""

    execution_id: str
    workflow: str
    version: str
    epoch: int
    first_seq: int
    events: tuple[Event, ...]


class _Tag(msgspec.Struct):
    """Reads `type` and skips the rest, about 0.3 µs a record."""

    type: str


class _RecallTag(msgspec.Struct):
    """Tells a recall from an order, which has no such field."""

    recalls_before: int | None = None


class _Envelope(msgspec.Struct):
    execution_id: str
    workflow: str
    version: str
    epoch: int
    first_seq: int
    events: list[msgspec.Raw]


_encoder: Final = msgspec.json.Encoder()
_tag: Final = msgspec.json.Decoder(_Tag)
_envelope: Final = msgspec.json.Decoder(_Envelope)
_order: Final = msgspec.json.Decoder(TaskOrder)
_recall: Final = msgspec.json.Decoder(Recall)
_recall_tag: Final = msgspec.json.Decoder(_RecallTag)
_commands: Final[Mapping[str, msgspec.json.Decoder[Told]]] = {
    cls.__dataclass_fields__["type"].default: msgspec.json.Decoder(cls) for cls in Told.__args__
}
_events: Final[Mapping[str, msgspec.json.Decoder[Event]]] = {
    name: msgspec.json.Decoder(cls) for name, cls in EVENT_TYPES.items()
}


# ---- encode


def encode_command(command: Command) -> bytes:
    """A command, its fields by name."""
    return _encoder.encode(command)


def encode_run(execution_id: str, workflow: str, version: str, epoch: int, events: Sequence[Event]) -> bytes:
    """The events of one decision; there is at least one."""
    return _encoder.encode(
        {
            "execution_id": execution_id,
            "workflow": workflow,
            "version": version,
            "epoch": epoch,
            "first_seq": events[0].seq,
            "events": events,
        }
    )


def encode_events(events: Sequence[Event]) -> bytes:
    """The events of one decision as they are in a run: commas between them, nothing around them."""
    return _encoder.encode(events)[1:-1]


def join_run(
    execution_id: str, workflow: str, version: str, epoch: int, first_seq: int, encoded: Sequence[bytes]
) -> bytes:
    """As `encode_run`, of decisions that `encode_events` has encoded."""
    head = _encoder.encode(
        {
            "execution_id": execution_id,
            "workflow": workflow,
            "version": version,
            "epoch": epoch,
            "first_seq": first_seq,
            "events": (),
        }
    )
    return b"".join((head[:-2], b",".join(encoded), b"]}"))


def encode_order(order: TaskOrder) -> bytes:
    """One attempt for a worker."""
    return _encoder.encode(order)


def encode_recall(recall: Recall) -> bytes:
    """A recall, on the topic and under the key of the orders that it means."""
    return _encoder.encode(recall)


# ---- decode


def command_type(value: bytes | None) -> str:
    """The `type` that a record of `workflow.commands` says, known here or not. Raises `ValueError`."""
    if value is None:
        raise ValueError("a command has a value")
    try:
        return _tag.decode(value).type
    except msgspec.MsgspecError as error:
        raise ValueError(_sentence("a command", error)) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"a command is JSON in UTF-8: {error}") from error


def decode_command(value: bytes | None) -> Told:
    """The command in a record's value. Raises `ValueError` with one sentence."""
    name = command_type(value)
    decoder = _commands.get(name)
    if decoder is None:
        raise ValueError(f"no command is called {name!r}: there are {', '.join(_commands)}")
    try:
        command = decoder.decode(value or b"")
    except msgspec.MsgspecError as error:
        raise ValueError(_sentence(f"a {name}", error)) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"a {name} is JSON in UTF-8: {error}") from error
    if not 0 < len(command.execution_id) <= EXECUTION_ID_LENGTH:
        raise ValueError(
            f"a {name} has an execution_id of 1 to {EXECUTION_ID_LENGTH} characters, not {len(command.execution_id)}"
        )
    return command


def decode_run(value: bytes | None) -> Run:
    """The run of events in a record's value. Raises `ValueError` with one sentence."""
    if value is None:
        raise ValueError("a run of events has a value")
    try:
        envelope = _envelope.decode(value)
        events = tuple(_event(raw) for raw in envelope.events)
    except msgspec.MsgspecError as error:
        raise ValueError(_sentence("a run of events", error)) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"a run of events is JSON in UTF-8: {error}") from error
    if not events or any(event.seq != envelope.first_seq + n for n, event in enumerate(events)):
        raise ValueError(f"a run of events counts from its first_seq, {envelope.first_seq}, without a gap")
    return Run(envelope.execution_id, envelope.workflow, envelope.version, envelope.epoch, envelope.first_seq, events)


def _event(raw: msgspec.Raw) -> Event:
    name = _tag.decode(raw).type
    decoder = _events.get(name)
    if decoder is None:
        raise ValueError(f"no event is called {name!r}")
    return decoder.decode(raw)


def decode_recall(value: bytes | None) -> Recall | None:
    """The recall in a record of a task queue, None when it is no recall: it may be an order then."""
    try:
        return _recall.decode(value) if value and _recall_tag.decode(value).recalls_before is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # whoever reads it as an order says what is wrong


def decode_order(value: bytes | None) -> TaskOrder:
    """The order in a record's value. Raises `ValueError` with one sentence."""
    if value is None:
        raise ValueError("an order has a value")
    try:
        return _order.decode(value)
    except msgspec.MsgspecError as error:
        raise ValueError(_sentence("an order", error)) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"an order is JSON in UTF-8: {error}") from error


def _sentence(what: str, error: Exception) -> str:
    return f"{what} cannot be read: {error}"
