"""Every Prometheus metric of the service, declared once; the names are fixed by dashboards and alerts."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry()
# A third of the exposition otherwise, of use to no dashboard here; in the text format they are gauges of their own.
disable_created_metrics()  # type: ignore[no-untyped-call]


class WeightedHistogram(Collector):
    """A histogram that takes many equal observations in one step: one call a batch, not one a record."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*buckets, float("inf"))
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        registry.register(self)

    def observe_many(self, value: float, count: int) -> None:
        """Count `value` `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    @property
    def counts(self) -> tuple[int, ...]:
        """Observations a bucket, not cumulated; the last bucket is +Inf."""
        return tuple(self._counts)

    def collect(self) -> Iterable[Metric]:
        """Expose the buckets cumulated, as Prometheus wants them."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], buckets, self._sum)
        yield family


LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)

MESSAGES_SENT = Counter("kafka_messages_sent", "Records acknowledged by the broker.", ["topic"], registry=REGISTRY)
SEND_ERRORS = Counter("kafka_send_errors", "Records that failed to be sent.", ["reason"], registry=REGISTRY)
BATCHES_SENT = Counter("kafka_batches_sent", "Record batches acknowledged by the broker.", registry=REGISTRY)
SEND_DURATION = WeightedHistogram(
    "kafka_send_duration_seconds",
    "From the intended instant of a reading to its acknowledgement.",
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
BUFFER_DEPTH = Gauge("kafka_producer_buffer_depth", "Records waiting in the producer.", registry=REGISTRY)
GENERATED = Counter("device_data_generated", "Readings generated.", ["device_type"], registry=REGISTRY)
LEDGER = Counter("telemetry_ledger_records", "Readings by what became of them.", ["outcome"], registry=REGISTRY)
LEDGER_IMBALANCE = Gauge(
    "telemetry_ledger_imbalance_records",
    "Readings whose fate is unknown beyond those that wait; anything but 0 is a fault.",
    registry=REGISTRY,
)
SPOOL_BYTES = Gauge("telemetry_spool_bytes", "Bytes waiting on disk for the broker.", registry=REGISTRY)
SPOOL_RECORDS = Gauge("telemetry_spool_records", "Readings waiting on disk for the broker.", registry=REGISTRY)
LATE = Counter("telemetry_late_records", "Readings later than the grace period.", registry=REGISTRY)
DUPLICATES = Counter("telemetry_duplicates", "Readings seen before.", registry=REGISTRY)
GAPS = Counter("telemetry_gaps", "Sequence numbers that never came.", registry=REGISTRY)
DEAD_LETTERS = Counter("telemetry_dead_letters", "Records put on the dead-letter topic.", ["reason"], registry=REGISTRY)
ROLLUPS = Counter("rollups_emitted", "Rollups emitted, revisions included.", ["window"], registry=REGISTRY)
SIGNALS = Counter("signals_generated", "Signals raised.", ["rule", "severity"], registry=REGISTRY)
RULE_FAILURES = Counter(
    "signal_rule_failures", "Expressions of a rule that gave no answer.", ["rule"], registry=REGISTRY
)
SIGNAL_SAMPLES_AHEAD = Counter(
    "signal_samples_ahead", "Samples that no rule looked at: their device's clock is ahead.", registry=REGISTRY
)
SIGNAL_METRICS_CROWDED = Counter(
    "signal_metrics_crowded", "Looks at metrics of devices that have too many to watch.", registry=REGISTRY
)
SINK_RECORDS = Counter("sink_records", "Rows by what became of them.", ["sink", "outcome"], registry=REGISTRY)
SINK_DURATION = Histogram(
    "sink_duration_seconds", "One write of a batch.", ["sink"], buckets=LATENCY_BUCKETS_S, registry=REGISTRY
)
SINK_LAG = Gauge("sink_lag_records", "Records that wait for a sink.", ["sink"], registry=REGISTRY)
LAG_RECORDS = Gauge(
    "stream_lag_records",
    "Records not yet processed; of several readers in one process the one furthest behind.",
    ["topic", "partition"],
    registry=REGISTRY,
)
LAG_SECONDS = Gauge(
    "stream_lag_seconds", "Age of the last processed record.", ["topic", "partition"], registry=REGISTRY
)
CONFIG_RELOADS = Counter("config_reloads", "Attempts to reload the settings.", ["outcome"], registry=REGISTRY)
CONFIG_INFO = Gauge(
    "config_info", "Always 1; the label is the hash of the settings in force.", ["hash"], registry=REGISTRY
)
TABLE_RESTORED = Counter(
    "table_restored_records", "Changelog records applied on restore.", ["stage"], registry=REGISTRY
)
TABLE_RESTORE_SECONDS = Histogram(
    "table_restore_duration_seconds",
    "Restore of one partition.",
    ["stage"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
    registry=REGISTRY,
)
LOOP_LAG = Gauge("asyncio_loop_lag_seconds", "Delay of a timer on the event loop.", registry=REGISTRY)
LOOP_TASKS = Gauge("asyncio_tasks", "Tasks alive on the event loop.", registry=REGISTRY)
HTTP_REQUESTS = Counter("http_requests", "HTTP requests.", ["route", "code"], registry=REGISTRY)
HTTP_DURATION = Histogram(
    "http_request_duration_seconds", "HTTP requests.", ["route"], buckets=LATENCY_BUCKETS_S, registry=REGISTRY
)
CHILD_UP = Gauge("supervisor_child_up", "1 while the process of the role runs.", ["role"], registry=REGISTRY)
CHILD_RESTARTS = Counter("supervisor_child_restarts", "Restarts of a role's process.", ["role"], registry=REGISTRY)
WORKFLOW_TRIGGER_RECORDS = Counter(
    "workflow_trigger_records",
    "Records of topics that workflows listen to, by what they came to, once a workflow that wants them.",
    ["topic", "outcome"],
    registry=REGISTRY,
)
WORKFLOW_TRIGGER_LATE = Counter(
    "workflow_trigger_late_records",
    "Records of topics that workflows listen to, read when they were older than workflow.retention_s.",
    ["topic"],
    registry=REGISTRY,
)
WORKFLOW_TRIGGER_FAILURES = Counter(
    "workflow_trigger_failures",
    "Conditions of triggers that gave no answer for a record.",
    ["workflow"],
    registry=REGISTRY,
)
WORKFLOW_EXECUTIONS = Counter(
    "workflow_executions", "Executions that ended, by how.", ["workflow", "status"], registry=REGISTRY
)
WORKFLOW_EXECUTION_DURATION = Histogram(
    "workflow_execution_duration_seconds",
    "From the start of an execution to its end.",
    ["workflow"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600),
    registry=REGISTRY,
)
WORKFLOW_ACTIVE = Gauge(
    "workflow_executions_active", "Executions that have not ended.", ["partition"], registry=REGISTRY
)
WORKFLOW_TASKS = Counter("workflow_tasks", "Attempts of tasks that ended.", ["type", "status"], registry=REGISTRY)
WORKFLOW_TASK_DURATION = Histogram(
    "workflow_task_duration_seconds",
    "One attempt of a task in its executor.",
    ["type"],
    buckets=(0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)
WORKFLOW_TRIGGER_LATENCY = Histogram(
    "workflow_trigger_latency_seconds",
    "From the instant an execution was asked for to its first task.",
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
WORKFLOW_RETRIES = Counter("workflow_task_retries", "Attempts that are tried again.", registry=REGISTRY)
WORKFLOW_TIMER_LAG = Histogram(
    "workflow_timers_lag_seconds",
    "How long after it was due a durable timer fired.",
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
WORKFLOW_FAILOVER = Histogram(
    "workflow_failover_seconds",
    "From the round of the group without an owner that is gone until its partitions are open here.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
WORKFLOW_MAILBOX = Gauge(
    "workflow_mailbox_depth", "Commands of a partition that wait to be decided.", ["partition"], registry=REGISTRY
)
TRACE_SPANS = Counter(
    "trace_spans",
    "Spans by what became of them: exported, failed (the collector did not take them) or dropped (too many waited).",
    ["outcome"],
    registry=REGISTRY,
)
TASKS_ABANDONED = Gauge(
    "workflow_tasks_abandoned",
    "Threads and coroutines of tasks that were given up and have not come back.",
    ["kind"],
    registry=REGISTRY,
)
TASK_PROCESSES_DIED = Counter(
    "workflow_task_processes_died", "Task processes that ended under their task.", registry=REGISTRY
)
CLUSTER_MEMBERS = Gauge("cluster_members", "Nodes of the cluster that this node knows.", registry=REGISTRY)
CLUSTER_UNREACHABLE = Gauge(
    "cluster_unreachable_members", "Nodes of the cluster that are not reached.", registry=REGISTRY
)
CLUSTER_LEADER = Gauge("cluster_leader", "1 on the node that does what one has to do for all.", registry=REGISTRY)
CLUSTER_NODES = Gauge(
    "cluster_nodes", "Nodes by version and standing; told by the leader.", ["version", "standing"], registry=REGISTRY
)
CLUSTER_OWNERLESS = Gauge(
    "cluster_ownerless_partitions",
    "Partitions of a group that no reachable node has; told by the leader.",
    ["group"],
    registry=REGISTRY,
)
