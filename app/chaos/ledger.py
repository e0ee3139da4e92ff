"""The independent ledger of effects: a small HTTP server that answers when a line of its file is on the disk.

    python -m app.chaos.ledger --port 0 --file ledger.jsonl

POST /effect with {"execution", "step", "attempt", "token", "hash"} and the header Idempotency-Key. The first of a key
is `accepted`; the same key again is a `repeat`, answered as the first was; a token lower than one that has come
for the same execution and step is a `zombie`, refused with 409. All three are written down, many in one fsync, before
any of them is answered. GET /stats counts them. The first line of output is {"host", "port", "pid"}.

It knows nothing of the product and imports nothing of it: it is to convict the engine, not to share its mistakes.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

FIELDS = ("execution", "step", "attempt", "token", "hash")
BODY_BYTES = 1 << 20
HEAD_BYTES = 64 << 10
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 409: "Conflict", 411: "Length Required", 413: "Too Large"}


class Refused(Exception):
    """A request that is none of an effect; `status` is the answer's."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Request(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Book:
    """What has come, in memory, and the file that it is in."""

    def __init__(self, path: Path) -> None:
        """Goes on with a file that is there; a line that was cut when its writer died is cut off."""
        self.counts: Counter[str] = Counter()
        self._firsts: dict[bytes, int] = {}
        self._tokens: dict[bytes, int] = {}
        self._number = 0
        self._lines: list[bytes] = []
        path.touch()
        os.truncate(path, self._reload(path))
        self._file = path.open("ab")

    def _reload(self, path: Path) -> int:
        """How many bytes of the file are whole lines."""
        whole = 0
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._remember(json.loads(line))
        return whole

    def _remember(self, row: Mapping[str, Any]) -> None:
        self._number += 1
        self.counts[row["kind"]] += 1
        if row["kind"] == "zombie":
            return
        place = _digest(row["execution"], row["step"])
        self._tokens[place] = max(self._tokens.get(place, -1), row["token"])
        self._firsts.setdefault(_digest(row["key"]), self._number)

    def take(self, effect: Mapping[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        """Decide, and put the line into the next group; status and body of the answer, which must await `flush`."""
        seen = self._tokens.get(_digest(effect["execution"], effect["step"]), -1)
        first = self._firsts.get(_digest(key))
        kind = "zombie" if effect["token"] < seen else "accepted" if first is None else "repeat"
        row = {
            "kind": kind,
            **{name: effect[name] for name in FIELDS},
            "key": key,
            "wall_ns": time.time_ns(),
            "mono_ns": time.monotonic_ns(),
        }
        self._remember(row)
        self._lines.append(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        if kind == "zombie":
            return 409, {"kind": kind, "token": seen}
        return 200, {"kind": "accepted", "number": self._number if first is None else first}

    @property
    def has_lines(self) -> bool:
        """Whether something waits for the disk."""
        return bool(self._lines)

    def take_group(self) -> bytes:
        """Every line that waits."""
        group, self._lines = b"".join(self._lines), []
        return group

    def write(self, group: bytes) -> None:
        """Return when it is on the disk; called in a thread."""
        self._file.write(group)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.counts["fsyncs"] += 1

    def close(self) -> None:
        """Nothing comes any more."""
        self._file.close()


def _digest(*parts: str) -> bytes:
    """A million keys are held as 16 bytes each."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


class GroupCommit:
    """One fsync at a time, for all that came during the one before."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._waiting: list[asyncio.Future[None]] = []
        self._is_due = asyncio.Event()

    async def durable(self) -> None:
        """Return when all that was taken before this call is on the disk."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._is_due.set()
        await waiter

    async def run(self) -> None:
        """Until cancelled. A disk that refuses ends the process: nothing may be answered after that."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            waiting, self._waiting = self._waiting, []
            await asyncio.to_thread(self._book.write, self._book.take_group())
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)


class Server:
    """HTTP/1.1 with connections that are kept. An effect is answered `answer_after_s` after it is on the disk."""

    def __init__(self, book: Book, answer_after_s: float = 0.0) -> None:
        self._book = book
        self._answer_after_s = answer_after_s
        self._commit = GroupCommit(book)
        self._open: set[asyncio.Task[None]] = set()

    async def serve(self, host: str, port: int, stop: asyncio.Event) -> None:
        """Until `stop`, or until the disk fails."""
        writing = asyncio.create_task(self._commit.run(), name="group commit")
        server = await asyncio.start_server(self._converse, host, port, limit=HEAD_BYTES, backlog=1024)
        told = {"host": host, "port": server.sockets[0].getsockname()[1], "pid": os.getpid()}
        print(json.dumps(told), flush=True)
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait([writing, stopping], return_when=asyncio.FIRST_COMPLETED)
        server.close()
        for task in (writing, stopping, *self._open):
            task.cancel()
        results = await asyncio.gather(writing, stopping, *self._open, return_exceptions=True)
        if isinstance(results[0], OSError):
            raise results[0]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while (request := await read_request(reader)) is not None:
                status, body = await self._answer(request)
                keeps = request.headers.get("connection", "").lower() != "close"
                writer.write(_response(status, body, keeps=keeps))
                await writer.drain()
                if not keeps:
                    break
        except Refused as refused:
            writer.write(_response(refused.status, {"error": str(refused)}, keeps=False))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # Who asked is gone, or the ledger ends; what was taken stays taken.
            self._book.counts["broken connections"] += 1
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        if (request.method, request.path) == ("GET", "/stats"):
            return 200, dict(self._book.counts)
        if (request.method, request.path) != ("POST", "/effect"):
            return 404, {"error": "there are POST /effect and GET /stats"}
        try:
            effect, key = read_effect(request)
        except Refused as refused:
            self._book.counts["bad"] += 1
            return refused.status, {"error": str(refused)}
        answer = self._book.take(effect, key)
        await self._commit.durable()
        await asyncio.sleep(self._answer_after_s)
        return answer


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection, None at its end. Raises `Refused` when it is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    except asyncio.LimitOverrunError as error:
        raise Refused(413, "the head is too long") from error
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    words = first.split(" ")
    if len(words) != 3:
        raise Refused(400, "no request line")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "transfer-encoding" in headers:
        raise Refused(411, "a body has a Content-Length")
    size = headers.get("content-length", "0")
    if not size.isdecimal() or int(size) > BODY_BYTES:
        raise Refused(413, f"a body has at most {BODY_BYTES} bytes")
    return Request(words[0], words[1], headers, await reader.readexactly(int(size)))


def read_effect(request: Request) -> tuple[dict[str, Any], str]:
    """The effect and its key. Raises `Refused` (400)."""
    key = request.headers.get("idempotency-key", "")
    try:
        effect = json.loads(request.body)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not key:
        raise Refused(400, "the header Idempotency-Key is missing")
    if not isinstance(effect, dict) or any(name not in effect for name in FIELDS):
        raise Refused(400, f"an effect has {', '.join(FIELDS)}")
    if not all(isinstance(effect[name], str) for name in ("execution", "step", "hash")):
        raise Refused(400, "execution, step and hash are text")
    if not all(type(effect[name]) is int and effect[name] >= 0 for name in ("attempt", "token")):
        raise Refused(400, "attempt and token are whole numbers")
    return effect, key


def _response(status: int, body: Mapping[str, Any], *, keeps: bool) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: {'keep-alive' if keeps else 'close'}\r\n\r\n"
    )
    return head.encode() + content


async def run(path: Path, host: str, port: int, answer_after_s: float) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    book = Book(path)
    try:
        await Server(book, answer_after_s).serve(host, port, stop)
    finally:
        book.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--answer-after-ms", type=float, default=0.0, help="what is on the disk is told so much later")
    options = parser.parse_args(arguments)
    asyncio.run(run(options.file, options.host, options.port, options.answer_after_ms / 1000))
    return 0


if __name__ == "__main__":
    sys.exit(main())
