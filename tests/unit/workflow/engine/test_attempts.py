"""Laws of attempts: which begins when, what is watched, and what is called late."""

from typing import Any

import pytest

from agents.engine import SLOW_COMMANDS
from agents.engine_again import AGAIN, SHORT_MS
from agents.engine_batch import Batch
from agents.engine_terms import Wanted
from app.domain.workflow.commands import Cancel, Debounce, Heartbeat, Report, Signal, Start
from app.domain.workflow.definition import Concurrency, MapOver, Retry
from app.domain.workflow.effects import Dispatch
from app.domain.workflow.events import TaskFailed
from app.domain.workflow.orders import TaskOrder
from app.ports import Reported
from app.workflow_wire import decode_run
from config.topics import WORKFLOW_EVENTS
from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.world import HandExecutor, World

LINE = workflow("line", task("a"), task("b", "a"))
EARLY = workflow("early", task("a"), task("b", "a", type="transform.cel"), task("c", "b"))


async def opened(*flows: object, **terms: object) -> World:
    world = World(*flows, **terms)  # type: ignore[arg-type]
    await world.open()
    return world


async def decided(world: World, start: Start) -> Batch:
    world.tell(start)
    waiting = world.engine.prepare(world.commands)
    assert waiting is None
    changes = world.engine.take(world.commands, world.clock.ms, behind=False)
    assert isinstance(changes, Batch)
    return changes


# ---- which begin early ----


async def test_what_follows_from_a_report_begins_only_when_the_report_is_durable() -> None:
    world = await opened(LINE)
    world.tell(started("line", "one"))
    await world.take(1)
    world.executor.end(0)
    changes = world.engine.tick(world.clock.ms)
    assert changes is not None
    assert not world.engine.early(changes)
    world.engine.conclude(changes, world.clock.ms)
    world.tables.write(changes, timestamp_ms=world.clock.ms)
    assert not world.executor.running
    world.engine.settled(changes, world.clock.ms)
    assert list(world.executor.running) == [("one", "b", None)]


async def test_first_attempts_begin_at_once_and_what_they_say_at_once_is_one_decision_with_the_start() -> None:
    world = await opened(EARLY)
    world.prompt = True
    world.tell(started("early", "one"))
    await world.take(1)
    assert list(world.executor.running) == [("one", "c", None)]  # `a` and, being pure, `b` are in the first record
    runs = [decode_run(record.value) for record in world.log.topics[WORKFLOW_EVENTS.name]]
    assert [len(run.events) for run in runs] == [6]
    world.executor.end(0)
    await world.tick()
    assert world.state("one").status == "succeeded"  # type: ignore[union-attr]


@pytest.mark.parametrize("why", ["limited", "debounced", "of no version", "elsewhere", "not owned"])
async def test_first_attempts_wait_when_a_crash_might_decide_otherwise(why: str) -> None:
    limit = {"concurrency": Concurrency(limit=1)} if why == "limited" else {}
    queue = {"queue": "far"} if why == "elsewhere" else {}
    world = await opened(workflow("early", task("a", **queue), **limit))
    fields: dict[str, Any] = {"of no version": {"version": ""}, "debounced": {"debounce": Debounce(key="k", seconds=1)}}
    if why == "not owned":
        world.tables.closed = True
    changes = await decided(world, started("early", "one", **fields.get(why, {})))
    assert not world.engine.early(changes)
    assert not world.executor.running
    assert len(changes.early) + len(changes.dispatches) == 1


# ---- what is out ----


async def test_a_report_of_an_earlier_attempt_takes_no_watch_off_the_present_one() -> None:
    far = task("a", queue="far", heartbeat_s=1.0, retry=Retry(attempts=3, backoff_s=0.1))
    world = await opened(workflow("far", far))
    world.tell(started("far", "one"))
    await world.take(1)

    async def beat(attempt: int) -> Heartbeat:
        await world.rest()
        order = world.orders()[-1]
        assert order.attempt == attempt
        said = Heartbeat(execution_id="one", task="a", item=None, attempt=attempt, token=order.token)
        world.tell(said)
        await world.take(1)
        return said

    async def silence() -> None:
        for _ in range(8):
            world.clock.ms += 500
            await world.tick()

    first = await beat(1)
    await silence()
    await beat(2)
    world.tell(Report(execution_id="one", task="a", item=None, attempt=1, token=first.token))
    await world.take(1)
    await silence()
    await beat(3)


class Full(HandExecutor):
    """Has slots, and none for the kind of task that is asked for."""

    asked = 0

    def submit(self, order: TaskOrder, report: Reported) -> bool:
        self.asked += 1
        return False


async def test_what_no_executor_has_taken_is_not_late_and_is_asked_for_once_a_look() -> None:
    flow = workflow("wide", task("a", timeout_s=1, map=MapOver(over="input.l", concurrency=100)))
    world = World(flow)
    world.executor = Full(10)
    await world.open()
    full = world.executor
    assert isinstance(full, Full)
    world.tell(started("wide", "one", {"l": list(range(50))}))
    await world.take(1)
    await world.rest()
    await world.rest()
    assert full.asked <= 2
    world.clock.ms += 10_000
    await world.tick()
    assert world.state("one").status == "running"  # type: ignore[union-attr]


async def test_a_crowded_node_takes_no_start_and_all_before_the_first_one() -> None:
    world = await opened(LINE, local_backlog=0)
    world.tell(*(started("line", f"e{number}") for number in range(10)))
    await world.take(10)
    await world.rest()
    assert world.engine.intake(iter(world.commands)) == 0
    world.tell(
        Cancel(execution_id="e1", command_id="c"),
        Signal(execution_id="e2", command_id="s", name="go"),
        started("line", "more"),
    )
    assert world.engine.intake(iter(world.commands[10:])) == 2
    world.clock.ms += 100
    assert world.engine.intake(iter(world.commands)) == SLOW_COMMANDS


async def test_an_executor_that_never_reports_is_given_up_after_the_timeout() -> None:
    flow = workflow("slow", task("a", timeout_s=1, retry=Retry(attempts=2, backoff_s=0)))
    world = await opened(flow)
    world.tell(started("slow", "one"))
    await world.take(1)
    assert world.rows(b"t") == [], "the time of an attempt costs no row"
    first = world.executor.running["one", "a", None][0]
    world.clock.ms += 4_000
    await world.tick()
    failed = [event for event in world.history("one") if isinstance(event, TaskFailed)]
    assert [event.error.type for event in failed] == ["Timeout"]
    stale = Report(execution_id="one", task="a", item=None, attempt=1, token=first.token, result="late")
    world.engine.hear(stale)
    await world.drain()
    state = world.state("one")
    assert state is not None
    assert (state.status, state.result, state.tasks["a"].attempt) == ("succeeded", ["a", None], 2)


async def test_heartbeats_keep_an_attempt_alive_and_their_absence_ends_it() -> None:
    world = await opened(workflow("long", task("a", heartbeat_s=1)))
    world.tell(started("long", "one"))
    await world.take(1)
    token = world.executor.running["one", "a", None][0].token
    for _ in range(5):
        world.clock.ms += 2_500
        world.engine.hear(Heartbeat(execution_id="one", task="a", item=None, attempt=1, token=token))
        await world.tick()
    assert world.state("one").status == "running"  # type: ignore[union-attr]
    world.clock.ms += 3_500
    await world.tick()
    state = world.state("one")
    assert state is not None
    assert state.error is not None
    assert (state.status, state.error.type) == ("failed", "HeartbeatTimeout")


@pytest.mark.parametrize("local", [True, False])
async def test_what_may_not_run_here_is_ordered_on_the_topic_of_its_queue(local: bool) -> None:
    flow = workflow("far", task("a"), task("b", "a", queue="gpu"))
    world = await opened(flow, local_tasks=local)
    world.tell(started("far", "one"))
    for _ in range(3):
        await world.take(10)
        await world.tick()
        while world.executor.running:
            world.executor.end(0)
        await world.rest()
        for order in world.orders():
            world.tell(
                Report(execution_id="one", task=order.task, item=None, attempt=1, token=order.token, result=order.queue)
            )
    await world.drain()
    state = world.state("one")
    assert state is not None
    assert (state.status, state.result) == ("succeeded", "gpu")
    assert state.tasks["a"].result == (["a", None] if local else "default")


async def test_a_result_that_is_too_large_fails_its_task() -> None:
    world = await opened(workflow("far", task("a", queue="gpu")))
    world.tell(started("far", "one"))
    await world.take(10)
    await world.rest()
    (order,) = world.orders()
    world.tell(Report(execution_id="one", task="a", item=None, attempt=1, token=order.token, result="x" * 600_000))
    await world.drain()
    state = world.state("one")
    assert state is not None
    assert state.error is not None
    assert (state.status, state.error.type) == ("failed", "PayloadTooLarge")


async def test_a_value_that_is_no_json_fails_its_execution_and_no_other() -> None:
    world = await opened(LINE)
    world.tell(started("line", "bad"), started("line", "good"))
    await world.take(10)
    token = world.executor.running["bad", "a", None][0].token
    del world.executor.running["bad", "a", None]
    world.engine.hear(
        Report(execution_id="bad", task="a", item=None, attempt=1, token=token, result={"x": object()}, worker="w")
    )
    await world.drain()
    bad, good = world.state("bad"), world.state("good")
    assert bad is not None
    assert good is not None
    assert bad.error is not None
    assert (bad.status, bad.error.type, good.status) == ("failed", "NotSerializable", "succeeded")


async def test_what_two_owners_ended_with_comes_apart_and_is_forgotten_when_it_has_ended() -> None:
    world = await opened(LINE)
    world.tell(started("line", "one"), started("line", "two"))
    await world.take(2)
    world.executor.end(1)
    await world.tick()  # of `two` another task is in hand: it is noted all the same
    for crash, apart in ((1, False), (2, True), (3, True)):
        await world.crash()
        await world.tick()
        orders = [order for order, _ in world.executor.running.values()]
        assert [order.isolated for order in orders] == [apart] * 2, crash
        assert len(world.rows(AGAIN)) == 2
    world.clock.ms += SHORT_MS
    await world.crash()
    await world.tick()
    assert not any(order.isolated for order, _ in world.executor.running.values())
    await world.drain()
    await world.crash()
    world.tell(started("line", "three"))
    await world.take(1)
    await world.crash()
    await world.tick()
    assert [bytes(key) for key in world.rows(AGAIN)] == [AGAIN + b"three"]


async def test_nothing_begins_early_right_after_a_takeover() -> None:
    world = await opened(LINE, early_after_s=5.0)
    assert not world.engine.early(await decided(world, started("line", "one")))
    world.clock.ms += 5_000
    assert world.engine.early(Batch(early=[Wanted("one", "line", 0, "default", Dispatch("a", None, 1, 1), 0)]))
