"""Laws of the whole product under faults: what was acknowledged ends once, with one effect, and no reading is lost.

The smoke of `make chaos`: one node, whose state outlives its processes.
"""

from collections import Counter
from pathlib import Path

import pytest

from app.chaos.rig import Shape
from app.chaos.run import Plan, prove

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

FAULTS = (
    "kill-worker",
    "kill-coordinator",
    "kill-task-process",
    "kill-api",
    "stop-coordinator",
    "net-cut",
    "net-reset",
    "sink-cut",
    "poison-records",
)


async def test_faults_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    # The share of starts that are taken is a matter of the machine; that something was is asserted below.
    plan = Plan(
        seconds=60,
        every_s=4,
        rate=20,
        faults=FAULTS,
        devices=10,
        metrics=3,
        ok_share=0.05,
        shape=Shape(nodes=1, brokers=1),
    )
    report = await prove(plan, tmp_path, print)
    assert report.problems == [], report.as_dict()
    assert Counter(FAULTS) <= report.faults.happened
    assert report.statuses["succeeded"] > 50
    assert report.readings.acknowledged > 50
