"""Beats between nodes over TCP: JSON lines on a connection that each node opens to each other.

Whoever accepts says first who it is, so that a stranger at an old address is not taken for the node that was there.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from app.cluster_wire import VIEW_BYTES, node_document
from app.domain.cluster import NodeView

log = logging.getLogger(__name__)

LINE_BYTES: Final = 2 * VIEW_BYTES
CONNECTIONS: Final = 1_000
CONNECT_S: Final = 0.5


class Greeting(msgspec.Struct, frozen=True):
    """Who accepts the connection."""

    node_id: str
    epoch: int


class Beat(msgspec.Struct, frozen=True):
    """One beat. `view` is left out while it is that of the beat before; `heard` says how long ago others were heard."""

    node_id: str
    epoch: int
    heard: dict[str, float] = {}
    view: NodeView | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What the next beat says."""

    view: NodeView
    heard: Mapping[str, float]


_beats: Final = msgspec.json.Decoder(Beat)
_greetings: Final = msgspec.json.Decoder(Greeting)


class BeatServer:
    """Takes the beats of the others. `heard(beat)`; `hung_up(node_id, epoch)` when the connection of one ends."""

    def __init__(
        self,
        greeting: Callable[[], Greeting],
        heard: Callable[[Beat], None],
        hung_up: Callable[[str, int], None],
    ) -> None:
        self._greeting = greeting
        self._heard = heard
        self._hung_up = hung_up
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=LINE_BYTES)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._serving) >= CONNECTIONS:
            writer.close()
            return
        self._serving.add(task)
        last: Beat | None = None
        try:
            writer.write(msgspec.json.encode(self._greeting()) + b"\n")
            while line := await reader.readline():
                last = _beats.decode(line)
                self._heard(last)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.debug("a connection of beats ends: %s", error)
        except asyncio.CancelledError:
            last = None  # it is we who hang up
        finally:
            self._serving.discard(task)
            writer.close()
            if last is not None:
                self._hung_up(last.node_id, last.epoch)


async def beat_to(
    address: str,
    expected: Greeting,
    outgoing: Callable[[], Outgoing],
    own: Callable[[], Greeting],
    interval_s: float,
    refused: Callable[[], None],
) -> None:
    """Beat to one node for as long as nobody cancels; `refused` is called when nobody, or another, listens there.

    When a connection ends that has lasted, the next is tried at once: whether the node is gone shows then.
    """
    clock = asyncio.get_running_loop().time
    while True:
        begun_s = clock()
        try:
            async with _connection(address) as (reader, writer):
                if await _is(expected, reader):
                    await _beat(reader, writer, outgoing, own, interval_s)
                else:
                    refused()
        except ConnectionRefusedError:
            refused()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.debug("the beats to %s end: %s", address, error)
        if clock() - begun_s < 2 * interval_s:
            await asyncio.sleep(interval_s)


@contextlib.asynccontextmanager
async def _connection(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(host, int(port), limit=LINE_BYTES)
    try:
        yield reader, writer
    finally:
        writer.close()


async def _is(expected: Greeting, reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(CONNECT_S):
        line = await reader.readline()
    if not line:
        raise ConnectionResetError("hung up before it said who it is")
    return _greetings.decode(line) == expected


async def _beat(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    outgoing: Callable[[], Outgoing],
    own: Callable[[], Greeting],
    interval_s: float,
) -> None:
    """Until the other side hangs up."""
    ended = asyncio.create_task(reader.read(1), name="end of a connection")
    told: NodeView | None = None
    try:
        while not ended.done():
            said, who = outgoing(), own()
            document: dict[str, Any] = {"node_id": who.node_id, "epoch": who.epoch, "heard": dict(said.heard)}
            if said.view != told:
                document["view"] = node_document(said.view)
                told = said.view
            writer.write(msgspec.json.encode(document) + b"\n")
            async with asyncio.timeout(CONNECT_S * 10):
                await writer.drain()
            await asyncio.wait({ended}, timeout=interval_s)
    finally:
        ended.cancel()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await ended
