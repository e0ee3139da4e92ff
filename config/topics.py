"""Every Kafka topic once: name, key, value, partitions, retention and cleanup."""

from dataclasses import dataclass, field
from typing import Literal

Cleanup = Literal["delete", "compact", "compact,delete"]

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it must exist on the broker.

    `partitions` None means the setting `kafka.partitions`. `schema` names the JSON Schema of the
    value under `docs/schemas/`. `extra` holds further broker-side topic settings.
    """

    name: str
    key: str
    schema: str
    cleanup: Cleanup = "delete"
    retention_ms: int = 7 * DAY_MS
    partitions: int | None = None
    extra: dict[str, str] = field(default_factory=dict)


DEVICE_COMMANDS = TopicSpec("device.commands", "device_id or group", "device-command", partitions=1)
DEVICE_METADATA = TopicSpec("device.metadata", "device_id", "device-metadata", cleanup="compact", retention_ms=-1)
DEVICE_TELEMETRY = TopicSpec("device.telemetry", "device_id", "telemetry")
DEVICE_ROLLUPS = TopicSpec("device.rollups", "device_id", "rollup")
DEVICE_SIGNALS = TopicSpec("device.signals", "device_id", "signal")
DEVICE_LATE = TopicSpec("device.late", "device_id", "late-reading")
DEVICE_DEADLETTER = TopicSpec("device.deadletter", "original key", "dead-letter", retention_ms=30 * DAY_MS)
DEVICE_TRUTH = TopicSpec("device.truth", "device_id", "truth", retention_ms=30 * DAY_MS)

TELEMETRY_TOPICS: tuple[TopicSpec, ...] = (
    DEVICE_COMMANDS,
    DEVICE_METADATA,
    DEVICE_TELEMETRY,
    DEVICE_ROLLUPS,
    DEVICE_SIGNALS,
    DEVICE_LATE,
    DEVICE_DEADLETTER,
    DEVICE_TRUTH,
)


# A broker refuses records an hour ahead of its clock; an engine whose clock was put forwards must not die of that.
ANY_CLOCK: dict[str, str] = {"message.timestamp.after.max.ms": str((1 << 63) - 1)}


def changelog(stage: str, **extra: str) -> TopicSpec:
    """The changelog of a stage's tables, co-partitioned with its input.

    A record younger than ten minutes is never compacted away, so that a takeover can still repair
    what a crashed owner left half written; a deletion is told for a day (docs/decisions/0004).
    """
    return TopicSpec(
        f"{stage}.state",
        "table, key",
        "changelog",
        cleanup="compact",
        retention_ms=-1,
        extra={
            "min.compaction.lag.ms": "600000",
            "delete.retention.ms": str(DAY_MS),
            "segment.bytes": str(64 << 20),
            **extra,
        },
    )


TRANSFORM_STATE = changelog("transform")

WORKFLOW_DEFINITIONS = TopicSpec(
    "workflow.definitions",
    "definition or entity",
    "workflow-definition",
    cleanup="compact",
    retention_ms=-1,
    partitions=1,
    extra=ANY_CLOCK,
)
WORKFLOW_COMMANDS = TopicSpec("workflow.commands", "execution_id", "workflow-command", extra=ANY_CLOCK)
WORKFLOW_EVENTS = TopicSpec("workflow.events", "execution_id", "workflow-events", extra=ANY_CLOCK)
WORKFLOW_DEADLETTER = TopicSpec(
    "workflow.deadletter", "execution_id", "workflow-dead-letter", retention_ms=30 * DAY_MS, extra=ANY_CLOCK
)
WORKFLOW_STATE = changelog("workflow", **ANY_CLOCK)


def workflow_tasks(queue: str) -> TopicSpec:
    """The orders of one task queue, for executors that are not in the owner's own process."""
    return TopicSpec(f"workflow.tasks.{queue}", "execution_id", "workflow-task", extra=ANY_CLOCK)


WORKFLOW_TOPICS: tuple[TopicSpec, ...] = (
    WORKFLOW_DEFINITIONS,
    WORKFLOW_COMMANDS,
    WORKFLOW_EVENTS,
    workflow_tasks("default"),
    WORKFLOW_DEADLETTER,
)

# Small, because every node reads all of it at its start; stamped by the broker, which shows a node how its clock goes.
CLUSTER_MEMBERS = TopicSpec(
    "cluster.members",
    "node_id",
    "cluster-member",
    cleanup="compact",
    retention_ms=-1,
    partitions=1,
    extra={
        "message.timestamp.type": "LogAppendTime",
        "segment.bytes": str(1 << 20),
        "min.cleanable.dirty.ratio": "0.1",
    },
)
ALL_TOPICS: tuple[TopicSpec, ...] = (
    *TELEMETRY_TOPICS,
    TRANSFORM_STATE,
    *WORKFLOW_TOPICS,
    WORKFLOW_STATE,
    CLUSTER_MEMBERS,
)
