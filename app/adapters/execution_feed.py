"""Feeds the index of executions from Kafka, in a process of its own: `python -m app.adapters.execution_feed`.

Decoding and SQLite take a whole core when the engine is saturated; in the process of the API they would make every
request wait. It reads its settings as the first line of stdin, then orders, one JSON object a line:
`{"watch": id}` and `{"unwatch": id}` (tell of its changes), `{"ask": number, "execution": id}` (tell when all that is
now on the id's partitions is in the index). It writes, one JSON object a line: `{"open": true}`, `{"told": [ids]}`,
`{"reached": [numbers]}` and `{"state": {...}}`. The end of stdin is its own end.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.adapters.connection import security_options
from app.adapters.consumers import LOOK_AGAIN_MS, stop_consumer
from app.adapters.execution_store import ExecutionStore, Position
from app.adapters.records import install
from app.adapters.topics_admin import cluster_id, describe_topics
from app.domain.workflow.placement import partition_of
from app.errors import BrokerUnavailable, Unavailable
from app.log import configure
from config.http import ExecutionsSettings
from config.kafka import KafkaSettings
from config.log import LogSettings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_EVENTS

log = logging.getLogger(__name__)

_POLL_TIMEOUT_MS: Final = 200
# Between two looks at the topics while nobody waits for what they say. At 200 executions/s a look for each record took
# a quarter of a core here and more on the broker, which the executions themselves then had to wait for.
_REST_S: Final = 0.02
_STATE_EVERY_S: Final = 0.5
_FORGET_EVERY_S: Final = 30.0  # after a look that found nothing
_FORGET_SHARE: Final = 0.1  # of the time, at most
_CROWDED: Final = 1.1
_CROWDED_SHARE: Final = 0.5
_RETRY_S: Final = 1.0
_LOCK_S: Final = 10.0  # the feed of a process that was killed ends as soon as it reads the end of its stdin
_FETCH_BYTES: Final = 4 << 20
_NICE: Final = 5  # the engine goes before a view of what it does
_FAILURES: Final = (KafkaError, Unavailable, OSError, TimeoutError)


class TopicsReplaced(Unavailable):
    """The topics were deleted and created anew while they were read."""


class ExecutionFeed:
    """Reads both topics into the store and tells what it is asked for."""

    def __init__(
        self, kafka: KafkaSettings, bootstrap: str, settings: ExecutionsSettings, topics: tuple[str, str], out: "Out"
    ) -> None:
        self._kafka = kafka
        self._bootstrap = bootstrap
        self._settings = settings
        self._commands, self._events = topics
        self._out = out
        self._store = ExecutionStore(Path(settings.directory), settings.cache_bytes)
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._goal: dict[TopicPartition, int] = {}
        self._watched: set[str] = set()
        self._asked: dict[int, Mapping[TopicPartition, int]] = {}
        self._looking: set[int] = set()
        self._awaited = asyncio.Event()
        self._asker: Any = None
        self._partitions = 0
        self._connected = False
        self._asking: set[asyncio.Task[None]] = set()

    # ---- orders ----

    def obey(self, order: Mapping[str, Any]) -> None:
        """One line of the parent."""
        self._awaited.set()
        if (watched := order.get("watch")) is not None:
            self._watched.add(watched)
            self._out.write({"told": [watched]})  # whatever came before this is in the index by now
        elif (done := order.get("unwatch")) is not None:
            self._watched.discard(done)
        elif (number := order.get("ask")) is not None and number not in self._asked and number not in self._looking:
            self._looking.add(number)
            task = asyncio.create_task(self._find_ends(number, order["execution"]))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _find_ends(self, number: int, execution_id: str) -> None:
        """Note how far the partitions of an execution must be read; without a broker nobody is answered."""
        try:
            if self._asker is not None and self._connected:
                partition = partition_of(execution_id, self._partitions)
                wanted = [TopicPartition(topic, partition) for topic in (self._commands, self._events)]
                self._asked[number] = await self._asker.end_offsets(wanted)
                self._answer()
        except _FAILURES as error:
            log.debug("the ends of an execution's partitions are not known: %s", error)
        finally:
            self._looking.discard(number)

    def _answer(self) -> None:
        positions = self._positions
        reached = [
            number
            for number, ends in self._asked.items()
            if all(positions.get(partition, 0) >= end for partition, end in ends.items())
        ]
        for number in reached:
            del self._asked[number]
        if reached:
            self._out.write({"reached": reached})

    # ---- life ----

    async def run(self) -> None:
        """Feed for ever; a broker that is away is tried again."""
        self._out.write({"open": True})
        try:
            while True:
                try:
                    await self._feed()
                except _FAILURES as error:
                    if self._connected or not self._ends:
                        text = f"the index of executions waits for Kafka at {self._bootstrap}: {error}"
                        log.info(text, extra={"action": "read_model_waits", "error": type(error).__name__})
                    self._connected = False
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._store.close()

    async def look_after(self) -> None:
        """Beside `run`: tell the parent how things are, and forget what is too old, a little at a time."""
        look_s = 0.0
        while True:
            self._out.write({"state": self._state()})
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + (0.0 if self._forget() else _FORGET_EVERY_S)
            await asyncio.sleep(_STATE_EVERY_S)

    def _forget(self) -> int:
        """Forget for a bounded time, longer when it cannot keep up; how many it were."""
        settings, store = self._settings, self._store
        before_ms = time.time_ns() // 1_000_000 - settings.retention_s * 1000
        crowded = store.count > settings.executions_max * _CROWDED
        ends_s = time.monotonic() + _STATE_EVERY_S * (_CROWDED_SHARE if crowded else _FORGET_SHARE)
        forgotten = 0
        while found := store.forget(before_ms, settings.executions_max):
            forgotten += found
            if time.monotonic() > ends_s:
                break
        return forgotten

    def _state(self) -> dict[str, Any]:
        lag = sum(max(0, end - self._positions.get(partition, 0)) for partition, end in self._ends.items())
        # Of what was there when it connected: under load something always waits.
        caught_up = self._connected and all(self._positions[each] >= end for each, end in self._goal.items())
        return {
            "connected": self._connected,
            "caught_up": caught_up,
            "lag": lag,
            "executions": self._store.count,
            "unreadable": self._store.unreadable,
        }

    async def _feed(self) -> None:
        """Read until the topics have grown."""
        partitions = await self._describe()
        # Of its own: a broker answers a connection in order, and a fetch that waits for records holds it.
        consumer, asker = self._client(), self._client()
        try:
            await consumer.start()
            await asker.start()
            await self._assign(consumer, partitions)
            self._asker, self._connected = asker, True
            log.info("the index of executions reads", extra={"action": "read_model_reads", "lag": self._state()["lag"]})
            looked_s = time.monotonic()
            while True:
                if await self._poll(consumer):
                    await self._rest()
                if time.monotonic() - looked_s > self._kafka.metadata_max_age_ms / 1000:
                    looked_s = time.monotonic()
                    if await self._describe() != partitions:
                        return
        finally:
            self._connected, self._asker = False, None
            self._asked.clear()
            await asyncio.gather(stop_consumer(consumer), stop_consumer(asker))

    def _client(self) -> Any:
        return AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=f"{self._kafka.client_id}-executions",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_TIMEOUT_MS,
            consumer_timeout_ms=LOOK_AGAIN_MS,
            fetch_max_bytes=4 * _FETCH_BYTES,
            max_partition_fetch_bytes=_FETCH_BYTES,
            request_timeout_ms=self._kafka.request_timeout_ms,
            metadata_max_age_ms=self._kafka.metadata_max_age_ms,
            **security_options(self._kafka),
        )

    async def _describe(self) -> list[TopicPartition]:
        states = await describe_topics(self._bootstrap, (self._commands, self._events), self._kafka)
        counts = {state.name: state.partitions for state in states}
        if len(counts) < 2:
            raise BrokerUnavailable(f"there are no topics {self._commands} and {self._events} yet")
        self._partitions = counts[self._commands]
        return [TopicPartition(name, number) for name in sorted(counts) for number in range(counts[name])]

    async def _assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """From where the index was left. Another cluster, or offsets that went back, mean other topics: all anew."""
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        begins = await consumer.beginning_offsets(partitions)
        known = self._store.positions()
        cluster = await cluster_id(self._bootstrap, self._kafka)
        went_back = any(known.get((each.topic, each.partition), 0) > ends[each] for each in partitions)
        if went_back or cluster != self._store.cluster:
            self._store.reset(cluster)
            known = {}
        for each in partitions:
            at = max(known.get((each.topic, each.partition), 0), begins[each])
            consumer.seek(each, at)
            self._positions[each] = at
        self._ends, self._goal = dict(ends), dict(ends)

    async def _rest(self) -> None:
        """Let records gather, unless somebody waits for them."""
        self._awaited.clear()
        if self._watched or self._asked or self._looking:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REST_S):
                await self._awaited.wait()

    async def _poll(self, consumer: Any) -> bool:
        """Take in what has come; whether that was something, and all there is here."""
        batches = await consumer.getmany(timeout_ms=_POLL_TIMEOUT_MS, max_records=self._settings.batch_records)
        commands: list[bytes] = []
        runs: list[bytes] = []
        positions: list[Position] = []
        for partition, records in batches.items():
            if records[0].offset < self._positions[partition]:
                self._store.reset(self._store.cluster or "")
                raise TopicsReplaced(f"{partition.topic} is another topic under the old name")
            into = commands if partition.topic == self._commands else runs
            into += [record.value for record in records if record.value is not None]
            after = records[-1].offset + 1
            self._positions[partition] = after
            positions.append(Position(partition.topic, partition.partition, after))
        if positions:
            changed = self._store.apply(commands, runs, positions)
            if told := changed & self._watched:
                self._out.write({"told": list(told)})
        for partition in self._positions:
            newest = consumer.highwater(partition)
            if newest is not None:
                self._ends[partition] = newest
            if partition not in batches:  # nothing fetched: a tail of transaction markers is passed too
                self._positions[partition] = await consumer.position(partition)
        if self._asked:
            self._answer()
        await asyncio.sleep(0)
        return 0 < sum(len(records) for records in batches.values()) < self._settings.batch_records


class Out:
    """Lines to the parent; a parent that does not read makes this process wait, and so uses no memory."""

    def write(self, message: Mapping[str, Any]) -> None:
        """Write one line."""
        rest = orjson.dumps(message) + b"\n"
        while rest:
            rest = rest[os.write(1, rest) :]


async def _orders(feed: ExecutionFeed, lines: asyncio.StreamReader) -> None:
    while line := await lines.readline():
        feed.obey(orjson.loads(line))


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def configuration(
    kafka: KafkaSettings, bootstrap: str, settings: ExecutionsSettings, log_settings: LogSettings, topics: Iterable[str]
) -> bytes:
    """The first line for the process: secrets go by pipe, where no list of processes shows them."""
    fields = kafka.model_dump(mode="json")
    if kafka.sasl_password is not None:
        fields["sasl_password"] = kafka.sasl_password.get_secret_value()
    document = {
        "kafka": fields,
        "bootstrap": bootstrap,
        "executions": settings.model_dump(mode="json"),
        "log": log_settings.model_dump(mode="json"),
        "topics": list(topics),
    }
    return orjson.dumps(document) + b"\n"


def _lock_file(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)


async def _locked(folder: Path) -> int | None:
    """The only writer of a folder, as long as this descriptor is open; None when another does not leave in time."""
    descriptor = _lock_file(folder)
    ends_s = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > ends_s:
                os.close(descriptor)
                return None
        await asyncio.sleep(0.1)


TOPICS: Final = (WORKFLOW_COMMANDS.name, WORKFLOW_EVENTS.name)


async def main() -> None:
    """Run until stdin ends."""
    install()
    lines = await _stdin()
    first = orjson.loads(await lines.readline())
    configure(LogSettings(**first["log"]), role="executions-index", stream=sys.stderr)
    commands, events = first["topics"]
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    settings = ExecutionsSettings(**first["executions"])
    lock = await _locked(Path(settings.directory))
    if lock is None:
        text = f"another process keeps the index in {settings.directory}: set http.executions.directory to another"
        log.error(text, extra={"action": "executions_feed_refused"})
        return
    feed = ExecutionFeed(
        KafkaSettings(**first["kafka"]),
        first["bootstrap"],
        settings,
        (commands, events),
        Out(),
    )
    running = asyncio.create_task(feed.run(), name="feed")
    beside = asyncio.create_task(feed.look_after(), name="care")
    ordered = asyncio.create_task(_orders(feed, lines), name="orders")
    await asyncio.wait({running, beside, ordered}, return_when=asyncio.FIRST_COMPLETED)
    for task in (running, beside, ordered):
        task.cancel()
    for found in await asyncio.gather(running, beside, ordered, return_exceptions=True):
        if isinstance(found, Exception):
            raise found


if __name__ == "__main__":
    uvloop.run(main())
