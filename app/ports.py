"""The seams of the service: what agents use and adapters provide."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class OutRecord(NamedTuple):
    """One Kafka record to send.

    `partition` None means murmur2(key) over the topic's partitions, as the Java client does;
    `timestamp_ms` is the record's CreateTime in milliseconds UTC; `key` and `value` are bytes
    (`value` None is a tombstone); `intended_ms` is the wall clock at which the record was due, from
    which latency is counted.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    intended_ms: float | None = None


class InRecord(Protocol):
    """One Kafka record as it was read (aiokafka's ConsumerRecord fits)."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Publisher(Protocol):
    """Sends records in batches."""

    async def publish(self, records: Sequence[OutRecord]) -> None:
        """Return when every record is acknowledged by all in-sync replicas.

        Records of one partition keep their order. Raises `PublishFailed` when any record will
        never be acknowledged; the caller must then not commit what they were made from.
        """

    def last_offset(self, topic: str, partition: int) -> int | None:
        """Offset of the last record acknowledged for a partition, None before the first."""


class Clock(Protocol):
    """Wall time in milliseconds UTC, and a clock that never goes back for measuring."""

    def now_ms(self) -> int: ...
    def monotonic_s(self) -> float: ...


class SinkRow(NamedTuple):
    """One record on its way to a sink.

    `key` is the record's identity, the same on every delivery (for a rollup: device_id, metric,
    window_start, window_ms), named by `key_fields`, all of which are also in `row`. `version`
    orders rows of one key: a sink keeps the highest and ignores lower ones. `source` is
    (topic, partition, offset).
    """

    kind: str
    key: tuple[str | int, ...]
    key_fields: tuple[str, ...]
    version: int
    row: dict[str, Any]
    source: tuple[str, int, int]


class Sink(Protocol):
    """A destination that takes batches of rows, each as an idempotent upsert by its key."""

    name: str

    async def open(self) -> None:
        """Connect and create what is missing. Raises `SinkUnavailable` (worth a retry)."""

    async def write(self, rows: Sequence[SinkRow]) -> None:
        """Make all rows durable, or none that matter: a repeat of the same rows changes nothing.

        Raises `SinkUnavailable` (retry the whole batch) or `SinkRejected` (those rows only are
        refused for good; the others are durable).
        """

    async def close(self) -> None: ...
