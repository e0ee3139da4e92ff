"""A TCP proxy that misbehaves on command: late, slow, silent, reset, or cut between request and answer.

One `Link` listens on one port and forwards to one target. What it does to traffic is the worst of the `Weather`s that
are active at that time, which come and go in any order; what it has done is counted, so that a fault that met no
traffic is known to prove nothing.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, Self

HOST: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 65_536
# Chunks on their way in one direction: enough for the delay times the rate of these tests.
_QUEUE_CHUNKS: Final = 256
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: close sends RST

State = Literal["open", "hole", "down"]
# From mild to severe. A link that is down passes nothing either, and refuses what a hole would take.
_SEVERITY: Final[tuple[State, ...]] = ("open", "hole", "down")


@dataclass(frozen=True, slots=True)
class Weather:
    """What is done to traffic. `hole`: taken and never passed on. `down`: refused. Each latency is of one direction."""

    state: State = "open"
    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0


CLEAR: Final = Weather()


def worst(weathers: Collection[Weather]) -> Weather:
    """What several at once come to, whatever their order; of none `CLEAR`.

    Each field is taken by itself: the state as `open` < `hole` < `down`, the longest latency, the widest jitter, the
    lowest rate that is one.
    """
    return Weather(
        max((each.state for each in weathers), key=_SEVERITY.index, default=CLEAR.state),
        max((each.latency_s for each in weathers), default=CLEAR.latency_s),
        max((each.jitter_s for each in weathers), default=CLEAR.jitter_s),
        min((each.bytes_per_s for each in weathers if each.bytes_per_s), default=CLEAR.bytes_per_s),
    )


@dataclass(slots=True)
class Counts:
    """What a link has seen and done."""

    connections: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    blocked_bytes: int = 0
    delayed_chunks: int = 0
    narrowed_chunks: int = 0
    refused: int = 0
    resets: int = 0
    cuts: int = 0


@dataclass(slots=True, eq=False)
class Cuts:
    """Of one fault: answers that are still to be cut, and those that were."""

    left: int
    done: int = 0


class Link:
    """One listener with one target; use as a context manager."""

    def __init__(self, port: int, target_port: int, chance: random.Random, name: str = "") -> None:
        self.port = port
        self.name = name or f"{port}→{target_port}"
        self.weather = CLEAR  # of those that are active the worst
        self.counts = Counts()
        self._target_port = target_port
        self._chance = chance
        self._active: list[Weather] = []
        self._cuts: list[Cuts] = []
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]  # with port 0 a free one was taken
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None, "entered"
        self._server.close()
        for pair in list(self._pairs):
            pair.close()
        await asyncio.gather(*(pair.task for pair in self._pairs if pair.task), return_exceptions=True)
        await self._server.wait_closed()

    def reset(self) -> int:
        """Reset every connection; how many there were."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.close()
        self.counts.resets += len(pairs)
        return len(pairs)

    @property
    def is_clear(self) -> bool:
        """Whether nothing is done to traffic, and nothing is about to be."""
        return not self._active and not self._cuts

    @contextmanager
    def cutting(self, count: int) -> Iterator[Cuts]:
        """While the block lasts, let so many requests through and reset the connection before their answers."""
        cuts = Cuts(count)
        self._cuts.append(cuts)
        try:
            yield cuts
        finally:
            self._cuts.remove(cuts)

    def take_cut(self) -> bool:
        """Whether an answer that comes now is to be cut; it is taken from the oldest who wants one."""
        for cuts in self._cuts:
            if cuts.left > 0:
                cuts.left -= 1
                cuts.done += 1
                self.counts.cuts += 1
                return True
        return False

    @property
    def is_cutting(self) -> bool:
        return any(cuts.left > 0 for cuts in self._cuts)

    def delay_s(self) -> float:
        """How late the next chunk is."""
        weather = self.weather
        if not weather.latency_s:
            return 0.0
        self.counts.delayed_chunks += 1
        return max(0.0, weather.latency_s + self._chance.uniform(-weather.jitter_s, weather.jitter_s))

    def narrow_s(self, size: int) -> float:
        """How long a chunk of that size takes."""
        rate = self.weather.bytes_per_s
        if not rate:
            return 0.0
        self.counts.narrowed_chunks += 1
        return size / rate

    @contextmanager
    def under(self, weather: Weather) -> Iterator[Counts]:
        """This weather while the block lasts, together with all others whose blocks do; see `worst`.

        Blocks may begin and end in any order: each takes away its own weather and no other.
        """
        self._active.append(weather)
        self._obey()
        try:
            yield self.counts
        finally:
            self._active.remove(weather)  # or its equal, which is the same to traffic
            self._obey()

    def _obey(self) -> None:
        """What is active has changed. A hole ends with a reset: what it swallowed is gone from the stream."""
        before, self.weather = self.weather.state, worst(self._active)
        now = self.weather.state
        if now != before and (before == "hole" or now == "down"):
            self.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        if self.weather.state == "down":
            self.counts.refused += 1
            _reset(writer)
            return
        pair = _Pair(self, reader, writer)
        self._pairs.add(pair)
        pair.task = asyncio.current_task()
        try:
            await pair.run(self._target_port)
        finally:
            pair.close()
            self._pairs.discard(pair)


class _Pair:
    """A client's connection and ours to the target."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._reader, self._writer = reader, writer
        self._upstream: asyncio.StreamWriter | None = None
        self._asked = False  # while answers are cut: a request went through and waits for its answer
        self.task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def run(self, target_port: int) -> None:
        """Until either side ends."""
        try:
            reader, self._upstream = await asyncio.open_connection(HOST, target_port)
        except OSError:
            return  # nobody listens there; the client learns it by the reset
        ways = {
            asyncio.create_task(self._pass(self._reader, self._upstream, upward=True)),
            asyncio.create_task(self._pass(reader, self._writer, upward=False)),
        }
        ended = asyncio.create_task(self._ended.wait())
        try:
            left = ways
            while left and not ended.done():
                done, pending = await asyncio.wait({*left, ended}, return_when=asyncio.FIRST_COMPLETED)
                left = {way for way in left if way in pending}
                if any(way in done and not way.result() for way in ways):
                    return  # broken or cut, so that the other way has no purpose any more
        finally:
            for task in (*ways, ended):
                task.cancel()
            await asyncio.gather(*ways, ended, return_exceptions=True)

    def close(self) -> None:
        """Reset both sides."""
        self._ended.set()
        for writer in (self._writer, self._upstream):
            if writer is not None:
                _reset(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upward: bool) -> bool:
        """One direction: chunks are read at once and written when they are due; True when the stream has ended."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_CHUNKS)
        writing = asyncio.create_task(self._write(due, writer))
        loop = asyncio.get_running_loop()
        link, counts = self._link, self._link.counts
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                if link.weather.state == "hole":
                    counts.blocked_bytes += len(chunk)
                    continue
                if upward:
                    counts.up_bytes += len(chunk)
                    self._asked = link.is_cutting
                elif self._asked and link.take_cut():
                    return False
                else:
                    counts.down_bytes += len(chunk)
                await due.put((loop.time() + link.delay_s(), chunk))
                if writing.done():
                    return False
            await _emptied(due, writing)
            if writing.done():
                return False
            writer.write_eof()
        except OSError:
            return False
        else:
            return True
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            at_s, chunk = await due.get()
            wait_s = max(at_s - loop.time(), self._link.narrow_s(len(chunk)))
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if self._link.weather.state == "open":
                writer.write(chunk)
                await writer.drain()
            else:  # it was on its way when the link broke
                self._link.counts.blocked_bytes += len(chunk)
            due.task_done()


async def _emptied(due: asyncio.Queue[tuple[float, bytes]], writing: asyncio.Task[None]) -> None:
    """Return when all that was read is written, or cannot be."""
    joining = asyncio.create_task(due.join())
    try:
        await asyncio.wait({joining, writing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        joining.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a machine does that has lost the connection."""
    taken: socket.socket | None = writer.get_extra_info("socket")
    if taken is not None and not writer.transport.is_closing():
        # ValueError: uvloop's word for a socket that is closed already.
        with contextlib.suppress(OSError, ValueError):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
