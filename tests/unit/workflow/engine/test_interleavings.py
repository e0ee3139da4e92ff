"""The law of the engine: however its steps fall and wherever it dies, every execution ends as it would have anyway."""

import asyncio
from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.workflow.definition import Concurrency, MapOver, Rate, Retry
from app.domain.workflow.events import Event, ExecutionAdmitted, ExecutionEnded, ExecutionStarted
from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.world import World

FLOWS: Final = (
    workflow("line", task("a"), task("b", "a"), task("c", "b")),
    workflow("pure", task("a"), task("b", "a", type="transform.cel"), task("c", "b", type="transform.cel")),
    workflow("branch", task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c")),
    workflow("flaky", task("a", do="fail_first:1", retry=Retry(attempts=2, backoff_s=0.3)), task("b", "a")),
    workflow("bad", task("a"), task("b", "a", do="fail"), on_failure=task("mend")),
    workflow("mends", task("a", do="fail"), task("b"), on_failure=task("tell", type="transform.cel")),
    workflow("nap", task("a", type="wait", params={"seconds": 0.5}), task("b", "a")),
    workflow("fan", task("a", map=MapOver(over="[1, 2, 3]", concurrency=2)), task("b", "a")),
    workflow("one", task("a"), task("b", "a"), concurrency=Concurrency(limit=1)),
    workflow("rated", task("a"), rate=Rate(limit=2, per_s=0.5)),
    workflow("skips", task("a"), concurrency=Concurrency(limit=1, when_full="skip")),
    workflow("takes", task("a"), concurrency=Concurrency(limit=1, when_full="cancel_running")),
    workflow("told", task("a"), task("b", "a")),
    workflow("outer", task("call", type="workflow", params={"id": "line"}), task("z", "call")),
)
ENDS: Final = {
    **{flow.id: {"succeeded"} for flow in FLOWS},
    "bad": {"failed"},
    "mends": {"failed"},
    "skips": {"succeeded", "skipped"},
    "takes": {"succeeded", "cancelled"},
}
# A signal that brings the limit of its key with it.
SIGNAL: Final = {"kind": "kafka", "concurrency": 1}
STOPS: Final = ("", "", "", "later", "later", "early", "decided", "written", "lost", "settled")

STEP: Final = st.one_of(
    st.tuples(st.just("start"), st.integers(0, len(FLOWS) - 1)),
    st.tuples(st.just("take"), st.integers(1, 5), st.sampled_from(STOPS)),
    st.tuples(st.just("tick"), st.sampled_from(STOPS)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("time"), st.integers(1, 400)),
    st.tuples(st.just("prompt"), st.booleans()),
    st.tuples(st.just("repeat"), st.integers(0, 20)),
)


def most_at_once(histories: list[list[Event]]) -> int:
    """How many of these executions ran at the same time, by the order in which it was written."""
    changes: list[tuple[int, int]] = []
    for events in histories:
        began = [
            event.at
            for event in events
            if isinstance(event, ExecutionAdmitted) or (isinstance(event, ExecutionStarted) and not event.queued)
        ]
        end = events[-1]
        assert isinstance(end, ExecutionEnded)
        if began and end.status != "skipped":
            changes += [(began[0], 1), (end.at, -1)]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


async def play(steps: list[tuple[str, ...]]) -> None:
    world = World(*FLOWS, slots=3, chunk_events=5, cache_executions=3)
    await world.open()
    names: list[str] = []
    for number, (step, *rest) in enumerate(steps):
        match step:
            case "start":
                flow = FLOWS[int(rest[0])]
                names.append(f"{flow.id}-{number}x")
                signal = {"key": "press", "trigger": SIGNAL} if flow.id == "told" else {}
                world.tell(started(flow.id, names[-1], {}, **signal))
            case "take":
                await world.take(int(rest[0]), rest[1])
            case "tick":
                await world.tick(rest[0])
            case "end" if world.executor.running:
                world.executor.end(int(rest[0]))
            case "time":
                world.clock.ms += int(rest[0])
            case "prompt":
                world.prompt = bool(rest[0])
            case "repeat" if world.commands:
                again = world.commands[int(rest[0]) % len(world.commands)]
                world._append(again.key, again.value)
    await world.drain()
    for name in names:
        state = world.state(name)
        assert state is not None
        assert state.status in ENDS[state.workflow]
        assert [event.seq for event in world.history(name)] == list(range(state.seq))
    assert world.rows(b"x") == []
    assert world.rows(b"t") == []
    assert world.engine.active == 0
    assert world.engine.gate.waiting == 0
    for limited, key in (("one", None), ("skips", None), ("takes", None), ("told", "press")):
        assert world.engine.gate.running(limited, key) == 0
        assert most_at_once([world.history(name) for name in names if name.startswith(f"{limited}-")]) <= 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=5, max_size=60))
def test_every_execution_ends_as_it_would_have_wherever_its_owner_dies(steps: list[tuple[str, ...]]) -> None:
    asyncio.run(play(steps))
