"""The seams of the service: what agents use and adapters provide."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from app.domain.trace import Span
from app.domain.workflow.commands import Heartbeat, Report
from app.domain.workflow.definition import Workflow
from app.domain.workflow.orders import TaskOrder


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


class Way(NamedTuple):
    """How far the records of one partition are: `settled` of `queued` have an end, and they are the first."""

    settled: int
    queued: int


class TakenBack(NamedTuple):
    """Records of one partition that had no end; `before` are those that ever went ahead of them."""

    before: int
    records: list[OutRecord]


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


class Followed(NamedTuple):
    """What one look at the end of a partition brought: its next records, and where it ended then."""

    partition: int
    records: Sequence[InRecord]
    end: int


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


Reported = Callable[[Report | Heartbeat], None]
"""Called on the loop with what an executor has to say of an order; it may not block and may not raise."""


class TaskExecutor(Protocol):
    """Carries out attempts of tasks, so many at once and no more."""

    def submit(self, order: TaskOrder, report: Reported) -> bool:
        """Begin the attempt; False when every slot is taken (nothing was begun).

        `report` is called any number of times with a heartbeat, then once with a `Report`, whatever the task
        does: raise, hang, crash its process or return what cannot be serialised. It is not called after `cancel`.
        """

    def cancel(
        self, execution_id: str, task: str | None = None, item: int | None = None, *, before: int | None = None
    ) -> None:
        """Ask what runs for an execution (one task, one item of it) to stop, and end it when it does not.

        With `before` only attempts whose token is lower.
        """

    @property
    def free(self) -> int:
        """Attempts that could begin now."""

    async def close(self) -> None:
        """End everything; what ran is not reported and will be ordered again."""


class Tracing(Protocol):
    """Where spans go; nobody has one where traces are off."""

    sample_ratio: float
    """The share of the traces that begin here which are recorded."""

    def ended(self, span: Span) -> None:
        """Take a span that has ended, if it is sampled; at once, from the loop: one too many is dropped and counted."""


class Definitions(Protocol):
    """The registered workflows, as this process has read them from `workflow.definitions`."""

    def get(self, workflow: str, version: str) -> Workflow | None:
        """One immutable version, None when it is not known here (yet)."""

    def latest(self, workflow: str) -> Workflow | None:
        """The version that a start without a version means."""

    async def caught_up(self) -> None:
        """Return when everything that was on the topic at the time of the call has been read."""
