"""Laws of what `bench failover` says of the ends it has read."""

import pytest

from app.bench.ends import AFTER_MS, BEFORE_MS, BIN_MS, Ends, Seen, bins, gap_ms, in_hand_ms
from app.bench.failover import ENDED_MS, Sent

KILL_MS = 10_000.0


def every(step_ms: int, *, but: range = range(0)) -> list[int]:
    """Ends of one partition, evenly, but for those in a range."""
    return [at for at in range(8_000, 14_000, step_ms) if at not in but]


@pytest.mark.parametrize(
    ("partitions", "gap"),
    [
        ([every(10)], 10),
        ([every(10, but=range(10_001, 10_300))], 300),
        ([every(10), every(10, but=range(9_990, 10_450))], 470),
        ([every(10, but=range(8_500, 9_500))], 10),
        ([every(10, but=range(11_000, 12_600))], 510),
        ([every(10, but=range(12_000, 13_000))], 10),
        ([every(10), every(10, but=range(9_900, 20_000))], AFTER_MS + 110),
    ],
    ids=["none", "after", "the worst partition", "long before", "begins within", "begins too late", "nothing any more"],
)
def test_the_gap_is_the_longest_that_the_kill_falls_into_or_that_follows_it(
    partitions: list[list[int]], gap: int
) -> None:
    assert gap_ms(Seen(dict(enumerate(partitions))), KILL_MS, KILL_MS + AFTER_MS) == gap


def test_a_gap_of_nothing_is_no_gap() -> None:
    with pytest.raises(ValueError, match="no end"):
        gap_ms(Seen(), KILL_MS, KILL_MS + AFTER_MS)


def lived(*lives: tuple[int, int]) -> Ends:
    return Ends({f"x{number}": life for number, life in enumerate(lives)})


def test_what_was_in_hand_was_accepted_before_and_ended_after() -> None:
    lives = [(9_000, 9_999), (9_999, 10_060), (9_000, 10_200), (10_001, 10_900)]
    assert in_hand_ms(lived(*lives), KILL_MS) == 200
    assert in_hand_ms(lived(*lives[:1]), KILL_MS) == 0


def test_bins_are_the_mean_of_the_kills() -> None:
    ends = lived(*((0, at) for at in (10_000, 10_001, 10_000 + BIN_MS, 20_000)))
    bars = bins(ends, [KILL_MS, 20_000.0])
    at_the_kill = BEFORE_MS // BIN_MS
    assert bars[at_the_kill : at_the_kill + 3] == [3 / 2, 1 / 2, 0]
    assert sum(bars) == 2


def test_a_second_is_available_when_what_was_asked_in_it_was_accepted_and_ended_in_time() -> None:
    sent = Sent(seconds={"x0": 0, "x1": 1, "x2": 3}, bad_seconds={2})
    on_time, late = (9_000, 9_000 + ENDED_MS), (9_000, 9_001 + ENDED_MS)
    assert sent.availability(lived(on_time, on_time, on_time))["share"] == 0.75
    assert sent.availability(lived(on_time, late, on_time)) == {
        "seconds": 4, "bad_seconds": 2, "share": 0.5, "ended_late": 1
    }  # fmt: skip
