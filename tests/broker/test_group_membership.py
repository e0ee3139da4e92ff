"""Laws of an app that drops out of its group without a word: the watchdog hears of it."""

import pytest

from app.adapters.faust_app import App, new_app, running
from app.adapters.group_membership import membership
from tests.helpers.broker import TopicFactory
from tests.helpers.kafka import until

pytestmark = pytest.mark.broker


def an_app(broker: str, topic: str) -> App:
    app = new_app(f"{topic}-group", broker)

    async def body(stream: object) -> None:
        async for _ in stream.noack().events():  # type: ignore[attr-defined]
            pass

    app.add_agent("reader", topic, body)
    return app


async def test_an_app_whose_joining_ended_has_something_to_answer_for(broker: str, new_topic: TopicFactory):
    app = an_app(broker, new_topic(2))
    assert membership(app).lag == 0  # it has not begun
    async with running(app):
        await until(lambda: app.has_joined, "it joins")
        assert membership(app).lag == 0
        thread = app.consumer._thread
        coordinator = thread._consumer._coordinator
        thread.thread_loop.call_soon_threadsafe(coordinator._coordination_task.cancel)
        await until(lambda: membership(app).lag == 1, "it is out of its group")
        assert app.lags() is not None  # what it knows of lag would never show it


async def test_an_app_that_stops_has_nothing_to_answer_for(broker: str, new_topic: TopicFactory):
    app = an_app(broker, new_topic(2))
    async with running(app):
        await until(lambda: app.has_joined, "it joins")
    assert membership(app).lag == 0
