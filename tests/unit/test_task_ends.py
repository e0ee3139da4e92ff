"""Laws of how tasks end: a cancellation that nobody asked for is an error, one that was asked for is none."""

import asyncio
import gc
import warnings

import pytest

from app.task_ends import Parts, StrayCancellation, error_of


async def _stray() -> None:
    """Wait for something that is cancelled by whoever holds it, as a client cancels its own requests."""
    request = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(request.cancel)
    await request


async def _for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("beside", ["nothing", "a part that goes on", "a part that has ended"])
async def test_a_part_that_ends_as_if_cancelled_fails_its_group(beside: str) -> None:
    others = {"nothing": [], "a part that goes on": [_for_ever], "a part that has ended": [lambda: asyncio.sleep(0)]}

    async def grouped() -> None:
        async with Parts() as parts:
            for other in others[beside]:
                parts.create_task(other(), name="other")
            parts.create_task(_stray(), name="definitions")

    with pytest.raises(ExceptionGroup) as failed:
        await grouped()
    [error] = failed.value.exceptions
    assert isinstance(error, StrayCancellation)
    assert str(error).startswith("definitions ended as if it had been cancelled")


async def test_the_stock_group_passes_over_it() -> None:
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(_stray())
    assert ended.cancelled(), "when it fails its group, `Parts` is needed no more"


async def test_a_part_that_somebody_cancels_ends_in_order_and_the_group_goes_on() -> None:
    async with Parts() as parts:
        reloading = parts.create_task(_for_ever(), name="reload")
        working = parts.create_task(asyncio.sleep(0, "done"), name="work")
        await asyncio.sleep(0)
        reloading.cancel()
    assert (reloading.cancelled(), working.result()) == (True, "done")
    assert error_of(reloading) is None


async def test_a_part_that_is_cancelled_before_its_first_step_is_not_told_of_as_forgotten() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        async with Parts() as parts:
            parts.create_task(_for_ever(), name="reload").cancel()
        gc.collect()
    assert [str(each.message) for each in told if "never awaited" in str(each.message)] == []


async def test_a_group_that_is_cancelled_from_outside_is_cancelled_and_not_failed() -> None:
    async def grouped() -> None:
        async with Parts() as parts:
            parts.create_task(_for_ever(), name="one")

    task = asyncio.create_task(grouped())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert error_of(task) is None


async def test_a_failure_is_told_as_it_is() -> None:
    async def failing() -> None:
        raise LookupError("gone")

    async def grouped() -> None:
        async with Parts() as parts:
            parts.create_task(_for_ever(), name="one")
            parts.create_task(failing(), name="two")

    with pytest.raises(ExceptionGroup) as failed:
        await grouped()
    assert [repr(each) for each in failed.value.exceptions] == ["LookupError('gone')"]


async def test_a_future_that_is_no_task_is_cancelled_by_whoever_holds_it() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    assert error_of(future) is None
