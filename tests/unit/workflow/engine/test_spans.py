"""Laws of the spans of executions: each attempt and each run once, with the right parent, whoever carried it on."""

from typing import Any

import pytest

from app.domain.trace import Span, parse
from app.domain.workflow.commands import RetryExecution
from app.domain.workflow.events import (
    ApprovalRequested,
    ChildStarted,
    Event,
    ExecutionEnded,
    ExecutionStarted,
    TaskFailed,
    TaskScheduled,
    TaskSucceeded,
    WaitStarted,
)
from app.domain.workflow.spans import ExecutionTrace, attempt_span_id, run_span_id
from tests.helpers.engine import started, task, workflow
from tests.helpers.tracing import Spans
from tests.unit.workflow.engine.test_interleavings import FLOWS
from tests.unit.workflow.engine.world import World

ABOVE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
UNSAMPLED = ABOVE[:-1] + "0"
BEGINS = TaskScheduled | WaitStarted | ApprovalRequested | ChildStarted
CONDITION = workflow("condition", task("a", when="input.nothing.there"))
LONG = workflow("long", task("a"), task("b", "a"), task("c", "b"), task("d", "c"))


async def opened(*flows: Any, ratio: float = 1.0, **terms: Any) -> tuple[World, Spans]:
    world = World(*flows, **terms)
    spans = Spans(ratio)
    world.tracing = spans
    await world.open()
    return world, spans


def of(spans: Spans, execution_id: str) -> list[Span]:
    return [span for span in spans.all if span.attributes["headrace.execution.id"] == execution_id]


def attempts(history: list[Event]) -> int:
    """How many there were: those that began, and those that failed before they could."""
    begun = {(event.task, event.item) for event in history if isinstance(event, BEGINS)}
    unable = [event for event in history if isinstance(event, TaskFailed) and (event.task, event.item) not in begun]
    return sum(isinstance(event, BEGINS) for event in history) + len(unable)


def check(spans: list[Span], history: list[Event], trace_id: str) -> None:
    """Every attempt and run of this history, and nothing else."""
    runs = {span.context.span_id: span for span in spans if span.name.startswith("workflow ")}
    tasks = [span for span in spans if span.context.span_id not in runs]
    assert len({span.context.span_id for span in spans}) == len(spans)
    assert {span.context.trace_id for span in spans} == {trace_id}
    assert len(runs) == sum(isinstance(event, ExecutionEnded) for event in history)
    assert len(tasks) == attempts(history)
    for span in tasks:
        run = runs[span.parent_id or ""]
        assert run.start_ns <= span.start_ns <= span.end_ns <= run.end_ns


@pytest.mark.parametrize("flow", [*FLOWS, CONDITION], ids=lambda flow: flow.id)
@pytest.mark.parametrize("prompt", [False, True])
async def test_every_attempt_and_run_is_one_span(flow: Any, prompt: bool) -> None:
    world, spans = await opened(*FLOWS, CONDITION, cache_executions=1)
    world.prompt = prompt
    names = [f"{flow.id}-{number}x" for number in range(3)]
    world.tell(*(started(flow.id, name, {}, traceparent=ABOVE) for name in names))
    await world.drain()
    for name in names:
        history = world.history(name)
        assert isinstance(history[-1], ExecutionEnded)
        check(of(spans, name), history, "a" * 32)
        (run,) = [span for span in of(spans, name) if span.name == f"workflow {flow.id}"]
        assert (run.parent_id, run.attributes["headrace.execution.status"]) == ("b" * 16, history[-1].status)


@pytest.mark.parametrize("stop", ["early", "decided", "settled"])
async def test_an_attempt_under_way_at_a_takeover_is_one_span_from_its_beginning(stop: str) -> None:
    world, spans = await opened(LONG)
    world.tell(started("long", "x", traceparent=ABOVE))
    await world.take(1)
    began_ms = world.clock.ms
    world.clock.ms += 300
    await world.crash()
    world.clock.ms += 300
    await world.tick()
    world.executor.end_all()
    await world.tick(stop)
    await world.drain()
    found = {span.name: span for span in of(spans, "x")}
    lost = {"task a"} if stop == "settled" else set()
    assert set(found) | lost == {"workflow long", "task a", "task b", "task c", "task d"}
    assert len(found) == len(spans.all)
    assert found["workflow long"].start_ns == began_ms * 1_000_000
    if not lost:
        assert (found["task a"].start_ns, found["task a"].end_ns) == (
            began_ms * 1_000_000,
            (began_ms + 600) * 1_000_000,
        )


async def test_what_an_attempt_does_is_below_its_span() -> None:
    world, _ = await opened(LONG)
    world.tell(started("long", "x", traceparent=ABOVE))
    await world.take(1)
    ((order, _),) = world.executor.running.values()
    context = parse(order.traceparent)
    assert context is not None
    assert (context.trace_id, context.span_id) == ("a" * 32, attempt_span_id("x", order.token))


async def test_a_sub_workflow_is_below_the_attempt_that_called_it() -> None:
    world, spans = await opened(*FLOWS)
    world.tell(started("outer", "x", traceparent=ABOVE))
    await world.drain()
    (call,) = spans.named("task call")
    (inner,) = spans.named("workflow line")
    assert (inner.parent_id, inner.context.trace_id) == (call.context.span_id, "a" * 32)
    assert {span.parent_id for span in spans.named("task a")} == {inner.context.span_id}


async def test_each_try_of_a_task_says_how_it_ended() -> None:
    world, spans = await opened(*FLOWS)
    world.tell(started("flaky", "x", traceparent=ABOVE))
    await world.drain()
    first, second = spans.named("task a")
    assert (first.error, first.attributes["error.type"]) == ("it broke", "Broken")
    assert (first.attributes["headrace.task.outcome"], first.attributes["headrace.task.attempt"]) == ("failed", 1)
    assert (second.error, second.attributes["headrace.task.outcome"]) == (None, "succeeded")
    assert second.attributes["headrace.task.attempt"] == 2
    assert second.attributes["headrace.task.type"] == "echo"


async def test_an_execution_that_is_tried_again_has_a_span_for_each_run() -> None:
    world, spans = await opened(*FLOWS)
    world.tell(started("bad", "x", traceparent=ABOVE))
    await world.drain()
    world.tell(RetryExecution(execution_id="x", command_id="again"))
    await world.drain()
    check(of(spans, "x"), world.history("x"), "a" * 32)
    runs = spans.named("workflow bad")
    assert [span.context.span_id for span in runs] == [run_span_id("x", 1), run_span_id("x", 2)]
    assert {span.parent_id for span in runs} == {"b" * 16}
    assert all(span.attributes["error.type"] == "Broken" and span.error == "it broke" for span in runs)


async def test_an_execution_nobody_traces_is_the_root_of_a_trace_that_its_log_lines_name() -> None:
    world, spans = await opened(LONG)
    world.tell(started("long", "x"))
    await world.drain()
    (run,) = spans.named("workflow long")
    first = world.history("x")[0]
    assert isinstance(first, ExecutionStarted)
    context = parse(first.traceparent)
    assert context is not None
    assert (run.parent_id, run.context.trace_id) == (None, context.trace_id)
    assert len(spans.all) == 5


@pytest.mark.parametrize(("header", "ratio"), [(UNSAMPLED, 1.0), (None, 0.0)])
async def test_of_an_execution_that_is_not_sampled_nothing_is_recorded(header: str | None, ratio: float) -> None:
    world, spans = await opened(LONG, ratio=ratio)
    world.tell(started("long", "x", traceparent=header))
    await world.take(1)
    ((order, _),) = world.executor.running.values()
    await world.drain()
    assert spans.all == []
    context = parse(order.traceparent)
    assert context is not None
    assert not context.is_sampled


async def test_without_a_place_for_spans_a_trace_is_passed_on_as_it_came() -> None:
    world = World(LONG)
    await world.open()
    world.tell(started("long", "x", traceparent=ABOVE), started("long", "y"))
    await world.take(2)
    assert sorted(str(order.traceparent) for order, _ in world.executor.running.values()) == [ABOVE, "None"]


def test_an_attempt_that_ended_when_it_was_ordered_lasts_as_long_as_was_measured() -> None:
    events: list[Event] = [
        ExecutionStarted(
            seq=0, at=5, workflow="w", version="v", input=None, key=None, priority=0, asked_at=5, trigger={},
            traceparent=ABOVE, execution_id="x",
        ),
        TaskScheduled(seq=1, at=5, task="a", item=None, attempt=1),
        TaskSucceeded(seq=2, at=5, task="a", item=None, attempt=1, result=None, duration_ms=1.25, worker="here"),
        ExecutionEnded(seq=3, at=5, status="succeeded"),
    ]  # fmt: skip
    trace = ExecutionTrace.of(events[0])
    assert trace is not None
    spans = [span for event in events[1:] for span in trace.take(event, lambda _: None)]
    assert [(span.name, span.start_ns, span.end_ns) for span in spans] == [
        ("task a", 5_000_000, 6_250_000), ("workflow w", 5_000_000, 6_250_000),
    ]  # fmt: skip
