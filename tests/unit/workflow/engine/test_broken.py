"""Laws of what cannot be read, decided or found any more: it fails loudly, and its partition goes on."""

import orjson
import pytest

from agents.engine_entities import EntityCommand, EntityOutcome
from app.domain.workflow.commands import RetryExecution, Signal
from app.domain.workflow.definition import Concurrency
from config.topics import WORKFLOW_DEADLETTER
from tables.partition import Changes
from tests.helpers.engine import started, task, workflow
from tests.unit.workflow.engine.test_engine import LINE, Clockwork, opened, run
from tests.unit.workflow.engine.world import World


@pytest.mark.parametrize("spoil", ["header", "events", "whole"])
async def test_an_execution_whose_rows_cannot_be_read_fails_loudly_and_its_partition_goes_on(
    spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    flow = workflow("gate", task("a"), task("ask", "a", type="approval"), concurrency=Concurrency(limit=1))
    world = await opened(flow)
    world.tell(started("gate", "first"), started("gate", "second"))
    await world.drain(forward_ms=1_000)
    seq = len(world.history("first"))
    row = world.tables.get(b"xfirst")
    assert row is not None
    spoiled = {"header": b"\x00\x00\x00\x02\xc1\xc1" + row[6:], "events": row[:-9] + b"}broken}}", "whole": b"?"}[spoil]
    world.tables.write(Changes(rows={b"xfirst": spoiled}), timestamp_ms=world.clock.ms)
    await world.crash()
    world.tell(Signal(execution_id="first", command_id="s1", name="ask"), started("gate", "first"))
    await world.drain(forward_ms=1_000)
    world.tell(Signal(execution_id="second", command_id="s2", name="ask"))
    await world.drain(forward_ms=1_000)
    state = world.state("second")
    assert state is not None
    assert state.status == "succeeded", "its place in the line was given back"
    assert (world.tables.get(b"xfirst"), world.tables.get(b"qfirst")) == (None, spoiled)
    assert world.engine.active == 0
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert [each["error"]["type"] for each in letters if each["kind"] == "execution"] == ["Unreadable"]
    assert [each["reason"] for each in letters if each["kind"] == "command"] == ["unreadable"]
    assert [record.levelname for record in caplog.records if getattr(record, "action", "") == "execution_broken"] == [
        "ERROR"
    ]
    if spoil == "events":
        assert len(world.history("first")) == seq + 1
        assert world.state("first").status == "failed"  # type: ignore[union-attr]


async def test_an_ended_execution_that_cannot_be_read_is_put_aside_and_not_started_again() -> None:
    world = await opened(LINE)
    await run(world, started("line", "one"))
    world.tables.write(Changes(rows={b"fone": b"?"}), timestamp_ms=world.clock.ms)
    await world.crash()
    world.tell(started("line", "one"), RetryExecution(execution_id="one", command_id="r"))
    await world.drain(forward_ms=1_000)
    assert (world.rows(b"f"), world.rows(b"q"), world.rows(b"x")) == ([], [b"qone"], [])
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert [each["reason"] for each in letters] == ["unreadable"]


async def test_executions_whose_definition_is_lost_fail_at_the_takeover_and_none_waits_for_ever() -> None:
    flow = workflow("lost", task("a", do="hang"), concurrency=Concurrency(limit=1))
    world = await opened(flow)
    world.tell(started("lost", "begun"), started("lost", "queued"))
    await world.take(10)
    world.definitions.forget("lost")
    await world.crash()
    await world.tick()
    for name in ("begun", "queued"):
        state = world.state(name)
        assert state is not None
        assert (state.status, state.error and state.error.type) == ("failed", "DefinitionLost")
    assert (world.engine.active, world.rows(b"x")) == (0, [])


async def test_a_schedule_that_meets_a_bug_stops_no_partition_and_is_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Clockwork):
        mended = False

        def timer(self, entity_id: str, name: str, due_ms: int, now_ms: int) -> EntityOutcome:
            if not Broken.mended:
                raise KeyError(name)
            return super().timer(entity_id, name, due_ms, now_ms)

        def take(self, command: EntityCommand, now_ms: int) -> EntityOutcome:
            if command.type == "schedule_dance":
                raise ValueError("no legs")
            return super().take(command, now_ms)

    world = World(LINE)
    world.make_entities = Broken
    await world.open()
    for kind in ("schedule_put", "schedule_dance"):
        world._append(b"schedule:s", orjson.dumps({"type": kind}))
    world.tell(started("line", "other"))
    await world.drain(forward_ms=2_000)
    assert world.state("other").status == "succeeded"  # type: ignore[union-attr]
    letters = [orjson.loads(record.value or b"") for record in world.log.topics[WORKFLOW_DEADLETTER.name]]
    assert [letter["detail"] for letter in letters] == ["schedule:s met ValueError('no legs')"]
    assert {record.action for record in caplog.records if hasattr(record, "action")} >= {"entity_broken"}
    Broken.mended = True
    world.clock.ms += 60_000
    await world.drain()
    assert [world.state(f"run-{n}x").status for n in range(3)] == ["succeeded"] * 3  # type: ignore[union-attr]
