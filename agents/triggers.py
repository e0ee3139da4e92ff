"""Kafka triggers: each record of a topic starts the workflows that want it, each under one id, however often it comes.

The id is `<workflow>:<topic>-<partition>-<offset>`: the same at every delivery, another for every workflow, whatever
other workflows listen. A record starts a workflow once, by the first of its triggers that wants it; the trigger that
a signal carries itself goes first. What no workflow can make use of becomes a dead letter, and the rest goes on.

The order, which is the guarantee: (1) a batch is decided; (2) its starts and dead letters are acknowledged by every
in-sync replica; (3) only then the range is acknowledged to the transport, which commits it.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import orjson

from agents.stage import StageBatch
from app import metrics
from app.codec import DEPTH_MAX, is_too_deep
from app.domain.workflow.commands import Debounce, Start
from app.domain.workflow.definition import TopicTrigger, Workflow
from app.domain.workflow.expressions import ExpressionError, Expressions
from app.domain.workflow.limiter import OWN_LIMIT_MAX, own_limit
from app.ports import Clock, InRecord, OutRecord, Publisher
from app.task_ends import Parts
from app.workflow_starts import key_text, start_of, start_record
from config.topics import WORKFLOW_DEADLETTER

log = logging.getLogger(__name__)

# Entities' ids begin with these words and a colon; a workflow called so has no ids of this kind left.
RESERVED: Final = frozenset({"schedule", "backfill"})
KEEP_BYTES: Final = 65_536
# Records decided without a breath, about 2 ms: an engine on the same loop has timers to fire.
AT_ONCE: Final = 100
# A condition that fails, fails for every record: it is logged once in so long.
LOG_INTERVAL_S: Final = 60.0


class Subscribed(NamedTuple):
    """The triggers by which a workflow listens to a topic. Records older than `since_ms` were before its time."""

    workflow: Workflow
    triggers: tuple[TopicTrigger, ...]
    since_ms: int = 0


class Subscriptions(Protocol):
    """What the newest definitions listen to."""

    def of_topic(self, topic: str) -> Sequence[Subscribed]:
        """Who listens to a topic now."""

    def named(self, workflow: str) -> Subscribed | None:
        """The newest version of a workflow that a signal names."""


@dataclass(slots=True)
class Decided:
    """What a batch comes to: starts, and dead letters for what cannot be used."""

    starts: list[Start] = field(default_factory=list)
    letters: list[OutRecord] = field(default_factory=list)


class Triggers:
    """Decides batches of records; keeps nothing between them but when it last logged."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        expressions: Expressions,
        clock: Clock,
        partitions: int,
        input_bytes: int = 524_288,
        retention_ms: int = 86_400_000,
    ) -> None:
        """`partitions` is the number of those that executions live on; `input_bytes` the largest input as JSON.

        After `retention_ms` an execution that has ended is no longer known as started.
        """
        self._subscriptions = subscriptions
        self._expressions = expressions
        self._clock = clock
        self._partitions = partitions
        self._input_bytes = input_bytes
        self._retention_ms = retention_ms
        self._logged_s: dict[tuple[str, ...], float] = {}

    def outputs(self, records: Sequence[InRecord]) -> list[OutRecord]:
        """(1) What the records of one batch, all of one partition, come to."""
        now_ms = self._clock.now_ms()
        decided = self.decide(records, now_ms)
        return [*(start_record(start, self._partitions, now_ms) for start in decided.starts), *decided.letters]

    def decide(self, records: Sequence[InRecord], now_ms: int) -> Decided:
        """The same before it is put into bytes."""
        decided = Decided()
        self._mind_the_age(records, now_ms)
        subscribed = self._subscriptions.of_topic(records[0].topic)
        for record in records:
            if record.value is None:
                _count(record.topic, "ignored")
                continue
            try:
                value = orjson.loads(record.value)
            except orjson.JSONDecodeError as error:
                self._bury(decided, record, None, "malformed_json", str(error), now_ms)
                continue
            if is_too_deep(record.value, value):
                detail = f"Lists and objects are nested more than {DEPTH_MAX} deep."
                self._bury(decided, record, None, "too_deep", detail, now_ms)
                continue
            self._of_record(decided, record, value, subscribed, now_ms)
        return decided

    def _of_record(
        self, decided: Decided, record: InRecord, value: Any, subscribed: Sequence[Subscribed], now_ms: int
    ) -> None:
        before = len(decided.starts) + len(decided.letters)
        own = self._own(decided, record, value, now_ms)
        for each in subscribed:
            if each.workflow.id == own or record.timestamp < each.since_ms:
                continue
            names = {**value, "record": value} if isinstance(value, dict) else {"record": value}
            trigger = next((one for one in each.triggers if self._wanted(each.workflow, one, names)), None)
            if trigger is None:
                continue
            try:
                start = self._start(record, value, names, each.workflow, trigger, now_ms)
            except ExpressionError as error:
                self._bury(decided, record, each.workflow.id, "no_start", str(error), now_ms)
                continue
            self._add(decided, record, start)
        if before == len(decided.starts) + len(decided.letters):
            _count(record.topic, "ignored")

    # ---- the trigger that a signal carries ----

    def _own(self, decided: Decided, record: InRecord, value: Any, now_ms: int) -> str | None:
        """Start the workflow that the record itself names; its id, None when it names none."""
        own = value.get("trigger") if isinstance(value, dict) else None
        if not isinstance(own, dict) or not isinstance(own.get("workflow"), str):
            return None
        name: str = own["workflow"]
        found = self._subscriptions.named(name)
        if found is None:
            self._bury(decided, record, name, "unknown_workflow", f"Workflow {name} is not registered.", now_ms)
            return name
        if record.timestamp < found.since_ms:
            return name
        key = None if own.get("key") is None else key_text(own["key"])
        limit = own.get("concurrency")
        if limit is not None and own_limit(own) is None:
            detail = f"The signal's trigger.concurrency is a whole number from 1 to {OWN_LIMIT_MAX:,}, not {limit!r}."
            self._bury(decided, record, name, "no_start", detail, now_ms)
            return name
        definition = found.workflow
        is_limited = definition.concurrency is not None or (limit is not None and definition.rate is None)
        seconds = own.get("debounce_s")
        debounce = None
        if isinstance(seconds, int | float) and seconds > 0:
            debounce = _debounce(f"{name}/{key or ''}", float(seconds), record)
        try:
            start = start_of(
                found.workflow,
                record_id(name, record),
                self._fitting(own.get("input")),
                _trigger(record),
                self._expressions,
                self._partitions,
                at_ms=now_ms,
                key=key if is_limited else None,
                debounce=debounce,
                concurrency=limit,
                traceparent=_traceparent(record),
            )
        except ExpressionError as error:
            self._bury(decided, record, name, "no_start", str(error), now_ms)
            return name
        self._add(decided, record, start)
        return name

    # ---- triggers of definitions ----

    def _wanted(self, workflow: Workflow, trigger: TopicTrigger, names: Mapping[str, Any]) -> bool:
        if trigger.when is None:
            return True
        try:
            return self._expressions.evaluate(trigger.when, names) is True
        except ExpressionError as error:
            metrics.WORKFLOW_TRIGGER_FAILURES.labels(workflow.id).inc()
            self._log(workflow, trigger, error)
            return False

    def _start(
        self,
        record: InRecord,
        value: Any,
        names: Mapping[str, Any],
        workflow: Workflow,
        trigger: TopicTrigger,
        now_ms: int,
    ) -> Start:
        """Raises `ExpressionError` when the record does not give what the trigger needs."""
        evaluate = self._expressions.evaluate
        given = {name: evaluate(source, names) for name, source in trigger.input.items()} if trigger.input else value
        debounce = None
        if trigger.debounce_s > 0:
            key = "" if trigger.key is None else key_text(evaluate(trigger.key, names))
            debounce = _debounce(f"{workflow.id}/{key}", trigger.debounce_s, record)
        return start_of(
            workflow,
            record_id(workflow.id, record),
            self._fitting(given),
            _trigger(record),
            self._expressions,
            self._partitions,
            at_ms=now_ms,
            debounce=debounce,
            traceparent=_traceparent(record),
        )

    def _fitting(self, given: Any) -> Any:
        """The input, when it is not too large. Raises `ExpressionError`."""
        try:
            size = len(orjson.dumps(given))
        except TypeError as error:  # an expression can nest deeper than JSON, or give a number that it has not
            raise ExpressionError(f"The input cannot be written as JSON: {error}") from error
        if size > self._input_bytes:
            raise ExpressionError(f"The input has {size} bytes, and {self._input_bytes} are the most.")
        return given

    # ---- outcomes ----

    def _add(self, decided: Decided, record: InRecord, start: Start) -> None:
        decided.starts.append(start)
        _count(record.topic, "started")

    def _bury(
        self, decided: Decided, record: InRecord, workflow: str | None, reason: str, detail: str, now_ms: int
    ) -> None:
        _count(record.topic, "dead_letter")
        value = record.value or b""
        letter = {
            "kind": "trigger",
            "reason": reason,
            "detail": detail[:1_000],
            "workflow": workflow,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "value": base64.b64encode(value[:KEEP_BYTES]).decode(),
            "value_bytes": len(value),
            "at": now_ms,
        }
        key = f"{record.topic}-{record.partition}-{record.offset}".encode()
        decided.letters.append(OutRecord(WORKFLOW_DEADLETTER.name, key, orjson.dumps(letter), now_ms))

    def _mind_the_age(self, records: Sequence[InRecord], now_ms: int) -> None:
        """Count the records that are so old that what they may have started before would be forgotten by now."""
        late = [record for record in records if 0 < record.timestamp < now_ms - self._retention_ms]
        if not late:
            return
        topic = late[0].topic
        metrics.WORKFLOW_TRIGGER_LATE.labels(topic).inc(len(late))
        if self._may_log(("late", topic)):
            log.warning(
                "%d records of %s, from offset %d of partition %d on, are older than workflow.retention_s: one that"
                " was read before and whose execution has ended since starts another",
                len(late),
                topic,
                late[0].offset,
                late[0].partition,
                extra={"action": "trigger_records_late", "topic": topic, "records": len(late)},
            )

    def _may_log(self, cause: tuple[str, ...]) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s - self._logged_s.get(cause, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            return False
        self._logged_s[cause] = now_s
        return True

    def _log(self, workflow: Workflow, trigger: TopicTrigger, error: ExpressionError) -> None:
        if not self._may_log(("condition", workflow.id, trigger.when or "")):
            return
        log.warning(
            "the trigger of %s on %s has no answer for a record: %s",
            workflow.id,
            trigger.topic,
            error,
            extra={"action": "trigger_condition_failed", "workflow_id": workflow.id},
        )


def record_id(workflow: str, record: InRecord) -> str:
    """The id of the execution that a record starts. Raises `ExpressionError` for a workflow that can have none."""
    if workflow in RESERVED:
        raise ExpressionError(f"A workflow called {workflow} cannot be started by a topic.")
    return f"{workflow}:{record.topic}-{record.partition}-{record.offset}"


def _trigger(record: InRecord) -> dict[str, Any]:
    return {
        "kind": "kafka",
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp,
        "key": None if record.key is None else record.key.decode(errors="replace"),
    }


def _debounce(key: str, seconds: float, record: InRecord) -> Debounce:
    """Counted in the record's own time, where it has one: so it comes to the same however often it is read."""
    return Debounce(
        key=key,
        seconds=seconds,
        at_ms=max(0, record.timestamp),
        source=f"{record.topic}-{record.partition}",
        offset=record.offset,
    )


def _traceparent(record: InRecord) -> str | None:
    found = next((content for name, content in record.headers if name == "traceparent"), None)
    return None if found is None else found.decode(errors="replace")[:64]


def _count(topic: str, outcome: str) -> None:
    metrics.WORKFLOW_TRIGGER_RECORDS.labels(topic, outcome).inc()


async def triggers(
    batches: AsyncIterator[StageBatch],
    *,
    decide: Callable[[Sequence[InRecord]], list[OutRecord]],
    publisher: Publisher,
    in_flight: int = 8,
    on_settled: Callable[[int], None] = lambda _: None,
) -> None:
    """Decide batch after batch, at most `in_flight` of them on their way to the broker.

    `on_settled` hears how many records were acknowledged. A failure to publish ends it: what was not acknowledged is
    read again. Numbered as the module.
    """
    room = asyncio.Semaphore(in_flight)
    async with Parts() as group:
        async for batch in batches:
            await room.acquire()
            outputs: list[OutRecord] = []
            for begin in range(0, len(batch.records), AT_ONCE):
                outputs += decide(batch.records[begin : begin + AT_ONCE])  # 1
                await asyncio.sleep(0)
            group.create_task(_settle(batch, outputs, publisher, room, on_settled), name="trigger batch")


async def _settle(
    batch: StageBatch,
    outputs: Sequence[OutRecord],
    publisher: Publisher,
    room: asyncio.Semaphore,
    on_settled: Callable[[int], None],
) -> None:
    try:
        if outputs:
            await publisher.publish(outputs)  # 2
        batch.ack()  # 3
        on_settled(len(batch.records))
    finally:
        room.release()
