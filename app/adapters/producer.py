"""The batched Kafka producer: records in, whole record batches out, nothing lost without a count.

Order and acknowledgement, which are the guarantee:
(1) a record joins the queue of its partition, or is refused when the buffer is full;
(2) a lane per partition cuts the queue into record batches by size or age and hands them to the
    client in order, at most two of a partition under way;
(3) a batch is done when all in-sync replicas have it (acks=all, idempotent);
(4) when the client fails as a whole, it is ended and replaced, and every batch under way is sent again
    in order: a duplicate is possible then, a loss is not;
(5) a batch the broker refuses for good is halved until the refused record is alone; that one fails its
    waiters with `PublishFailed` and is counted, the others are sent (where order is `unbroken`, only those before).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Self

from aiokafka.errors import KafkaError

from app import metrics
from app.adapters.producer_client import TOO_LARGE, UNKNOWN_TOPIC, Client, ClientClosed, ProducerLimits, connect
from app.adapters.producer_lane import Batch, Delivered, Lane, Waiter, all_of, observe_acknowledged, size_of
from app.domain.murmur2 import partition_for
from app.errors import BrokerUnavailable, PublishFailed
from app.ports import OutRecord
from app.task_ends import error_of

__all__ = ["BatchProducer", "Delivered", "ProducerLimits"]

log = logging.getLogger(__name__)

# One batch on the wire and one built and waiting: the wire never idles, and a reset resends at most two.
LANE_BATCHES_IN_FLIGHT: Final = 2
ORDER_BROKEN: Final = "order_broken"
PARTITION_CACHE_KEYS: Final = 1_000_000
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0

_make: Final = tuple.__new__  # half the cost of OutRecord(...)


class BatchProducer:
    """Sends records in batches, one lane a partition; use as an async context manager."""

    def __init__(self, limits: ProducerLimits, delivered: Delivered | None = None) -> None:
        self.limits = limits
        self._delivered = delivered
        self._client: Client | None = None
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._unbroken: set[tuple[str, int]] = set()
        self._partitions: dict[str, int] = {}
        self._partition_cache: dict[str, dict[bytes, int]] = {}
        self._records = 0
        self._bytes = 0
        self._slots = limits.batches_in_flight
        self._for_slot: deque[Lane] = deque()
        self._order = asyncio.Lock()  # wakes its waiters in the order they came
        self._room = asyncio.Event()
        self._room.set()
        self._replacing: asyncio.Task[None] | None = None
        self._closed_for: str | None = None
        self._failure: BaseException | None = None
        self.failed = asyncio.Event()

    # ---- life ----

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect. Raises `BrokerUnavailable` when no broker answers in `start_timeout_s`."""
        self._client = await connect(self.limits)

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Send what waits, for at most `timeout_s`; what is then left fails its waiters, and is counted."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.flush()
        except TimeoutError:
            log.warning("stopped with records unsent", extra={"action": "producer_stop", "records": self._records})
        self._closed_for = self._closed_for or "stopped"
        ending = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if self._replacing is not None:
            ending.append(self._replacing)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self._fail_everything("stopped")
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def failure(self) -> BaseException:
        """Wait for the bug that ends this producer, and return it; broker trouble never does."""
        await self.failed.wait()
        assert self._failure is not None
        return self._failure

    # ---- what others may ask ----

    @property
    def buffered_records(self) -> int:
        """Records accepted and not yet acknowledged."""
        return self._records

    async def partitions(self, topic: str) -> int:
        """Number of partitions of `topic`, asked once. Raises `PublishFailed` when there is no such topic."""
        count = self._partitions.get(topic)
        while count is None:
            client = await self._ready_client()
            try:
                count = self._partitions[topic] = await client.partitions(topic)
            except ClientClosed:
                continue
            except KafkaError as error:
                raise PublishFailed(UNKNOWN_TOPIC, 0, f"{topic}: {error}") from error
        return count

    def partition_of(self, topic: str, key: bytes | None) -> int:
        """Partition by murmur2 of the key; keyless records go to partition 0. `partitions(topic)` was awaited."""
        if key is None:
            return 0
        cache = self._partition_cache.setdefault(topic, {})
        partition = cache.get(key)
        if partition is None:
            if len(cache) >= PARTITION_CACHE_KEYS:
                cache.clear()
            count = self._partitions.get(topic)
            if count is None:
                raise PublishFailed(UNKNOWN_TOPIC, 1, topic)
            partition = cache[key] = partition_for(key, count)
        return partition

    def last_offset(self, topic: str, partition: int) -> int | None:
        """Offset of the last record acknowledged for a partition, None before the first."""
        lane = self._lanes.get((topic, partition))
        return lane.last_offset if lane is not None else None

    def foreign_records(self, topic: str, partition: int) -> int:
        """Records that others appended between ours, since our first one (a repeat of ours counts too)."""
        lane = self._lanes.get((topic, partition))
        return lane.foreign if lane is not None else 0

    def unbroken(self, topic: str, partition: int) -> None:
        """From now on nothing goes to this partition behind a record refused here or there; begin anew after one."""
        self._unbroken.add((topic, partition))
        if (lane := self._lanes.get((topic, partition))) is not None:
            lane.unbroken, lane.broken = True, False

    # ---- sending ----

    def send_nowait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        intended_ms: float | None = None,
    ) -> bool:
        """Queue one record; False when the buffer is full.

        `intended_ms` (wall clock) is the instant the reading was due: latency is counted from it.
        `await partitions(topic)` once before the first call for a topic. Raises `PublishFailed` for a
        record larger than `record_bytes` and once the producer has stopped.
        """
        if partition is None:
            partition = self.partition_of(topic, key)
        lane = self._lanes.get((topic, partition)) or self._open_lane(topic, partition)
        record: OutRecord = _make(OutRecord, (topic, key, value, timestamp_ms, headers, partition, intended_ms))
        size = size_of(record)
        limits = self.limits
        if self._records >= limits.buffer_records or self._bytes + size > limits.buffer_bytes:
            self._room.clear()
            self._refuse_unsendable(record, size)
            return False
        if size > limits.record_bytes or self._closed_for is not None:
            self._refuse_unsendable(record, size)
        records = lane.records
        records.append(record)
        lane.bytes += size
        lane.appended += 1
        self._records += 1
        self._bytes += size
        count = len(records)
        if count == 1:
            lane.first_at = time.monotonic()
            lane.wake.set()
        elif count == limits.batch_records:
            lane.wake.set()
        return True

    def _refuse_unsendable(self, record: OutRecord, size: int) -> None:
        """Raise `PublishFailed` for a record that no waiting makes sendable."""
        if self._closed_for is not None:
            raise PublishFailed(self._closed_for, 1, record.topic) from self._failure
        if size > self.limits.record_bytes:
            metrics.SEND_ERRORS.labels(TOO_LARGE).inc()
            raise PublishFailed(TOO_LARGE, 1, f"{size} bytes to {record.topic}")

    async def publish(self, records: Sequence[OutRecord]) -> None:
        """Send `records` and return when all are acknowledged. See `app.ports.Publisher`.

        Calls queue one after the other, in the order they were made: one that waits for room or for a topic's
        metadata is not overtaken, so that of two changes of a key the later one is the later record.
        """
        waiting: dict[Lane, Waiter] = {}
        try:
            async with self._order:
                await self._queue_all(records, waiting)
        except BaseException:
            self._break_orders(records)
            for lane, waiter in waiting.items():
                lane.seal(waiter)
                waiter.abandon()
            raise
        for lane, waiter in waiting.items():
            lane.seal(waiter)
        await all_of(waiting.values())

    async def _queue_all(self, records: Sequence[OutRecord], waiting: dict[Lane, Waiter]) -> None:
        at = 0
        while (at := self._queue_run(records, at, waiting)) < len(records):
            record = records[at]
            self._refuse_unsendable(record, size_of(record))
            lane = self._lane_of(record)
            if lane is None:
                await self._new_lane(record)
            elif lane.broken:
                raise PublishFailed(ORDER_BROKEN, len(records) - at, record.topic)
            else:
                self._room.clear()
                await self.wait_for_room()

    def _queue_run(self, records: Sequence[OutRecord], at: int, waiting: dict[Lane, Waiter]) -> int:
        """Queue from index `at` on, and return the index of the first record that cannot be queued now."""
        if self._closed_for is not None:
            raise PublishFailed(self._closed_for, len(records) - at) from self._failure
        limits = self.limits
        room = limits.buffer_records - self._records
        room_bytes = limits.buffer_bytes - self._bytes
        largest = limits.record_bytes
        taken_bytes = 0
        last_topic: str | None = None
        last_partition: int | None = None
        lane: Lane | None = None
        index = at
        for index in range(at, min(len(records), at + max(0, room))):
            record = records[index]
            size = size_of(record)
            partition = record[5]
            if partition is None or partition != last_partition or record[0] != last_topic:
                lane = self._lane_of(record)
                last_topic, last_partition = record[0], partition
            if lane is None or size > largest or taken_bytes + size > room_bytes or lane.broken:
                break
            if lane not in waiting:
                waiting[lane] = Waiter(lane.appended, lane.appended, asyncio.get_running_loop().create_future())
                lane.waiters.append(waiting[lane])
            if not lane.records:
                lane.first_at = time.monotonic()
            lane.records.append(record)
            lane.bytes += size
            lane.appended += 1
            taken_bytes += size
        else:
            index = min(len(records), at + max(0, room))
        self._records += index - at
        self._bytes += taken_bytes
        return index

    async def flush(self) -> None:
        """Return when everything queued so far is acknowledged or has failed."""
        futures = []
        for lane in self._lanes.values():
            if lane.settled < lane.appended:
                waiter = Waiter(lane.appended, lane.appended, asyncio.get_running_loop().create_future())
                lane.waiters.append(waiter)
                futures.append(waiter.future)
                lane.seal(waiter)
        if futures:
            await asyncio.wait(futures)

    async def wait_for_room(self) -> None:
        """Return when `send_nowait` would take a record again."""
        if self._records >= self.limits.buffer_records or self._bytes >= self.limits.buffer_bytes:
            self._room.clear()
        if not self._room.is_set():
            self._flush_lanes()
            await self._room.wait()

    # ---- lanes ----

    def _lane_of(self, record: OutRecord) -> Lane | None:
        topic, partition = record[0], record[5]
        if partition is None:
            if topic not in self._partitions:
                return None
            partition = self.partition_of(topic, record[1])
        return self._lanes.get((topic, partition))

    async def _new_lane(self, record: OutRecord) -> None:
        count = await self.partitions(record.topic)
        partition = record.partition if record.partition is not None else self.partition_of(record.topic, record.key)
        if not 0 <= partition < count:
            raise PublishFailed("unknown_partition", 1, f"{record.topic}-{partition}")
        if (record.topic, partition) not in self._lanes:
            self._open_lane(record.topic, partition)

    def _open_lane(self, topic: str, partition: int) -> Lane:
        lane = self._lanes[(topic, partition)] = Lane(topic, partition)
        lane.unbroken = (topic, partition) in self._unbroken
        lane.task = asyncio.create_task(self._run_lane(lane), name=f"producer {topic}-{partition}")
        return lane

    def _flush_lanes(self) -> None:
        for lane in self._lanes.values():
            if lane.records:
                lane.flush_now = True
                lane.wake.set()

    async def _run_lane(self, lane: Lane) -> None:
        """Cut the lane's queue into batches and send them in order, for as long as the producer lives."""
        try:
            while True:
                client = await self._ready_client()
                lane.wake.clear()
                under_way = sum(batch.via is client for batch in lane.sent)
                if under_way >= (LANE_BATCHES_IN_FLIGHT if lane.proven is client else 1):
                    await lane.wait()
                elif under_way < len(lane.sent):
                    await self._give(client, lane, lane.sent[under_way])
                elif (rest_s := lane.rest_s(self.limits)) != 0 or not self._take_slot(lane):
                    await lane.wait(rest_s or None)
                else:
                    lane.sent.append(lane.cut(self.limits))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end as a silent stall
            self._break(error)

    def _take_slot(self, lane: Lane) -> bool:
        """Take one of the batches in flight, or be woken when there is one."""
        if self._slots:
            self._slots -= 1
            return True
        if lane not in self._for_slot:
            self._for_slot.append(lane)
        return False

    async def _give(self, client: Client, lane: Lane, batch: Batch) -> None:
        """Queue the batch with `client`; its end is `_settle`."""
        batch.via = client
        try:
            if not client.knows(lane.topic):
                await client.partitions(lane.topic)
            if not batch.settled:
                sent = client.send(lane.topic, lane.partition, batch.records)
                sent.add_done_callback(lambda f: self._settle(client, lane, batch, f))
        except KafkaError as error:
            self._not_sent(client, lane, batch, error)

    def _settle(self, client: Client, lane: Lane, batch: Batch, sent: asyncio.Future[Any]) -> None:
        error = sent.exception() if not sent.cancelled() else asyncio.CancelledError()
        if batch.settled or batch.via is not client:
            return
        if error is None:
            told = sent.result()  # None with acks=0, where nobody tells
            lane.landed(told.offset if told is not None else -1, len(batch.records))
            lane.proven = client
            self._finish(lane, batch, None)
        else:
            self._not_sent(client, lane, batch, error)

    def _not_sent(self, client: Client, lane: Lane, batch: Batch, error: BaseException) -> None:
        """(4) and (5): what becomes of a batch that the client could not send."""
        if batch.settled or batch.via is not client:
            return
        refused = client.refusal(lane.topic, error)
        if refused is not None and refused.reason == UNKNOWN_TOPIC:
            self._fail_topic(lane.topic)
            return
        if refused is not None and refused.divisible and len(batch.records) > 1:
            if refused.reason == TOO_LARGE:
                lane.batch_bytes = min(batch.bytes // 2, lane.batch_bytes or batch.bytes)
            lane.split(batch)
        elif refused is not None:
            self._finish(lane, batch, refused.reason)
            if lane.unbroken:  # what the client holds of it goes with the client
                self._fail_lane(lane, ORDER_BROKEN)
        # A failed batch leaves a hole in the idempotent sequence: this client can send no more to the partition.
        self._replace(client, error, progress=refused is not None)

    def _finish(self, lane: Lane, batch: Batch, reason: str | None) -> None:
        self._release(batch)
        if reason is None:
            observe_acknowledged(lane.topic, batch.records)
        else:
            metrics.SEND_ERRORS.labels(reason).inc(len(batch.records))
        lane.settle(batch, reason)
        if self._delivered is not None:
            self._delivered(lane.topic, len(batch.records), reason)

    def _release(self, batch: Batch) -> None:
        if batch.holds_slot:
            self._slots += 1
            if self._for_slot:
                self._for_slot.popleft().wake.set()
        self._records -= len(batch.records)
        self._bytes -= batch.bytes
        if not self._room.is_set() and self._records <= self.limits.buffer_records // 2:
            self._room.set()
        metrics.BUFFER_DEPTH.set(self._records)

    # ---- the client and its replacement ----

    async def _ready_client(self) -> Client:
        while self._replacing is not None:
            await asyncio.wait([self._replacing])
        if self._client is None:
            raise BrokerUnavailable
        return self._client

    def _replace(self, client: Client, error: BaseException, *, progress: bool) -> None:
        """Begin the replacement of `client`; `progress` says that the batch at fault is settled or in halves."""
        if client is not self._client or self._replacing is not None or self._closed_for is not None:
            return
        if not progress:
            log.warning("the Kafka client failed and is replaced: %r", error, extra={"action": "producer_replaced"})
        replacing = self._replace_client(client, 0.0 if progress else RETRY_FIRST_S)
        self._replacing = asyncio.create_task(replacing, name="producer replacement")
        self._replacing.add_done_callback(self._replaced)

    def _replaced(self, replacing: asyncio.Task[None]) -> None:
        self._replacing = None
        if error := error_of(replacing):
            self._break(error)
        for lane in self._lanes.values():
            lane.wake.set()  # (4): each lane sends again, in order, what the new client has not been given

    async def _replace_client(self, broken: Client, pause_s: float) -> None:
        """Numbered as in the module's docstring: (4) end it and connect anew, however long that takes."""
        await broken.close()
        while True:
            if pause_s:
                await asyncio.sleep(pause_s)
            pause_s = min(max(pause_s, RETRY_FIRST_S) * 2, RETRY_MAX_S)
            try:
                self._client = await connect(self.limits)
            except BrokerUnavailable as error:
                log.warning("%s Retrying.", error, extra={"action": "broker_unavailable"})
                metrics.SEND_ERRORS.labels("broker_unavailable").inc()
            else:
                return

    # ---- failure ----

    def _break(self, error: BaseException) -> None:
        """A bug must not end as a silent stall: everything that waits, and will, learns of it."""
        log.error("the producer failed: %r", error, exc_info=error, extra={"action": "producer_failed"})
        self._failure = error
        self._closed_for = "producer_failed"
        self._fail_everything("producer_failed")
        self.failed.set()

    def _fail_topic(self, topic: str) -> None:
        """The topic is gone: what waits for it must not hold back the others. It is looked up anew when asked for."""
        log.warning("topic %s is gone", topic, extra={"action": "topic_gone"})
        self._partitions.pop(topic, None)
        self._partition_cache.pop(topic, None)
        for lane in self._lanes.values():
            if lane.topic == topic:
                self._fail_lane(lane, UNKNOWN_TOPIC)

    def _break_orders(self, records: Sequence[OutRecord]) -> None:
        """A `publish` was not queued whole."""
        for key in self._unbroken & self._lanes.keys() & {(record.topic, record.partition) for record in records}:
            self._lanes[key].broken = True

    def _fail_everything(self, reason: str) -> None:
        for lane in self._lanes.values():
            self._fail_lane(lane, reason)
        self._room.set()

    def _fail_lane(self, lane: Lane, reason: str) -> None:
        lane.broken = lane.unbroken
        if lane.records:
            rest = lane.cut_all()
            rest.holds_slot = False
            lane.sent.append(rest)
        for batch in list(lane.sent):
            self._finish(lane, batch, reason)
