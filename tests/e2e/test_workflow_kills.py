"""Laws of the whole engine: whatever of it is killed under load, what was accepted ends once, as its history says."""

from collections.abc import Callable

import pytest

from app.bench.chaos import VICTIMS, prove

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]


async def test_kills_of_engine_tasks_and_worker_lose_nothing_and_do_nothing_twice(capsys: pytest.CaptureFixture[str]):
    say: Callable[[str], None] = print
    report = await prove(seconds=10, every_s=2.5, rate=20, say=say)
    assert report.problems == [], report.as_dict()
    assert set(report.kills) == set(VICTIMS)
    assert report.checked.executions == report.checked.effects > 50
