"""Laws of one partition's engine: what is remembered, what is forgotten, and what begins when."""

from typing import Any

import orjson
import pytest

from agents.engine_entities import EntityCommand, EntityOutcome, GetRow, TimerChange
from app.domain.workflow.commands import Debounce, Report, RetryExecution, Signal, Start
from app.domain.workflow.definition import Concurrency, Rate, Retry, Task
from app.domain.workflow.events import ExecutionStarted
from app.domain.workflow.state import Execution
from app.ports import OutRecord
from config.topics import WORKFLOW_DEADLETTER, WORKFLOW_DEFINITIONS, WORKFLOW_EVENTS
from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.world import World

LINE = workflow("line", task("a"), task("b", "a"))


async def opened(*flows: object, **terms: object) -> World:
    world = World(*flows, **terms)  # type: ignore[arg-type]
    await world.open()
    return world


async def run(world: World, *starts: Start) -> list[Execution]:
    world.tell(*starts)
    await world.drain()
    states = [world.state(one.execution_id) for one in starts]
    assert all(states)
    return [state for state in states if state is not None]


# ---- rows ----


async def test_an_ended_execution_is_forgotten_after_its_retention_with_all_its_chunks() -> None:
    world = await opened(LINE, chunk_events=2, retention_ms=5_000)
    world.tell(started("line", "one"))
    await world.drain(forward_ms=1_000)
    assert len(world.rows(b"f")) == 1
    assert len(world.rows(b"h")) > 1
    for _ in range(10):
        world.clock.ms += 6_000
        await world.tick()
    assert world.rows(b"f") == world.rows(b"h") == world.rows(b"x") == []


async def test_a_long_history_is_sealed_and_read_again_whole() -> None:
    flow = workflow("flaky", task("a", do="fail_first:30", retry=Retry(attempts=31, backoff_s=0.01)))
    world = await opened(flow, chunk_events=7)
    world.tell(started("flaky", "one"))
    for _ in range(20):
        await world.take(1)
        await world.tick()
        if world.executor.running:
            world.executor.end(0)
        world.clock.ms += 20_000
    assert len(world.rows(b"h")) > 1
    await world.crash(disk_too=True)
    await world.drain(forward_ms=600_000)
    state = world.state("one")
    assert state is not None
    assert (state.status, state.tasks["a"].attempt) == ("succeeded", 31)
    assert [event.seq for event in world.history("one")] == list(range(state.seq))


async def test_memory_holds_no_more_executions_and_timers_than_it_is_told() -> None:
    nap = workflow("nap", task("a", type="wait", params={"seconds": "input.s"}))
    world = await opened(nap, cache_executions=10, timers_in_memory=20, timer_lookahead_ms=1_000)
    world.tell(*(started("nap", f"n{n}", {"s": 1 + n}) for n in range(200)))
    while world.behind:
        await world.take(50)
    assert len(world.rows(b"t")) == 200
    assert len(world.engine.store) <= 10
    assert len(world.engine.timers) <= 40
    await world.drain(forward_ms=250_000)
    assert world.rows(b"t") == world.rows(b"x") == []


async def test_an_idle_execution_leaves_the_memory_and_comes_back() -> None:
    ask = workflow("nap", task("a", type="wait", params={"seconds": 100}))
    world = await opened(ask, passivate_after_s=2)
    world.tell(started("nap", "one"))
    await world.take(1)
    assert len(world.engine.store) == 1
    world.clock.ms += 4_000
    await world.tick()
    assert len(world.engine.store) == 0
    await world.drain(forward_ms=120_000)
    state = world.state("one")
    assert state is not None
    assert state.status == "succeeded"


# ---- starts ----


async def test_a_debounced_start_leaves_no_execution() -> None:
    world = await opened(LINE)
    t0 = world.clock.ms
    for number, at_ms in enumerate((t0, t0 + 900, t0 + 1_000, t0 + 1_500)):
        world.tell(started("line", f"e{number}", at_ms=at_ms, debounce=Debounce(key="press", seconds=1)))
    world.tell(started("line", "other", at_ms=t0, debounce=Debounce(key="pump", seconds=1)))
    await world.drain()
    found = [name for name in ("e0", "e1", "e2", "e3", "other") if world.state(name) is not None]
    assert found == ["e0", "e2", "other"]


async def test_a_record_that_a_debounce_held_back_starts_nothing_when_it_comes_again_after_the_window() -> None:
    world = await opened(LINE, retention_ms=5_000)
    t0 = world.clock.ms

    def asks(offset: int, at_ms: int) -> Start:
        debounce = Debounce(key="press", seconds=1, at_ms=t0 + at_ms, source="signals-0", offset=offset)
        return started("line", f"line:signals-0-{offset}", at_ms=world.clock.ms, debounce=debounce)

    world.tell(asks(0, 0), asks(1, 500), asks(2, 1_000))
    await world.drain()
    for _ in range(10):  # what has ended is forgotten
        world.clock.ms += 6_000
        await world.tick()
    assert world.rows(b"f") == []
    await world.crash(disk_too=True)
    world.tell(asks(0, 0), asks(1, 500), asks(2, 1_000), asks(3, 2_000))
    await world.drain()
    found = [number for number in range(4) if world.state(f"line:signals-0-{number}") is not None]
    assert found == [0, 2, 3]
    starts = [event for number in (0, 2, 3) for event in world.history(f"line:signals-0-{number}") if event.seq == 0]
    assert len(starts) == 3


@pytest.mark.parametrize(
    "beyond",
    [
        {"debounce": Debounce(key="press", seconds=1, at_ms=-1)},
        {"debounce": Debounce(key="press", seconds=1, offset=10**30)},
        {"priority": 10**30},
        {"at_ms": -1},
        {"at_ms": 10**400},
        {"debounce": Debounce(key="press", seconds=1e300)},
        {"execution_id": "zero\x00byte"},
    ],
)
async def test_a_start_that_no_row_can_hold_is_a_dead_letter_and_its_partition_goes_on(beyond: dict[str, Any]) -> None:
    world = await opened(LINE)
    fields = {"name": "line", "execution_id": "poison", **beyond}
    world.tell(started(**fields), started("line", "good"))
    await world.drain()
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert [(letter["kind"], letter["reason"], letter["offset"]) for letter in letters] == [
        ("command", "unreadable", 0)
    ]
    state = world.state("good")
    assert state is not None
    assert state.status == "succeeded"


async def test_a_repeated_start_of_an_ended_child_tells_its_parent_again() -> None:
    outer = workflow("outer", task("call", type="workflow", params={"id": "line"}))
    world = await opened(LINE, outer)
    await run(world, started("outer", "one"))
    child = next(record for record in world.commands if b"one.call" in (record.key or b""))
    count = len(world.commands)
    world._append(child.key, child.value)
    await world.drain()
    assert [orjson.loads(record.value or b"")["type"] for record in world.commands[count:]] == ["start", "child_ended"]


async def test_a_rate_holds_across_a_takeover() -> None:
    rated = workflow("rated", task("a"), rate=Rate(limit=2, per_s=60))
    world = await opened(rated)
    world.tell(*(started("rated", f"r{n}") for n in range(3)))
    await world.drain(forward_ms=1_000)
    assert [world.state(f"r{n}").status for n in range(3)] == ["succeeded", "succeeded", "queued"]  # type: ignore[union-attr]
    await world.crash(disk_too=True)
    await world.drain(forward_ms=5_000)
    assert world.state("r2").status == "queued"  # type: ignore[union-attr]
    await world.drain(forward_ms=60_000)
    assert world.state("r2").status == "succeeded"  # type: ignore[union-attr]


async def test_the_line_of_a_limit_goes_by_priority_then_arrival_across_a_takeover() -> None:
    one = workflow("one", task("a"), concurrency=Concurrency(limit=1))
    world = await opened(one)
    for name, priority in (("first", 0), ("low", 0), ("lower", 0), ("high", 5)):
        world.tell(started("one", name, priority=priority))
    await world.take(10)
    await world.crash()
    await world.drain()
    last = {record.key: record.offset for record in world.log.topics[WORKFLOW_EVENTS.name]}
    assert sorted(last, key=lambda name: last[name]) == [b"first", b"high", b"low", b"lower"]


async def test_a_retry_that_comes_to_nothing_keeps_no_place() -> None:
    one = workflow("one", task("a"), concurrency=Concurrency(limit=1))
    world = await opened(one)
    await run(world, started("one", "first"))
    world.tell(RetryExecution(execution_id="first", command_id="r1"))
    await world.drain()
    assert world.engine.gate.running("one", None) == 0
    (second,) = await run(world, started("one", "second"))
    assert second.status == "succeeded"


# ---- records ----


async def test_an_event_record_holds_what_a_batch_decided_of_one_execution() -> None:
    world = await opened(LINE)
    await run(world, started("line", "one"))
    records = world.log.topics[WORKFLOW_EVENTS.name]
    assert [record.key for record in records] == [b"one"] * 3
    bodies = [orjson.loads(record.value or b"") for record in records]
    assert [body["first_seq"] for body in bodies] == [0, 2, 4]
    assert {body["epoch"] for body in bodies} == {world.tables.epoch}
    first = world.history("one")[0]
    assert isinstance(first, ExecutionStarted)


async def test_a_failed_execution_is_a_dead_letter_with_its_cause() -> None:
    world = await opened(workflow("bad", task("a", do="fail")))
    await run(world, started("bad", "one"))
    (letter,) = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert (letter["kind"], letter["execution_id"], letter["task"]) == ("execution", "one", "a")
    assert letter["error"] == {"type": "Broken", "message": "it broke"}


# ---- entities ----


class Clockwork:
    """An entity that starts an execution at each of three ticks, and remembers them in its row."""

    def __init__(self, get: GetRow) -> None:
        self._get = get

    def take(self, command: EntityCommand, now_ms: int) -> EntityOutcome:
        if command.type == "schedule_put":
            return EntityOutcome(rows={b"sschedule:s": b"0"}, timers=(TimerChange("next", now_ms + 1_000),))
        if command.type == "entity_told":
            told = int(self._get(b"stold") or b"0") + 1
            summary = OutRecord(WORKFLOW_DEFINITIONS.name, b"schedule:s", b"%d" % told, now_ms)
            return EntityOutcome(rows={b"stold": b"%d" % told}, summaries=(summary,))
        return EntityOutcome(refused="What is that?")

    def timer(self, entity_id: str, name: str, due_ms: int, now_ms: int) -> EntityOutcome:
        count = int(self._get(b"sschedule:s") or b"0")
        start = started("line", f"run-{count}x", notify=entity_id)
        timers = (TimerChange(name, due_ms + 1_000),) if count < 2 else ()
        return EntityOutcome(rows={b"sschedule:s": b"%d" % (count + 1)}, starts=(start,), timers=timers)


async def test_entities_start_executions_and_are_told_of_their_ends_across_takeovers() -> None:
    world = World(LINE)
    world.make_entities = Clockwork
    await world.open()
    for kind in ("schedule_put", "schedule_dance"):
        world._append(b"schedule:s", orjson.dumps({"type": kind}))
    for _ in range(6):
        await world.take(10, "settled")
        world.clock.ms += 500
        await world.tick("written")
    await world.drain()
    assert [world.state(f"run-{n}x").status for n in range(3)] == ["succeeded"] * 3  # type: ignore[union-attr]
    assert world.tables.get(b"stold") == b"3"
    assert world.rows(b"t") == world.rows(b"u") == []
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert [letter["detail"] for letter in letters] == ["What is that?"]


# ---- what cannot be ----


async def test_what_never_could_begin_is_tried_again_only_once_it_can() -> None:
    world = await opened()
    world.tell(started("newest", "one"), RetryExecution(execution_id="one", command_id="r1"))
    await world.drain(forward_ms=500)
    assert world.state("one").status == "failed"  # type: ignore[union-attr]
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert [letter.get("reason") for letter in letters if letter["kind"] == "command"] == ["cannot_retry"]
    world.definitions.late.append(workflow("newest", task("a")))
    await world.definitions.caught_up()
    world.tell(RetryExecution(execution_id="one", command_id="r2"))
    await world.drain(forward_ms=500)
    assert world.state("one").status == "succeeded"  # type: ignore[union-attr]


class Trap(Task):
    """A task whose parameters cannot be read once it is armed."""

    armed = False

    def __getattribute__(self, name: str) -> object:
        if name == "params" and Trap.armed:
            raise RuntimeError("a bug")
        return super().__getattribute__(name)


async def test_a_bug_while_an_order_is_made_fails_its_task_and_stalls_nothing() -> None:
    world = await opened(LINE, workflow("trap", Trap(name="a", type="echo")))
    world.executor.slots = 0
    world.tell(started("trap", "bad"))
    await world.take(1)
    world.executor.slots = 4
    Trap.armed = True
    try:
        (good,) = await run(world, started("line", "good"))
    finally:
        Trap.armed = False
    bad = world.state("bad")
    assert bad is not None
    assert bad.error is not None
    assert (bad.status, bad.error.type, good.status) == ("failed", "Engine", "succeeded")


async def test_what_no_record_can_carry_is_a_failure_with_its_size() -> None:
    big = "'" + "x" * 300_000 + "'"
    echo = {"id": "line", "input": dict.fromkeys("abc", f"${{{big}}}")}
    far = workflow("far", task("a", queue="gpu"), task("b", queue="gpu"), task("c", "a", "b", queue="gpu"))
    world = await opened(LINE, far, workflow("outer", task("call", type="workflow", params=echo)), record_bytes=900_000)
    world.tell(started("outer", "child"), started("far", "order"))
    world.tell(Signal(execution_id="order", command_id="s", name="s", payload="x" * 800_000))
    await world.take(10)
    await world.rest()
    for order in world.orders():
        world.tell(
            Report(execution_id="order", task=order.task, item=None, attempt=1, token=order.token, result="x" * 500_000)
        )
    await world.drain()
    for name in ("child", "order"):
        state = world.state(name)
        assert state is not None
        assert state.error is not None
        assert state.status == "failed"
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert [letter["reason"] for letter in letters if letter["kind"] == "command"] == ["too_large"]
    assert max(len(record.value or b"") for records in world.log.topics.values() for record in records) < 910_000
