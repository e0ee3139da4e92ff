"""Laws of the lag figures: the worst of all readers, and nothing of partitions that went elsewhere."""

import pytest

from agents.lag import LagBoard
from app import metrics
from app.metrics import REGISTRY

PLACE = ("lag.test", 3)


def shown(name: str = "stream_lag_records") -> float | None:
    return REGISTRY.get_sample_value(name, {"topic": PLACE[0], "partition": str(PLACE[1])})


def test_of_two_readers_of_a_partition_the_one_further_behind_is_shown() -> None:
    board = LagBoard()
    board.show("sink-slow", {PLACE: 900})
    board.show("sink-fast", {PLACE: 1})
    assert shown() == 900
    board.show("sink-slow", {})
    assert shown() == 1
    board.show("sink-fast", {})


@pytest.mark.parametrize("has_processed", [True, False])
def test_a_partition_that_went_elsewhere_is_no_longer_shown(has_processed: bool) -> None:
    board = LagBoard()
    board.show("transform", {PLACE: 5})
    if has_processed:
        metrics.LAG_SECONDS.labels(PLACE[0], str(PLACE[1])).set(1.5)
    board.show("transform", {})
    assert shown() is None
    assert shown("stream_lag_seconds") is None
