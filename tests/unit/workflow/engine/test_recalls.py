"""Laws of the engine's recalls: which work that workers were given is called back, and which is not."""

from typing import Any

from app.domain.workflow.commands import Cancel, Report, TaskError
from app.domain.workflow.definition import Concurrency, Retry
from app.domain.workflow.orders import Recall
from app.workflow_wire import decode_recall
from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.world import World

FAR = {"type": "echo", "queue": "far"}
PAIR = workflow("pair", task("a", **FAR), task("b", **FAR), task("here"), task("other", type="echo", queue="other"))


async def opened(*flows: Any, **terms: Any) -> World:
    world = World(*flows, **terms)
    await world.open()
    return world


async def step(world: World) -> None:
    await world.take(100)
    await world.tick()
    await world.rest()


def recalls(world: World, queue: str = "far") -> list[Recall]:
    found = [decode_recall(record.value) for record in world.log.topics[f"workflow.tasks.{queue}"]]
    return [one for one in found if one is not None]


async def test_cancel_recalls_what_workers_were_given_on_each_queue_once() -> None:
    world = await opened(PAIR)
    world.tell(started("pair", "one"))
    await step(world)
    given = world.orders()
    world.tell(Cancel(execution_id="one", command_id="c"))
    await step(world)
    for queue in ("far", "other"):
        (recall,) = recalls(world, queue)
        assert all(recall.covers(order) for order in given if order.queue == queue)
    keys = {record.key for record in world.log.topics["workflow.tasks.far"]}
    assert keys == {b"one"}
    assert "workflow.tasks.default" not in world.log.topics
    assert not world.executor.running


async def test_what_ended_before_the_cancel_is_not_recalled() -> None:
    world = await opened(workflow("line", task("a", **FAR), task("here", "a")))
    world.tell(started("line", "one"))
    await step(world)
    (order,) = world.orders()
    world.tell(Report(execution_id="one", task="a", item=None, attempt=1, token=order.token, worker="w"))
    await step(world)
    world.tell(Cancel(execution_id="one", command_id="c"))
    await step(world)
    assert recalls(world) == []


async def test_attempt_that_is_given_up_is_recalled_and_the_next_one_is_not() -> None:
    flow = workflow("again", task("a", retry=Retry(attempts=3, backoff_s=1, jitter=0), heartbeat_s=1, **FAR))
    world = await opened(flow)
    world.tell(started("again", "one"))
    await step(world)
    (first,) = world.orders()
    error = TaskError(type="HeartbeatTimeout", message="silent")
    world.tell(Report(execution_id="one", task="a", item=None, attempt=1, token=first.token, error=error))
    await step(world)
    (recall,) = recalls(world)
    world.clock.ms += 2_000
    await step(world)
    (second,) = world.orders()
    assert (recall.covers(first), recall.covers(second), second.attempt) == (True, False, 2)


async def test_compensation_is_not_recalled_with_what_it_compensates() -> None:
    flow = workflow(
        "undone",
        task("a", **FAR),
        task("b", **FAR),
        on_failure=task("undo", **FAR),
    )
    world = await opened(flow)
    world.tell(started("undone", "one"))
    await step(world)
    given = {order.task: order for order in world.orders()}
    error = TaskError(type="Broken", message="it broke", retryable=False)
    world.tell(Report(execution_id="one", task="a", item=None, attempt=1, token=given["a"].token, error=error))
    await step(world)
    (undo,) = world.orders()
    found = recalls(world)
    assert any(recall.covers(given["b"]) for recall in found)
    assert not any(recall.covers(undo) for recall in found)


async def test_execution_whose_place_is_taken_is_recalled() -> None:
    flow = workflow("newest", task("a", **FAR), concurrency=Concurrency(limit=1, when_full="cancel_running"))
    world = await opened(flow)
    world.tell(started("newest", "one"), started("newest", "two"))
    await step(world)
    world.tell(started("newest", "three"))
    await step(world)
    given = world.orders()
    live = [order for order in given if not any(recall.covers(order) for recall in recalls(world))]
    assert [order.execution_id for order in live] == ["three"]
