r"""Executions as rows: a small header that a scan can read, and the runs of events that are their history.

| row | holds |
|---|---|
| `x` id | a live execution: header, then the runs since the last sealed chunk |
| `f` id | the same of one that has ended |
| `q` id | the row of one that could not be read, put aside as it was |
| `h` id `\x00` chunk (4 bytes, big endian) | runs sealed because the row had grown, never written again |

A run is what one record of `workflow.events` carries, byte for byte; the state is their fold. A decision writes
the header and the open runs only, so that its cost does not grow with the history.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

LIVE: Final = b"x"
ENDED: Final = b"f"
SEALED: Final = b"h"
ASIDE: Final = b"q"
_SIZE: Final = struct.Struct(">I")
_CHUNK: Final = struct.Struct(">I")
_FIRST_SEQ: Final = struct.Struct(">I")
_END: Final = b"\xff"

Get = Callable[[bytes], bytes | None]


class Header(msgspec.Struct, array_like=True, gc=False):
    """What a scan must know of an execution without reading its events.

    `arrival` is its place in the line of those that wait for the limiter; `active` says that executors have work of
    it in hand. `next_seq` follows its last event; `chunks` are sealed; `open_events` lie in this row. `at` is its
    last event's instant, `began_at` when the limiter let it begin, `own_limit` the limit that its trigger brought.
    """

    workflow: str
    version: str
    key: str | None
    status: str
    priority: int
    admitted: bool
    active: bool
    arrival: int
    next_seq: int
    chunks: int
    open_events: int
    at: int
    run: int = 1
    began_at: int | None = None
    notify: str | None = None
    own_limit: int | None = None


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Header).decode


class History:
    """An execution's rows in memory: the header as last written, and the open runs with their first seqs."""

    __slots__ = ("header", "open_bytes", "runs")

    def __init__(self, header: Header, runs: list[bytes]) -> None:
        self.header = header
        self.runs = runs
        self.open_bytes = sum(map(len, runs))

    def append(self, run: bytes, events: int) -> None:
        """One more run of `events` events."""
        self.runs.append(run)
        self.open_bytes += len(run)
        self.header.open_events += events

    def seal(self, execution_id: str, first_seq: int) -> tuple[bytes, bytes]:
        """The open runs as a chunk of their own, which begins with `first_seq`; nothing is open any more."""
        header = self.header
        row = chunk_key(execution_id, header.chunks), _FIRST_SEQ.pack(first_seq) + pack_runs(self.runs)
        header.chunks += 1
        header.open_events = 0
        self.runs = []
        self.open_bytes = 0
        return row

    def to_bytes(self) -> bytes:
        """The row."""
        head = _encode(self.header)
        return b"".join((_SIZE.pack(len(head)), head, *_framed(self.runs)))


def live_key(execution_id: str) -> bytes:
    """Of the row of a live execution."""
    return LIVE + execution_id.encode()


def ended_key(execution_id: str) -> bytes:
    """Of the row of one that has ended."""
    return ENDED + execution_id.encode()


def aside_key(execution_id: str) -> bytes:
    """Of the row of one that could not be read."""
    return ASIDE + execution_id.encode()


def chunk_key(execution_id: str, chunk: int) -> bytes:
    """Of a sealed chunk; ids hold no zero byte."""
    return SEALED + execution_id.encode() + b"\x00" + _CHUNK.pack(chunk)


def id_of(key: bytes) -> str:
    """The execution of an `x` or `f` row."""
    return key[1:].decode()


def header_of(row: bytes) -> Header:
    """Only the header."""
    return _decode(memoryview(row)[4 : 4 + _SIZE.unpack_from(row)[0]])


def history_of(row: bytes) -> History:
    """Header and open runs."""
    size = _SIZE.unpack_from(row)[0]
    return History(_decode(memoryview(row)[4 : 4 + size]), list(unpack_runs(row, 4 + size)))


def load(execution_id: str, get: Get) -> tuple[History, bool] | None:
    """An execution's history and whether it is live; None when there is none."""
    row = get(live_key(execution_id))
    if row is not None:
        return history_of(row), True
    row = get(ended_key(execution_id))
    return None if row is None else (history_of(row), False)


def all_runs(execution_id: str, history: History, get: Get) -> Iterator[bytes]:
    """Every run of an execution, oldest first."""
    for chunk in range(history.header.chunks):
        yield from sealed_runs(execution_id, chunk, get)
    yield from history.runs


def runs_from(execution_id: str, history: History, get: Get, seq: int) -> Iterator[bytes]:
    """The runs from the one that holds event `seq` on, a page of a long history: whole chunks before it stay unread."""
    firsts: list[int] = []
    for chunk in range(history.header.chunks):
        packed = get(chunk_key(execution_id, chunk))
        assert packed is not None, f"chunk {chunk} of {execution_id} is missing"
        firsts.append(_FIRST_SEQ.unpack_from(packed)[0])
        if firsts[-1] > seq:
            break
    begin = max((number for number, first in enumerate(firsts) if first <= seq), default=0)
    for chunk in range(begin, history.header.chunks):
        yield from sealed_runs(execution_id, chunk, get)
    yield from history.runs


def sealed_runs(execution_id: str, chunk: int, get: Get) -> Iterator[bytes]:
    """The runs of one chunk."""
    packed = get(chunk_key(execution_id, chunk))
    assert packed is not None, f"chunk {chunk} of {execution_id} is missing"
    yield from unpack_runs(packed, _FIRST_SEQ.size)


def pack_runs(runs: list[bytes]) -> bytes:
    """Runs one after the other, each behind its length."""
    return b"".join(_framed(runs))


def unpack_runs(packed: bytes, at: int = 0) -> Iterator[bytes]:
    """The runs from position `at` on."""
    end = len(packed)
    while at < end:
        size = _SIZE.unpack_from(packed, at)[0]
        at += _SIZE.size
        yield packed[at : at + size]
        at += size


def _framed(runs: list[bytes]) -> Iterator[bytes]:
    for run in runs:
        yield _SIZE.pack(len(run))
        yield run
