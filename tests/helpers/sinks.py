"""A sink in memory, rows to write, and ways to read back what each real sink stores."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import sqlalchemy as sa
import uvicorn
from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy.ext.asyncio import create_async_engine

from app.domain.sink_rows import SHAPES, reading_rows, refusal, rollup_row, signal_row
from app.errors import SinkRejected, SinkUnavailable
from app.ports import Sink, SinkRow

Stored = dict[tuple[Any, ...], tuple[int, dict[str, Any]]]
"""What a sink holds: (kind, *key) → (version, row without nulls)."""

START_MS = 1_763_689_000_000


class FixedClock:
    """A clock that stands where the test puts it."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


class MemorySink:
    """The double of every sink: obeys `app.ports.Sink`, and fails as often as `failures` says."""

    name = "memory"

    def __init__(self, stored: Stored | None = None) -> None:
        self.stored: Stored = {} if stored is None else stored
        self.failures: list[Exception] = []
        self.writes: list[list[SinkRow]] = []
        self.opened = False

    async def open(self) -> None:
        self._fail()
        self.opened = True

    async def write(self, rows: Sequence[SinkRow]) -> None:
        self.writes.append(list(rows))
        self._fail()
        reasons = {i: why for i, row in enumerate(rows) if (why := refusal(SHAPES[row.kind], row.row)) is not None}
        for index, row in enumerate(rows):
            place = (row.kind, *row.key)
            if index not in reasons and row.version >= self.stored.get(place, (0, {}))[0]:
                self.stored[place] = (row.version, without_nulls(row.row))
        if reasons:
            raise SinkRejected(reasons)

    async def close(self) -> None:
        self.opened = False

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def a_rollup(index: int = 0, revision: int = 0, offset: int | None = None, **changes: Any) -> SinkRow:
    """The rollup of window `index`; its values tell the revision."""
    value = {
        "device_id": "press-0001", "metric": "temperature", "window_start": START_MS + index * 10_000,
        "window_end": START_MS + index * 10_000 + 10_000, "window_ms": 10_000, "open": 1.5, "high": 9.25, "low": -3.0,
        "close": 2.0 + revision, "count": 10 + revision, "sum": 1e-7, "mean": 2.25, "variance": None, "unit": "CEL",
        "gaps": 0, "revision": revision, "is_final": revision > 0, **changes,
    }  # fmt: skip
    row = rollup_row(value)
    assert not isinstance(row, str), row
    return SinkRow(*row, ("device.rollups", 0, index if offset is None else offset))


def a_signal(index: int = 0, state: str = "raised", offset: int | None = None, **changes: Any) -> SinkRow:
    value = {
        "signal_id": f"signal-{index}", "rule": "überhitzt 🔥", "kind": "threshold", "severity": "critical",
        "device_id": "press-0001", "metric": "temperature", "state": state, "at": START_MS, "raised_at": START_MS,
        "cleared_at": START_MS + 5 if state == "cleared" else None, "value": 91.5, "threshold": 90.0, "unit": "CEL",
        "evidence": {"values": [1.5, None, "x'; DROP TABLE signals; --"], "note": "ü"}, **changes,
    }  # fmt: skip
    row = signal_row(value)
    assert not isinstance(row, str), row
    return SinkRow(*row, ("device.signals", 0, index if offset is None else offset))


def some_readings(seq: int = 1, offset: int = 0) -> list[SinkRow]:
    """The two rows of one sample: one good, one bad without a value."""
    rows = reading_rows(
        {
            "device_id": "press-0001", "session_id": START_MS, "seq": seq, "source_timestamp": START_MS + seq,
            "recorded_timestamp": START_MS + seq + 1, "is_historical": False,
            "metrics": [
                {"metric": "temperature", "value": 71.25, "unit": "CEL", "quality": "GOOD", "status_code": 0},
                {"metric": "pressure", "value": None, "unit": "BAR", "quality": "BAD", "status_code": -2147483648},
            ],
        }
    )  # fmt: skip
    assert not isinstance(rows, str), rows
    return [SinkRow(*row, ("device.telemetry", 0, offset)) for row in rows]


@dataclass
class Place:
    """One destination of the contract suite.

    `connect` gives a new sink onto the same destination, `stored` what is in force there, `count`
    the records that lie there (None where a repeat may lie twice), `refused` a row it refuses.
    """

    connect: Callable[[], Sink]
    stored: Callable[[], Awaitable[Stored]]
    count: Callable[[], Awaitable[int]] | None
    refused: SinkRow


async def sql_rows(url: str, kind: str) -> list[dict[str, Any]]:
    """All rows of one table, read with a connection of its own."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(sa.text(f"SELECT * FROM {kind}"))).mappings()]
    finally:
        await engine.dispose()


async def sql_run(url: str, *statements: str) -> None:
    """Run statements with a connection of their own."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(sa.text(statement))
    finally:
        await engine.dispose()


def from_columns(kind: str, record: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[int, dict[str, Any]]]:
    """Return a typed record as an item of `Stored`."""
    shape = SHAPES[kind]
    row: dict[str, Any] = {}
    for name, column_type, _ in shape.columns:
        value = record[name]
        if value is not None:
            row[name] = json.loads(value) if column_type == "json" else bool(value) if column_type == "flag" else value
    row.update(json.loads(record["extra"] or "{}"))
    return (kind, *(record[name] for name in shape.key_fields)), (record["version"], row)


def driver_url(url: str) -> str:
    """Return the URL with the driver that the readers use."""
    for plain, driver in (("postgresql", "asyncpg"), ("mysql", "aiomysql"), ("sqlite", "aiosqlite")):
        url = url.replace(f"{plain}:", f"{plain}+{driver}:")
    return url


def json_lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of every file; fails on one that is not JSON."""
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]


def newest(documents: Sequence[Mapping[str, Any]]) -> Stored:
    """Fold documents of {kind, key, version, row} as their consumers have to."""
    stored: Stored = {}
    for document in documents:
        place = (document["kind"], *document["key"].values())
        if document["version"] >= stored.get(place, (0, {}))[0]:
            stored[place] = (document["version"], without_nulls(document["row"]))
    return stored


def parquet_records(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(kind, record) of every file there is."""
    return [
        (kind, record)
        for kind in SHAPES
        for file in sorted((folder / kind).glob("*.parquet"))
        for record in pq.ParquetFile(file).read().to_pylist()
    ]


def newest_of_columns(records: Sequence[tuple[str, Mapping[str, Any]]]) -> Stored:
    stored: Stored = {}
    for kind, record in records:
        place, (version, row) = from_columns(kind, record)
        if version >= stored.get(place, (0, {}))[0]:
            stored[place] = (version, row)
    return stored


async def kafka_documents(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """Every record of a topic with one partition, as documents."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        documents: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(partition, timeout_ms=500)).get(partition, []):
                    headers = {name: value.decode() for name, value in record.headers}
                    key = dict(enumerate(json.loads(record.key)))
                    documents.append(
                        {"kind": headers["kind"], "key": key, "version": int(headers["version"]),
                         "row": json.loads(record.value), "headers": headers}
                    )  # fmt: skip
        return documents
    finally:
        await consumer.stop()


@dataclass
class Webhook:
    """A receiver that keeps the newest version of each key and does what `answers` says first.

    Each answer is (status, headers); a request that holds `refuse` as text is answered 422.
    """

    documents: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    refuse: str = "no-such-text"
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        self.requests.append({name.decode(): value.decode() for name, value in scope["headers"]})
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        if status == 200 and self.refuse in body.decode():
            status = 422
        if status == 200:
            content = json.loads(body)
            self.documents += content if isinstance(content, list) else [content]
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": [*fields, (b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(webhook: Webhook) -> AsyncIterator[Webhook]:
    """Serve the receiver with uvicorn on a free port."""
    server = uvicorn.Server(uvicorn.Config(webhook, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, no event
            await asyncio.sleep(0)
    webhook.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield webhook
    finally:
        server.should_exit = True
        await task


def away(**facts: Any) -> SinkUnavailable:
    return SinkUnavailable("the sink is away", **facts)
