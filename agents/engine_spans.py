"""The spans of one partition's executions, made from the records of its events once these are durable.

Nothing is remembered that the rows do not know: after a takeover, and of what was forgotten for others, what is under
way is read back from the history. What a killed process had not exported is lost, as all its spans are.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from agents.engine_store import Executions
from agents.engine_terms import Graphs
from app.domain.trace import is_sampled, parse
from app.domain.workflow.commands import Start
from app.domain.workflow.orders import TaskOrder
from app.domain.workflow.spans import ExecutionTrace, below_attempt, new_trace
from app.ports import OutRecord, Tracing
from app.workflow_wire import Run, decode_run
from config.topics import WORKFLOW_EVENTS

log = logging.getLogger(__name__)

KEPT: Final = 20_000
_ENDED: Final = b'"execution_ended"'


class EngineSpans:
    """What is under way of the executions that are recorded; of the others None is kept, until they end."""

    def __init__(self, tracing: Tracing, store: Executions, graphs: Graphs, kept: int = KEPT) -> None:
        self._tracing = tracing
        self._store = store
        self._graphs = graphs
        self._kept = kept
        self._traces: OrderedDict[str, ExecutionTrace | None] = OrderedDict()

    def rooted(self, start: Start) -> Start:
        """A start that is in a trace: the one it came with, else one that begins with the execution."""
        if parse(start.traceparent) is not None:
            return start
        context = new_trace(start.execution_id, start.at_ms)
        context = context._replace(is_sampled=is_sampled(context.trace_id, self._tracing.sample_ratio))
        return replace(start, traceparent=context.header())

    @staticmethod
    def marked(order: TaskOrder) -> TaskOrder:
        """The order with its attempt as what its calls are below."""
        traceparent = below_attempt(order.traceparent, order.execution_id, order.token)
        return order if traceparent == order.traceparent else replace(order, traceparent=traceparent)

    def settled(self, outputs: Sequence[OutRecord]) -> None:
        """Hand on the spans that ended with these records."""
        for record in outputs:
            if record.topic == WORKFLOW_EVENTS.name and record.value is not None and not self._is_quiet(record):
                try:
                    self._take(decode_run(record.value))
                except Exception:
                    # What watches must not stop what is watched.
                    log.exception("the spans of an execution could not be made", extra={"action": "trace_failed"})

    def _is_quiet(self, record: OutRecord) -> bool:
        """Whether these are events in the middle of an execution that is not recorded: they need not be read."""
        known = self._traces.get((record.key or b"").decode(), self)
        return known is None and _ENDED not in (record.value or b"")

    def _take(self, run: Run) -> None:
        known = run.execution_id in self._traces
        trace = self._traces.pop(run.execution_id, None) if known else self._read(run)
        if trace is not None:
            type_of = self._type_of(trace)
            for event in run.events:
                for span in trace.take(event, type_of):
                    self._tracing.ended(span)
        if run.events[-1].type != "execution_ended":
            self._traces[run.execution_id] = trace
            if len(self._traces) > self._kept:
                self._traces.popitem(last=False)

    def _read(self, run: Run) -> ExecutionTrace | None:
        """What was under way before these events, from the start or the rows."""
        if run.first_seq == 0:
            return ExecutionTrace.of(run.events[0])
        live = self._store.get(run.execution_id) or self._store.read_ended(run.execution_id)
        if live is None or live.history is None:
            return None
        trace: ExecutionTrace | None = None
        for event in self._store.events(run.execution_id, live.history):
            if event.seq >= run.first_seq:
                break
            if event.seq == 0:
                trace = ExecutionTrace.of(event)
            elif trace is None:
                break
            else:
                # Their spans were handed on when they ended.
                for _ in trace.take(event, _of_no_type):
                    continue
        return trace

    def _type_of(self, trace: ExecutionTrace) -> Callable[[str], str | None]:
        def type_of(task: str) -> str | None:
            graph = self._graphs.get(trace.workflow, trace.version)
            node = None if graph is None else graph.nodes.get(task)
            return None if node is None else node.task.type

        return type_of


def _of_no_type(_: str) -> str | None:
    return None
