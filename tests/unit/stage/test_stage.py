"""Laws of the stage loop: batches in order, ticks in time, and nothing acknowledged that is not settled."""

import asyncio
from typing import NoReturn

import pytest

from agents import stage
from app.errors import Fenced, PublishFailed
from app.task_ends import StrayCancellation
from tests.helpers.stages import Scene, StageBatch, until


async def test_a_busy_partition_ticks_too() -> None:
    scene = Scene(tick_s=0.5, step_ms=100)
    await scene.begin()
    batches = [StageBatch(offset, highwater=offset + 1) for offset in range(20)]
    for batch in batches:
        scene.stage.feed(batch)
    await until(lambda: all(batch.acks for batch in batches))
    assert len(scene.logic.ticks) == 4, "two seconds of batches without a pause"
    await scene.stage.close()


async def test_an_idle_partition_ticks() -> None:
    scene = Scene(tick_s=0.0)
    await scene.begin()
    await until(lambda: len(scene.logic.ticks) > 3)
    await scene.stage.close()


async def test_records_that_always_wait_do_not_make_a_partition_behind() -> None:
    scene = Scene(step_ms=50)
    await scene.begin()
    batches = [StageBatch(10 * n, 10, highwater=10 * n + 15) for n in range(10)]
    for batch in batches:
        scene.stage.feed(batch)
        await until(lambda batch=batch: bool(batch.acks))  # type: ignore[misc]
    assert not any(scene.logic.behind[1:])
    await scene.stage.close()


async def test_a_repeat_is_acknowledged_and_not_decided_again() -> None:
    scene = Scene()
    await scene.begin()
    first, again = StageBatch(0, 5), StageBatch(3, 5)
    scene.stage.feed(first)
    scene.stage.feed(again)
    await until(lambda: bool(first.acks and again.acks))
    assert scene.logic.taken == list(range(8))
    await scene.stage.close()


async def test_a_batch_whose_outputs_fail_is_not_acknowledged_and_fails_the_stage() -> None:
    scene = Scene()
    await scene.begin()
    scene.publisher.gate.failure = PublishFailed("refused", 1)
    batch = StageBatch(0)
    scene.stage.feed(batch)
    await until(scene.stage.failed.done)
    assert isinstance(scene.stage.failed.exception(), PublishFailed)
    assert not batch.acks
    await scene.stage.close()


@pytest.mark.parametrize("where", ["while it opens", "while it settles"])
async def test_a_cancellation_that_nobody_asked_for_fails_the_stage_instead_of_standing_still(where: str) -> None:
    scene = Scene()

    async def opens(_: int) -> NoReturn:
        raise asyncio.CancelledError  # what aiokafka hands to who stops a consumer whose fetch rests

    if where == "while it opens":
        scene.stage.open_partition = opens
        beginning = asyncio.create_task(scene.begin())
    else:
        await scene.begin()
        scene.publisher.gate.failure = asyncio.CancelledError()
        scene.stage.feed(batch := StageBatch(0))
        beginning = asyncio.create_task(asyncio.sleep(0))
    await until(scene.stage.failed.done)
    assert isinstance(scene.stage.failed.exception(), StrayCancellation)
    assert where == "while it opens" or not batch.acks
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    await scene.stage.close()


async def test_a_revoked_partition_does_not_tick_and_has_settled_what_a_tick_wrote() -> None:
    scene = Scene(tick_s=0.0, tick_writes=True)
    await scene.begin()
    scene.publisher.gate.allow(0)
    ticks = len(scene.logic.ticks)
    await until(lambda: len(scene.logic.ticks) > ticks)
    revoking = asyncio.create_task(scene.stage.revoked([0]))
    await asyncio.sleep(0)
    ticks = len(scene.logic.ticks)
    assert not revoking.done(), "what the tick wrote is not acknowledged"
    scene.publisher.gate.allow(None)
    await revoking
    end = scene.log.end("stage.state")
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(scene.logic.ticks) == ticks
    assert scene.log.end("stage.state") == end
    await scene.stage.close()


async def test_a_kept_partition_goes_on_and_a_lost_one_is_closed() -> None:
    scene = Scene()
    await scene.begin()
    await scene.stage.revoked([0])
    await scene.stage.assigned([0], kept=True)
    batch = StageBatch(0)
    scene.stage.feed(batch)
    await until(lambda: bool(batch.acks))
    await scene.stage.assigned([], kept=False)
    assert scene.stage.partitions == ()
    in_use = [scene.disk.user is not None]
    await scene.stage.let_go()
    in_use.append(scene.disk.user is not None)
    assert in_use == [True, False], "nobody waits for the folder while partitions are to go on"
    scene.stage.feed(stranger := StageBatch(1))
    assert not stranger.acks
    assert not scene.stage.failed.done()
    await scene.stage.close()


async def test_a_fenced_partition_is_asked_for_anew_and_opened_again_and_the_stage_lives_on() -> None:
    scene = Scene()
    asked: list[int] = []
    scene.stage.ask_anew = lambda: asked.append(1)
    await scene.begin()
    scene.claim_as_another()
    lost = StageBatch(0)
    scene.stage.feed(lost)
    await until(lambda: bool(asked))
    assert not scene.stage.ready
    assert (lost.acks, scene.stage.failed.done()) == (0, False)
    await scene.stage.revoked([0])
    await scene.stage.assigned([0], kept=True)
    await until(lambda: scene.stage.ready)
    again = StageBatch(0, 2)
    scene.stage.feed(again)
    await until(lambda: bool(again.acks))
    assert asked == [1]
    await scene.stage.close()


async def test_a_fenced_partition_that_nobody_gives_out_again_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "FENCED_PATIENCE_S", 0.01)
    scene = Scene()
    scene.stage.ask_anew = lambda: None
    await scene.begin()
    scene.claim_as_another()
    scene.stage.feed(StageBatch(0))
    await until(scene.stage.failed.done)
    assert isinstance(scene.stage.failed.exception(), Fenced)
    await scene.stage.close()


async def test_a_partition_that_is_fenced_again_and_again_fails_the_stage() -> None:
    scene = Scene()
    asked: list[int] = []
    scene.stage.ask_anew = lambda: asked.append(1)
    await scene.begin()
    for offset in range(stage.FENCES + 1):
        scene.claim_as_another()
        scene.stage.feed(StageBatch(offset))
        before = len(asked)
        await until(lambda before=before: len(asked) > before or scene.stage.failed.done())  # type: ignore[misc]
        await scene.stage.assigned([0], kept=True)
        await until(lambda: scene.stage.ready or scene.stage.failed.done())
    assert isinstance(scene.stage.failed.exception(), Fenced)
    assert len(asked) == stage.FENCES
    await scene.stage.close()
