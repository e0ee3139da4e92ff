"""The batch-native Faust transport: one event a record batch of a partition, acknowledged in order as a range.

A topic declared with `value_type=RecordBatch` delivers to its agents one event for each fetched batch of a
partition; every other topic delivers one event a record, as stock Faust does. Both share one book of
offsets (`app.domain.offsets`). The order that makes at-least-once true:
(1) records are fetched by the consumer's own thread, tagged with the seek they belong to;
(2) a range is entered in the book when it is delivered, never twice, never with a hole;
(3) the agent acknowledges the range once its outputs are durable;
(4) the commit takes the longest acknowledged prefix, and is noted only when the broker confirms it;
(5) on a rebalance: flow stops, what is being processed is awaited (bounded; a stage with tables hands back what it
    has not decided instead), committed, and only then the partitions are given up; what is acknowledged later
    counts for nothing.

It leans on private names of faust-streaming 0.15.3, aiokafka 0.14.0 and mode-streaming 0.7.1, which are
pinned exactly (docs/decisions/0002); tests/broker/test_transport_traps.py holds each trap that is designed out.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import aiokafka
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import ConsumerStoppedError, KafkaError
from faust.transport.drivers import aiokafka as stock
from faust.types import TP
from faust.types.tuples import ConsumerMessage, Message, ack_lock
from mode import Service

from app.adapters import records as light
from app.adapters.consumer_thread import EndingThread
from app.adapters.faust_producer import Producer
from app.adapters.records import FetchedRecord
from app.domain.offsets import OffsetBook, Range

light.install()

EARLIEST = -2  # aiokafka's OffsetResetStrategy.EARLIEST


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What bounds the consumer; the units are in the names.

    `fetch_max_wait_ms`: stock Faust has 1500 hard-coded, which holds back a partition's next records for as
    long whenever another was paused. `outstanding_*` a partition is the back-pressure: such a partition is
    not asked for more. `poll_ms` bounds one wait for records, so that stopping never takes longer.
    """

    fetch_max_wait_ms: int = 50
    fetch_max_bytes: int = 32 << 20
    poll_ms: int = 250
    batch_records: int = 5_000
    outstanding_records: int = 20_000
    outstanding_batches: int = 8
    drain_s: float = 5.0


class RecordBatch:
    """The records of one partition that were fetched together, oldest first."""

    __slots__ = ("highwater", "partition", "records", "topic")

    def __init__(self, topic: str, partition: int, records: Sequence[FetchedRecord], highwater: int | None) -> None:
        self.topic = topic
        self.partition = partition
        self.records = records
        self.highwater = highwater

    @property
    def first_offset(self) -> int:
        return int(self.records[0].offset)

    @property
    def last_offset(self) -> int:
        return int(self.records[-1].offset)

    @classmethod
    def from_data(cls, data: "RecordBatch", *, preferred_type: type | None = None) -> "RecordBatch":
        """Faust's hook for decoding: a batch arrives decoded."""
        assert preferred_type is None or issubclass(cls, preferred_type)
        return data

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"<RecordBatch {self.topic}-{self.partition} {self.first_offset}..{self.last_offset}>"


class Fetched(NamedTuple):
    """What one poll brought: the seek it belongs to, and the records a partition."""

    seek: int
    records: Mapping[TP, Sequence[FetchedRecord]]


class BatchMessage(ConsumerMessage):
    """A message that knows its range."""

    range: Range


def to_message(tp: TP, record: FetchedRecord, value: Any, delivered: Range, generation: int) -> BatchMessage:
    """Wrap one record, or a whole batch as `value`, for Faust; the offset is the last of the range."""
    message = BatchMessage(
        tp.topic,
        tp.partition,
        delivered.last,
        record.timestamp / 1000.0,
        record.timestamp_type,
        None if isinstance(value, RecordBatch) else record.headers,
        None if isinstance(value, RecordBatch) else record.key,
        value,
        None,
        0,
        0,
        tp,
        generation_id=generation,
    )
    message.range = delivered
    return message


class ConsumerThread(EndingThread):
    """The thread and loop of the Kafka client, so that heartbeats go out while the main loop computes."""

    #: Grows with every seek to the committed offsets; changed in this thread's loop only.
    seek_number = 0
    _ended: "asyncio.Future[Any] | None" = None

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        limits = limits_of(self.app)
        # Read by aiokafka in start() only, which comes after this.
        consumer._fetch_max_wait_ms = limits.fetch_max_wait_ms
        consumer._fetch_max_bytes = limits.fetch_max_bytes
        if hasattr(self.app, "holdings"):  # stock Faust takes round robin for an app without its own tables
            consumer._partition_assignment_strategy = (self.app.assignor,)
        return consumer

    async def call_thread(self, fun: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Run in the thread. Raises `ConsumerStoppedError` when that ends first; stock mode waits for ever."""
        promise = self.parent_loop.create_future()
        promise.add_done_callback(_heard)  # whoever was cancelled meanwhile asks no more
        try:
            await self.method_queue.call(promise, fun, *args, **kwargs)
        except RuntimeError as error:  # its event loop is closed
            raise ConsumerStoppedError from error
        if self._ended is None:
            self._ended = asyncio.ensure_future(self._shutdown.wait())
        await asyncio.wait({promise, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if promise.done():
                return promise.result()
        except asyncio.CancelledError as error:  # not ours: the thread gave its work up
            raise ConsumerStoppedError from error
        promise.cancel()
        raise ConsumerStoppedError

    def close(self) -> None:
        """Nothing: stock Faust closes the client here from another loop, so that it never leaves its group.

        Called when a rebalance meets a stop; the stop itself closes the client, in the thread.
        """

    async def stop(self) -> None:
        """Stop the thread and whoever waits for its end."""
        await super().stop()
        if self._ended is not None:
            self._ended.cancel()

    async def fetch(self, tps: frozenset[TP], timeout_s: float, max_records: int) -> Fetched:
        """Fetch what is there for `tps`, waiting for at most `timeout_s`."""
        result: Fetched = await self.call_thread(self._fetch, tps, timeout_s, max_records)
        return result

    async def _fetch(self, tps: frozenset[TP], timeout_s: float, max_records: int) -> Fetched:
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        with fetcher._subscriptions.fetch_context():
            records = await fetcher.fetched_records(tps, timeout=timeout_s, max_records=max_records)
        # No await between the drain above and here: the tag is the seek the records were read after.
        return Fetched(self.seek_number, records)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every assigned partition to its committed offset, or to the beginning where there is none.

        Stock aiokafka asks partition by partition and leaves one without a commit (or with commit 0)
        where it is, past records that were fetched and dropped.
        """
        result: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)
        return result

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        assigned = list(consumer.assignment())
        committed = await consumer._coordinator.fetch_committed_offsets(assigned)
        state: SubscriptionState = consumer._subscription
        self.seek_number += 1
        offsets: dict[TP, int] = {}
        fresh: list[TP] = []
        for tp in assigned:
            if not state.is_assigned(tp):
                continue
            known = committed.get(tp)
            if known is not None and known.offset >= 0:
                consumer._fetcher.seek_to(tp, known.offset)
                offsets[tp] = known.offset
            else:
                fresh.append(tp)
        if fresh:
            # The positions are found in the background; nobody needs to wait for them here.
            waiting = asyncio.ensure_future(consumer._fetcher.request_offset_reset(fresh, EARLIEST))
            waiting.add_done_callback(_heard)
        return offsets


def _heard(outcome: "asyncio.Future[Any]") -> None:
    """An error that concerns nobody any more is none: a rebalance or a stop made the question pointless."""
    if not outcome.cancelled():
        outcome.exception()


class Consumer(stock.Consumer):
    """Fetches, delivers and commits ranges; see the module's docstring for the order."""

    #: Set when the agents have failed: a stop then waits for nothing.
    abandoned = False
    _handed_back = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._books: dict[TP, OffsetBook] = {}
        self._seek_number = 0
        self._changed = asyncio.Event()
        super().__init__(*args, **kwargs)
        self._limits = limits_of(self.app)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # ---- what others may ask ----

    @property
    def member_id(self) -> str:
        """This member's id in the group, empty before the first join."""
        client = self._thread._consumer
        coordinator = getattr(client, "_coordinator", None)
        return str(getattr(coordinator, "member_id", "") or "")

    def lags(self) -> dict[TP, int]:
        """Records a partition that are on the broker and not yet acknowledged here."""
        found: dict[TP, int] = {}
        for tp in self.assignment():
            highwater = self.highwater(tp)
            book = self._books.get(tp)
            done_before = book.done_before if book is not None else None
            if highwater is not None and done_before is not None:
                found[tp] = max(0, highwater - done_before)
        return found

    # ---- the loop: fetch, deliver ----

    async def _drain_messages(self, fetcher: Service) -> None:
        """Fetch and deliver until stopped; the back-pressure is `_hungry`."""
        self._changed.set()
        try:
            while not (self.should_stop or fetcher.should_stop):
                self._changed.clear()
                hungry = self._hungry() if self.flow_active else frozenset()
                if not hungry:
                    await self._wait_for_change()
                    continue
                fetched = await self._thread.fetch(hungry, self._limits.poll_ms / 1000, self._limits.batch_records)
                if fetched.records:
                    await self._deliver_fetched(fetched, fetcher)
        except ConsumerStoppedError:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            # Stock Faust takes this for a crash when a rebalance is under way.
            if not (self.app.should_stop or fetcher.should_stop):
                raise
        except Exception as error:
            # Without this the fetcher dies alone and the worker stands still for ever.
            await self.app.crash(error)
            raise

    def _hungry(self) -> frozenset[TP]:
        limits = self._limits
        return frozenset(
            tp
            for tp in self._get_active_partitions()
            if (book := self._books.get(tp)) is None
            or (
                book.outstanding_records < limits.outstanding_records
                and book.outstanding_ranges < limits.outstanding_batches
            )
        )

    async def _wait_for_change(self) -> None:
        """Wait for an acknowledgement, an assignment or the end; the time-out only bounds a stop."""
        try:
            async with asyncio.timeout(self._limits.poll_ms / 1000):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _deliver_fetched(self, fetched: Fetched, fetcher: Service) -> None:
        while not self.flow_active:
            # Fetched after the seek of a rebalance whose end has not reached this loop yet: keep them.
            if self.should_stop or fetcher.should_stop:
                return
            await self._wait_for_change()
            self._changed.clear()
        if fetched.seek != self._seek_number:
            return  # read before the last seek: they will be fetched again from the committed offset
        for tp, records in fetched.records.items():
            if tp not in self._active_partitions and tp not in self.assignment():
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            async for message in self._messages(TP(tp.topic, tp.partition), records):
                if not await self._hand_over(message):
                    return

    async def _messages(self, tp: TP, records: Sequence[FetchedRecord]) -> AsyncIterator[BatchMessage]:
        book = self._books.setdefault(tp, OffsetBook())
        generation = self.app.consumer_generation_id
        first = records[0].offset
        if book.next_offset is not None and first < book.next_offset:
            # The client was told that its offset is out of range and went to the beginning.
            self.log.warning(
                "%s begins anew at %d, before %d: it was truncated or recreated", tp, first, book.next_offset
            )
            book.seek(first)
        if self._is_batched(tp):
            delivered = book.deliver(first, records[-1].offset, len(records))
            batch = RecordBatch(tp.topic, tp.partition, records, self.highwater(tp))
            yield to_message(tp, records[-1], batch, delivered, generation)
            return
        for record in records:
            yield to_message(tp, record, record.value, book.deliver(record.offset, record.offset, 1), generation)

    def _is_batched(self, tp: TP) -> bool:
        channels = self.app.topics._tp_index.get(tp, ())
        return any(channel.value_type is RecordBatch for channel in channels)

    async def _hand_over(self, message: BatchMessage) -> bool:
        """Give the message to its agents; False when the flow was stopped meanwhile."""
        handing = asyncio.ensure_future(self.callback(message))
        try:
            while not handing.done():
                stopping = asyncio.ensure_future(self.suspend_flow.wait())
                try:
                    await asyncio.wait({handing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stopping.cancel()
                if not handing.done():
                    return False
        finally:
            if not handing.done():
                handing.cancel()
        handing.result()
        return True

    # ---- acknowledge, commit ----

    def ack(self, message: Message) -> bool:
        """Mark the message's range as done; a range given up in a rebalance counts for nothing."""
        with ack_lock:
            message.acked = True
            self._unacked_messages.discard(message)
            book = self._books.get(message.tp)
            counted = book is not None and book.acknowledge(message.range)
        self._changed.set()
        return counted

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterable[TP]:
        return [
            tp
            for tp, book in self._books.items()
            if book.to_commit is not None and (topics is None or tp in topics or tp.topic in topics)
        ]

    def _new_offset(self, tp: TP) -> int | None:
        return self._books[tp].to_commit

    def _should_commit(self, tp: TP, offset: int) -> bool:
        return self._books[tp].committed != offset

    async def _commit_offsets(
        self,
        offsets: Mapping[TP, int],
        start_new_transaction: bool = True,  # noqa: ARG002 - Faust passes it by name
    ) -> bool:
        """Commit and note what the broker confirmed. Stock Faust notes it even when the commit failed."""
        assigned = self.assignment()
        due = {tp: offset for tp, offset in offsets.items() if tp in assigned}
        if not due:
            return False
        await self.app.producer.flush()
        books = {tp: self._books[tp] for tp in due}
        try:
            done = await self._commit(due)
        except (KafkaError, ConsumerStoppedError) as error:
            # The group moved on (or its coordinator did): the offsets stay due and are tried again.
            self.log.info("commit not taken: %s", error)
            return False
        if done:
            for tp, offset in due.items():
                books[tp].commit_done(offset)
            self.app.monitor.on_tp_commit(due)
        return bool(done)

    # ---- rebalance, stop ----

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """(5): let the app drain and commit first, then forget; stock Faust forgets first."""
        if (hand_back := getattr(self.app, "hand_back", None)) is not None:
            self.stop_flow()
            await hand_back(revoked)
        self._handed_back = hand_back is not None
        await self._on_partitions_revoked(revoked)  # it raises nothing: the app crashes instead
        self._handed_back = False
        self._active_partitions.difference_update(revoked)
        self._paused_partitions.difference_update(revoked)
        for tp in revoked:
            book = self._books.pop(tp, None)
            if book is not None:
                book.seek(None)

    async def perform_seek(self) -> None:
        """Start every partition at its committed offset with an empty book."""
        committed = await self._thread.seek_to_committed()
        for tp in self.assignment():
            book = self._books.setdefault(tp, OffsetBook())
            book.seek(committed.get(tp))
        self._seek_number = self._thread.seek_number
        self._changed.set()

    def resume_flow(self) -> None:
        super().resume_flow()
        self._changed.set()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        super().resume_partitions(tps)
        self._changed.set()

    async def wait_empty(self) -> None:
        """Wait until what agents have begun is acknowledged, at most `drain_s`, then commit.

        After a crash there is nothing to wait for: the consumer's thread has ended with the app.
        """
        if self.app.crash_reason is not None:
            return
        deadline = time.monotonic() + self._limits.drain_s
        while not (self.should_stop or self.abandoned or self._handed_back) and self._has_undone():
            if time.monotonic() >= deadline:
                self.log.warning("agents did not finish in %s s: redelivered", self._limits.drain_s)
                break
            self._changed.clear()
            await self._wait_for_change()
        await self.commit_and_end_transactions()

    def _has_undone(self) -> bool:
        return any(not message.acked for message in list(self._unacked_messages))

    async def commit_and_end_transactions(self) -> None:
        """Commit what is acknowledged by now.

        Stock Faust takes a commit under way for this one, though that began before the last acknowledgements.
        """
        await self.maybe_wait_for_commit_to_finish()
        await self.commit(start_new_transaction=False)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Stock Faust guesses at stalls here by log lines; ours is the watchdog (`app.domain.watchdog`)."""


class Transport(stock.Transport):
    """`headrace://host:port` as a Faust broker URL."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    Producer: ClassVar[type[Producer]] = Producer
    driver_version = f"headrace on aiokafka={aiokafka.__version__}"


# mode names a service's logger by its module: under Faust's name its chatter is set by one level.
for _service in (ConsumerThread, Consumer):
    _service.logger = stock.logger


def limits_of(app: Any) -> TransportLimits:
    """The limits an app was made with, or the defaults for a plain `faust.App`."""
    limits = getattr(app, "transport_limits", None)
    return limits if isinstance(limits, TransportLimits) else TransportLimits()
