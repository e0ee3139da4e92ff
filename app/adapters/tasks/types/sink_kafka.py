"""The task type sink.kafka: rows as records of a topic of the service's own cluster."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import Field

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.spans import call_span, kafka_call
from app.adapters.tasks.types.params import Params
from app.adapters.tasks.types.values import field_of
from app.domain.trace import HEADER
from app.errors import BrokerUnavailable, PublishFailed, TaskFailed
from app.ports import OutRecord

EFFECT_HEADER: Final = "idempotency-key"
# What the engine and its tables live by: a record of another's would be taken for theirs.
_OURS: Final = ("workflow.", "__")
_OURS_END: Final = ".state"
# What a broker or its limits say about a record itself; all else may pass with time.
_REFUSALS: Final = frozenset({"record_too_large", "batch_too_large", "invalid_record"})


class KafkaSinkParams(Params):
    """What sink.kafka is told."""

    topic: str = Field(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$", description="Topic; it must exist.")
    key: str | None = Field(
        None, description="Field of the row that is the record's key (text as it is, else as JSON); dotted paths."
    )
    value: str | None = Field(None, description="Field of the row that is the record's value; left out: the whole row.")
    partition: int | None = Field(None, ge=0, description="Partition; left out: murmur2 of the key, as Java does.")
    headers: dict[str, str] = Field(default_factory=dict, description="Headers of each record.")
    timeout_s: float = Field(30.0, gt=0, le=86_400, description="Give up when the broker has not acknowledged by then.")


class KafkaSinkTask:
    """Done when every record is acknowledged by all in-sync replicas.

    Kafka has no record that is written once by its key: a repeated attempt writes the records again. Each has the
    header `idempotency-key` (the effect's, and `/<number of the row>`), by which a consumer tells repeats.
    """

    name = "sink.kafka"
    params_model = KafkaSinkParams
    kind: Kind = "async"
    pure = False

    async def run(self, call: TaskCall[KafkaSinkParams]) -> dict[str, Any]:
        """{topic, rows}."""
        params = call.params
        if params.topic.startswith(_OURS) or params.topic.endswith(_OURS_END):
            raise TaskFailed("TopicRefused", f"{params.topic} is a topic of the service itself", retryable=False)
        now_ms = call.shared.clock.now_ms()
        records = [_record(call, number, row, now_ms) for number, row in enumerate(call.rows)]
        if records:
            count = len(records) if len(records) > 1 else None
            with call_span("producer", lambda: kafka_call(params.topic, "send", "send", count)) as span:
                if span is not None and not any(name.lower() == HEADER for name in params.headers):
                    context = (HEADER, span.header.encode())
                    records = [record._replace(headers=[*record.headers, context]) for record in records]
                await _publish(call, records)
        return {"topic": params.topic, "rows": len(records)}


async def _publish(call: TaskCall[KafkaSinkParams], records: list[OutRecord]) -> None:
    params = call.params
    try:
        async with asyncio.timeout(params.timeout_s):
            producer = await call.shared.producer()
            await producer.publish(records)
    except TimeoutError as error:
        raise TaskFailed("KafkaTimeout", f"Kafka did not acknowledge within {params.timeout_s:g} s") from error
    except BrokerUnavailable as error:
        raise TaskFailed("KafkaUnavailable", str(error)) from error
    except PublishFailed as error:
        if error.reason == "unknown_topic":
            raise TaskFailed("UnknownTopic", f"there is no topic {params.topic}", retryable=False) from error
        kind = "RecordRefused" if error.reason in _REFUSALS else "KafkaUnavailable"
        raise TaskFailed(
            kind, str(error), retryable=kind == "KafkaUnavailable", detail={"reason": error.reason}
        ) from error


def _record(call: TaskCall[KafkaSinkParams], number: int, row: Any, now_ms: int) -> OutRecord:
    params = call.params
    value = row if params.value is None else field_of(row, params.value)
    headers = (*params.headers.items(), (EFFECT_HEADER, f"{call.idempotency_key}/{number}"))
    try:
        return OutRecord(
            topic=params.topic,
            key=_key(row, params.key, number),
            value=orjson.dumps(value),
            timestamp_ms=now_ms,
            headers=[(name, text.encode()) for name, text in headers],
            partition=params.partition,
        )
    except TypeError as error:
        raise TaskFailed(
            "InvalidRow", f"row {number} is not JSON: {error}", retryable=False, detail={"row": number}
        ) from error


def _key(row: Any, field: str | None, number: int) -> bytes | None:
    if field is None:
        return None
    value = field_of(row, field) if isinstance(row, Mapping) else None
    if value is None:
        raise TaskFailed(
            "InvalidRow", f"row {number} has no {field}, which is the key", retryable=False, detail={"row": number}
        )
    return value.encode() if isinstance(value, str) else orjson.dumps(value)
