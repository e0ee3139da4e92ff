"""The task type source.kafka: a bounded slice of a topic of the service's own cluster."""

import base64
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import Field, model_validator

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.spans import call_span, kafka_call
from app.adapters.tasks.types.params import Params
from app.adapters.tasks.types.values import Budget
from app.errors import TaskFailed
from app.ports import InRecord

if TYPE_CHECKING:
    from app.adapters.tasks.types.topic_slice import Slice
    from app.adapters.topic_reader import TopicReader


class KafkaSourceParams(Params):
    """What source.kafka is told."""

    topic: str = Field(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$", description="Topic.")
    since: int | str | None = Field(
        None, description="From this instant on: milliseconds UTC, ISO 8601, or seconds back from now as `-90s`."
    )
    until: int | str | None = Field(None, description="Up to this instant, not included; left out: the end of now.")
    partition: int | None = Field(None, ge=0, description="Only this partition.")
    start_offset: int | None = Field(None, ge=0, description="With `partition`: from this offset on.")
    end_offset: int | None = Field(None, ge=0, description="With `partition`: up to this offset, not included.")
    last: int | None = Field(None, ge=1, description="Only the last so many offsets of each partition of the slice.")
    key: str | None = Field(
        None, description="Only records of this key; without `partition` on the one murmur2 gives it."
    )
    decode: Literal["json", "text", "base64"] = Field("json", description="How values are read.")
    values: bool = Field(default=False, description="Give the values alone instead of whole records.")
    max_rows: int = Field(1_000, ge=1, description="More records than this are an error.")
    on_more: Literal["fail", "cut"] = Field("fail", description="`cut`: take the first max_rows instead of failing.")
    max_scan: int = Field(100_000, ge=1, le=10_000_000, description="A slice of more offsets than this is not read.")

    @model_validator(mode="after")
    def _holds_together(self) -> "KafkaSourceParams":
        if self.partition is None and (self.start_offset is not None or self.end_offset is not None):
            raise ValueError("start_offset and end_offset need `partition`")
        return self


class KafkaSource:
    """Reads outside any consumer group: nothing is committed, and no other reader notices."""

    name = "source.kafka"
    params_model = KafkaSourceParams
    kind: Kind = "async"
    pure = False

    async def run(self, call: TaskCall[KafkaSourceParams]) -> list[Any]:
        """Records by timestamp: {topic, partition, offset, timestamp, key, value, headers}, or their values."""
        from app.adapters.tasks.types.topic_slice import records_of, translated  # noqa: PLC0415 - a vendor in need

        params, settings = call.params, call.shared.settings
        budget = Budget(min(params.max_rows, settings.source_rows), settings.source_bytes)
        reader = call.shared.reader()
        found: list[InRecord] = []
        asked = call_span("client", lambda: kafka_call(params.topic, "poll", "receive"))
        with asked, translated(params.topic):
            wanted = await _slice(reader, params, call.shared.clock.now_ms())
            key = None if params.key is None else params.key.encode()
            async with aclosing(records_of(reader, wanted, call, params.max_scan)) as records:
                async for record in records:
                    if key is not None and record.key != key:
                        continue
                    if budget.full and params.on_more == "cut":
                        break
                    budget.add(None)
                    budget.spend(len(record.value or b""))
                    found.append(record)
        found.sort(key=lambda one: (one.timestamp, one.partition, one.offset))
        return [_value(one, params.decode) if params.values else _row(one, params.decode) for one in found]


async def _slice(reader: "TopicReader", params: KafkaSourceParams, now_ms: int) -> "Slice":
    from app.adapters.tasks.types.topic_slice import Slice, clipped, instant_ms, slice_of  # noqa: PLC0415 - see `run`

    since_ms = instant_ms(params.since, now_ms, "since")
    wanted = await slice_of(reader, params.topic, since_ms, instant_ms(params.until, now_ms, "until"))
    if params.partition is not None:
        at = params.partition
        if at not in wanted.end:
            raise TaskFailed(
                "UnknownPartition", f"{params.topic} has {len(wanted.end)} partitions, and no {at}", retryable=False
            )
        start, end = {at: wanted.start[at]}, {at: wanted.end[at]}
        if params.end_offset is not None:
            end = clipped({at: params.end_offset}, start, end)
        if params.start_offset is not None:
            start = clipped({at: params.start_offset}, start, end)
        wanted = Slice(params.topic, start, end)
    elif params.key is not None:
        wanted = wanted.only(params.key)
    if params.last is not None:
        start = {at: max(wanted.start.get(at, 0), end - params.last) for at, end in wanted.end.items()}
        wanted = wanted._replace(start=start)
    return wanted


def _row(record: InRecord, decode: str) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": None if record.key is None else record.key.decode("utf-8", "replace"),
        "value": _value(record, decode),
        "headers": {name: value.decode("utf-8", "replace") for name, value in record.headers if value is not None},
    }


def _value(record: InRecord, decode: str) -> Any:
    if record.value is None:
        return None
    if decode == "base64":
        return base64.b64encode(record.value).decode()
    try:
        return orjson.loads(record.value) if decode == "json" else record.value.decode()
    except ValueError as error:
        place = f"{record.topic}-{record.partition} at offset {record.offset}"
        raise TaskFailed(
            "InvalidRecord",
            f"the record of {place} is no {decode}: {error}",
            retryable=False,
            detail={"partition": record.partition, "offset": record.offset},
        ) from error
