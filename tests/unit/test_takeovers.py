"""Laws of what is told of takeovers: once, of orphans alone, when all of them go on."""

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import metrics
from app.roles.takeovers import Takeovers
from tests.helpers.stages import SetClock


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", logger="app.roles.takeovers")
    return caplog


def facts(told: pytest.LogCaptureFixture) -> list[tuple[str, list[int], int, int]]:
    said = [vars(record) for record in told.records]
    assert all(each["action"] == "workflow_failover" and each["to"] == "here 1" for each in said)
    return [(each["from"], each["partitions"], each["executions"], each["ms"]) for each in said]


def count() -> float:
    return metrics.REGISTRY.get_sample_value("workflow_failover_seconds_count") or 0.0


def test_the_partitions_of_one_owner_are_told_of_together_with_the_time_since_the_round_began(told) -> None:
    clock, before = SetClock(), count()
    takeovers = Takeovers("here 1", lambda: clock.ms / 1000)
    takeovers.goes_round()
    clock.ms += 100
    takeovers.goes_round()
    takeovers.seated([0, 1, 2], orphans=[1, 2])
    for partition in (0, 1, 2):
        takeovers.opened(partition, "there 2")
    clock.ms += 50
    takeovers.goes_on(0, 1_000)
    takeovers.goes_on(1, 3)
    assert facts(told) == []
    clock.ms += 25
    takeovers.goes_on(2, 4)
    assert facts(told) == [("there 2", [1, 2], 7, 175)]
    assert count() == before + 1


def test_a_partition_that_nobody_ever_had_is_no_takeover(told) -> None:
    takeovers = Takeovers("here 1", lambda: 1.0)
    takeovers.seated([0, 1], orphans=[0, 1])
    takeovers.opened(0, None)
    takeovers.goes_on(0, 0)
    takeovers.opened(1, "")
    takeovers.goes_on(1, 2)
    assert facts(told) == [("", [1], 2, 0)]


def test_another_round_before_all_go_on_forgets_what_went_elsewhere(told) -> None:
    now = [0.0]
    takeovers = Takeovers("here 1", lambda: now[0])
    takeovers.goes_round()
    takeovers.seated([0, 1], orphans=[0, 1])
    takeovers.opened(0, "there 2")
    takeovers.goes_on(0, 5)
    now[0] = 2.0
    takeovers.goes_round()
    takeovers.seated([0], orphans=[])
    assert facts(told) == [("there 2", [0], 5, 2000)]


@given(st.lists(st.tuples(st.frozensets(st.integers(0, 3)), st.frozensets(st.integers(0, 3))), max_size=6))
def test_whatever_rounds_come_each_orphan_that_stays_is_told_of_once(rounds: list[tuple[Collection[int], ...]]) -> None:
    said: list[int] = []
    takeovers = Takeovers("here 1", lambda: 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.roles.takeovers.log.info", lambda *_, extra: said.extend(extra["partitions"]))
        for owned, orphans in rounds:
            takeovers.goes_round()
            takeovers.seated(owned, orphans)
        if not rounds:
            return
        for partition in rounds[-1][0]:
            takeovers.opened(partition, "there 2")
            takeovers.goes_on(partition, 1)
    lasting = {
        partition
        for partition in rounds[-1][0]
        if any(
            partition in orphans and all(partition in owned for owned, _ in rounds[number:])
            for number, (_, orphans) in enumerate(rounds)
        )
    }
    assert sorted(said) == sorted(lasting)
