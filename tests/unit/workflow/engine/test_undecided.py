"""Laws of decisions that come to nothing: a bug is met, or no record can carry what was decided."""

from typing import Any

import orjson
import pytest

from app.adapters.expressions import CelExpressions
from app.domain.workflow.commands import Report, RetryExecution
from app.domain.workflow.definition import Concurrency
from app.domain.workflow.events import TaskSucceeded
from config.topics import WORKFLOW_DEADLETTER
from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.test_engine import opened
from tests.unit.workflow.engine.world import World

ONE = Concurrency(limit=1)
LARGE = "x" * 300_000


def report(world: World, execution_id: str, name: str, result: Any) -> None:
    """An attempt ends with what a test says."""
    order, reported = world.executor.running.pop((execution_id, name, None))
    reported(
        Report(
            execution_id=execution_id,
            task=name,
            item=None,
            attempt=order.attempt,
            token=order.token,
            result=result,
        )
    )


def refused(world: World) -> list[str]:
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    return [letter["reason"] for letter in letters if letter["kind"] == "command"]


async def test_a_retry_that_meets_a_bug_is_refused_loudly_and_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = workflow("one", task("c", when="input.x == 1"), task("a", do="fail"), concurrency=ONE)
    world = await opened(flow)
    world.tell(started("one", "e", {"x": 2}))
    await world.drain(forward_ms=500)
    before = list(world.history("e"))

    def broken(*_: object) -> None:
        raise RecursionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(CelExpressions, "evaluate", broken)
        world.tell(RetryExecution(execution_id="e", command_id="r", from_task="c"))
        await world.take(10)
    assert (world.engine.gate.running("one", None), world.engine.active) == (0, 0)
    assert refused(world) == ["undecided"]
    assert world.history("e") == before, "it is as it was"
    world.tell(started("one", "next", {"x": 2}))
    await world.drain(forward_ms=500)
    assert world.state("next").status == "failed"  # type: ignore[union-attr]
    world.tell(RetryExecution(execution_id="e", command_id="r2", from_task="c"))
    await world.drain(forward_ms=500)
    assert world.state("e").run == 2  # type: ignore[union-attr]
    assert (world.engine.gate.running("one", None), world.engine.active) == (0, 0)


@pytest.mark.parametrize(("result", "why"), [(LARGE, "PayloadTooLarge"), (object(), "NotSerializable")])
async def test_a_parent_is_told_once_and_only_what_was_written(result: object, why: str) -> None:
    inner = workflow("in", task("a"), concurrency=ONE)
    outer = workflow("out", task("c", type="workflow", params={"id": "in"}))
    world = await opened(inner, outer, record_bytes=280_000)
    world.tell(started("out", "p"))
    await world.take(10)
    await world.take(10)
    ((child, _, _),) = world.executor.running
    told = len(world.commands)
    report(world, child, "a", result)
    await world.tick()
    (answer,) = [orjson.loads(record.value or b"") for record in world.commands[told:]]
    assert (answer["type"], answer["status"], answer["error"]["type"]) == ("child_ended", "failed", why)
    await world.drain(forward_ms=500)
    for execution_id in (child, "p"):
        assert world.state(execution_id).status == "failed"  # type: ignore[union-attr]
    assert (world.engine.active, world.engine.gate.running("in", None)) == (0, 0)
    await world.crash(disk_too=True)
    assert (world.rows(b"x"), world.rows(b"t"), world.engine.active) == ([], [], 0)


async def test_what_was_decided_before_in_the_same_batch_is_kept() -> None:
    world = await opened(workflow("two", task("a"), task("b"), task("c", "a", "b")), record_bytes=280_000)
    world.tell(started("two", "e"))
    await world.take(1)
    report(world, "e", "a", "fine")
    report(world, "e", "b", LARGE)
    await world.tick()
    state = world.state("e")
    assert state is not None
    assert state.error is not None
    assert (state.status, state.error.type) == ("failed", "PayloadTooLarge")
    assert [event.result for event in world.history("e") if isinstance(event, TaskSucceeded)] == ["fine"]
    assert (world.executor.running, world.engine.active) == ({}, 0)


async def test_a_start_that_no_record_can_carry_is_recorded_without_its_input() -> None:
    world = await opened(workflow("one", task("a"), concurrency=ONE), record_bytes=280_000)
    world.tell(started("one", "big", {"x": LARGE}), started("nobody", "none", {"x": LARGE}), started("one", "small"))
    await world.drain(forward_ms=500)
    big, none, small = (world.state(name) for name in ("big", "none", "small"))
    assert big is not None
    assert none is not None
    assert small is not None
    assert (big.status, big.error and big.error.type, big.input) == ("failed", "PayloadTooLarge", None)
    assert (none.status, none.error and none.error.type, none.input) == ("failed", "PayloadTooLarge", None)
    assert "no workflow 'nobody'" in str(none.error)
    assert (small.status, world.engine.active) == ("succeeded", 0)
    world.tell(*(RetryExecution(execution_id=name, command_id="r") for name in ("big", "none")))
    await world.drain(forward_ms=500)
    assert refused(world) == ["cannot_retry", "cannot_retry"], "what it came with is not known any more"
