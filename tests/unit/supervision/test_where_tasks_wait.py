"""Law of the list by which a stall is found: each task, and the awaits it is in."""

import asyncio

from app.lifecycle import where_tasks_wait


async def outer(held: asyncio.Event) -> None:
    await inner(held)


async def inner(held: asyncio.Event) -> None:
    await held.wait()


async def test_each_task_is_named_with_the_awaits_it_is_in() -> None:
    held = asyncio.Event()
    task = asyncio.create_task(outer(held), name="the one that waits")
    await asyncio.sleep(0)
    (found,) = [line for line in where_tasks_wait() if line.startswith("the one that waits: ")]
    places = [place.partition(":")[0] for place in found.partition(": ")[2].split(" > ")]
    assert places[:3] == ["outer", "inner", "Event.wait"]
    held.set()
    await task
