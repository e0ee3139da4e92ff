"""The folder of a run as records, one kind a file (`app.chaos.checker` describes them)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from app.errors import UserError

Outcome = Literal["ok", "fail", "info"]
T = TypeVar("T")

RUN: Final = "run.json"
OPS: Final = "ops.jsonl"
LEDGER: Final = "ledger.jsonl"
FAULTS: Final = "faults.jsonl"
WITNESS: Final = "witness.jsonl"
ACKS: Final = "acks.jsonl"
BOOKS: Final = "books.jsonl"


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault of the schedule."""

    number: int
    kind: str


@dataclass(frozen=True, slots=True)
class Plan:
    """run.json: what was planned, and where the product is.

    `ok_share` is asked of the starts in calm, `acknowledged_share` of all that were planned, faults or not.
    `in_order` says that each device sends its readings in the order of their time, so that none may be called late.
    """

    bootstrap: str
    started_ns: int
    healed_ns: int
    ended_ns: int
    seed: int = 0
    client_id: str = "headrace"
    planned_starts: int = 0
    planned_faults: tuple[PlannedFault, ...] = ()
    effects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    end_within_s: float = 30.0
    ok_share: float = 0.95
    acknowledged_share: float = 0.5
    settle_s: float = 2.0
    telemetry: bool = False
    in_order: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpLine:
    """A line of ops.jsonl."""

    op: int
    what: str
    phase: Literal["intent", "ok", "fail", "info"]
    at_ns: int
    key: str | None = None
    execution: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One start, its two lines put together: asked for at `at_ns`, its intent, with an outcome at `until_ns`."""

    key: str
    at_ns: int
    outcome: Outcome
    execution: str | None = None
    until_ns: int | None = None


@dataclass(frozen=True, slots=True)
class EffectLine:
    """A line of ledger.jsonl."""

    kind: Literal["accepted", "repeat", "zombie"]
    execution: str
    step: str
    attempt: int
    token: int
    hash: str
    key: str
    wall_ns: int = 0


@dataclass(frozen=True, slots=True)
class FaultLine:
    """A line of faults.jsonl; `proof` is what was seen of its having happened."""

    number: int
    fault: str
    at_ns: int
    until_ns: int | None = None
    proof: Any = None


@dataclass(frozen=True, slots=True)
class WitnessLine:
    """A line of witness.jsonl: a record as it was read during the run, and the executions that it ended."""

    topic: str
    partition: int
    offset: int
    hash: str
    at_ns: int
    ended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AckLine:
    """A line of acks.jsonl: what came of the seqs `first` to `last` of a session."""

    device: str
    session: str | int
    first: int
    last: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class BookLine:
    """A line of books.jsonl: a producer's last word."""

    producer: str
    generated: int
    acknowledged: int
    spooled: int = 0
    dead_lettered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Folder:
    """Everything a run has left; None stands for a file that is not there."""

    plan: Plan
    requests: Sequence[Request] | None = None
    effects: Sequence[EffectLine] | None = None
    faults: Sequence[FaultLine] | None = None
    witness: Sequence[WitnessLine] | None = None
    acks: Sequence[AckLine] | None = None
    books: Sequence[BookLine] | None = None


def read_folder(path: Path) -> Folder:
    """Every file. Raises `UserError` when one cannot be read, but for a last line that was cut."""
    try:
        plan = msgspec.json.decode((path / RUN).read_bytes(), type=Plan)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{RUN} of the run cannot be read: {error}") from error
    ops = _lines(path / OPS, OpLine)
    return Folder(
        plan,
        None if ops is None else requests_of(ops),
        _lines(path / LEDGER, EffectLine),
        _lines(path / FAULTS, FaultLine),
        _lines(path / WITNESS, WitnessLine),
        _lines(path / ACKS, AckLine),
        _lines(path / BOOKS, BookLine),
    )


def _lines(path: Path, kind: type[T]) -> list[T] | None:
    return list(_decoded(path, kind)) if path.exists() else None


def _decoded(path: Path, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise UserError(f"{path.name}, line {number}: {error}") from error


def requests_of(lines: Iterable[OpLine]) -> list[Request]:
    """The starts of a log; one without an outcome is `info`.

    Raises `UserError` for an outcome of nothing: the driver must log what it means to do before it does it.
    """
    found: dict[int, Request] = {}
    for line in lines:
        if line.what != "start":
            continue
        if line.phase == "intent":
            found[line.op] = Request(line.key or "", line.at_ns, "info")
            continue
        if line.op not in found:
            raise UserError(f"{OPS}: op {line.op} is {line.phase}, and nothing says that it was meant")
        meant = found[line.op]
        found[line.op] = Request(meant.key, meant.at_ns, line.phase, line.execution, line.at_ns)
    return list(found.values())
