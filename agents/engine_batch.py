"""What one batch of a partition's engine changes and does: rows, records, and what begins once it is durable."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import Histogram

from agents.engine_terms import Wanted
from app import metrics
from app.domain.workflow.events import Event, TaskFailed, TaskSucceeded
from app.domain.workflow.graph import Graph
from app.domain.workflow.orders import Recall
from tables.partition import Changes


@dataclass(slots=True)
class Batch(Changes):
    """`dispatches` begin and `cancels` are called back once the rest is durable.

    A cancel is (execution, task, item, token): what began later than that, with this token or a higher one, goes on.

    What is in `early` may begin before.

    `tasks` counts attempts by (type, status), `ended` executions by (workflow, status); `attempts` (type) and
    `durations` (workflow) say how long they took, in seconds.
    """

    dispatches: list[Wanted] = field(default_factory=list)
    early: list[Wanted] = field(default_factory=list)
    cancels: list[tuple[str, str | None, int | None, int]] = field(default_factory=list)
    recalls: list[tuple[str, Recall]] = field(default_factory=list)  # by queue
    tasks: dict[tuple[str, str], int] = field(default_factory=dict)
    ended: dict[tuple[str, str], int] = field(default_factory=dict)
    attempts: list[tuple[str, float]] = field(default_factory=list)
    durations: list[tuple[str, float]] = field(default_factory=list)
    retries: int = 0
    fresh_timers: set[bytes] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        """Nothing was decided."""
        return not (self.rows or self.outputs or self.dispatches or self.early or self.cancels)

    def set_timer(self, timer: bytes) -> None:
        """A timer's row is wanted; it is new unless this batch has deleted it before."""
        if timer not in self.rows:
            self.fresh_timers.add(timer)
        self.put(timer, b"")

    def unset(self, timer: bytes) -> None:
        """A timer's row is not wanted any more; one that only this batch knows of was never written."""
        if timer in self.fresh_timers:
            self.fresh_timers.remove(timer)
            del self.rows[timer]
        else:
            self.rows[timer] = None

    def count(self, events: Sequence[Event], graph: Graph) -> None:
        """Attempts that ended."""
        for event in events:
            cls = event.__class__
            if cls is TaskSucceeded or cls is TaskFailed:
                assert isinstance(event, TaskSucceeded | TaskFailed), "one of the two"
                kind = graph.nodes[event.task].task.type
                place = (kind, "succeeded" if cls is TaskSucceeded else "failed")
                self.tasks[place] = self.tasks.get(place, 0) + 1
                if isinstance(event, TaskFailed) and event.retry_at is not None:
                    self.retries += 1
                if event.worker:
                    self.attempts.append((kind, event.duration_ms / 1000))

    def export(self) -> None:
        """Add the counts to the metrics."""
        for (kind, status), count in self.tasks.items():
            metrics.WORKFLOW_TASKS.labels(kind, status).inc(count)
        for (workflow, status), count in self.ended.items():
            metrics.WORKFLOW_EXECUTIONS.labels(workflow, status).inc(count)
        if self.retries:
            metrics.WORKFLOW_RETRIES.inc(self.retries)
        _observe(metrics.WORKFLOW_TASK_DURATION, self.attempts)
        _observe(metrics.WORKFLOW_EXECUTION_DURATION, self.durations)


def _observe(histogram: Histogram, observed: Sequence[tuple[str, float]]) -> None:
    """Observations by label; the label is looked up once for many."""
    of: dict[str, Histogram] = {}
    for label, seconds in observed:
        child = of.get(label)
        if child is None:
            child = of[label] = histogram.labels(label)
        child.observe(seconds)
