"""Laws of the pace: a reader keeps up when it has read what was there a second ago."""

from app.domain.pace import BEHIND_AFTER_MS, Pace


def test_who_has_read_all_that_was_there_keeps_up() -> None:
    assert not Pace().behind(last=9, end=10, arrived_ms=1_000, now_ms=1_000)


def test_a_backlog_is_behind_until_the_end_that_was_known_a_second_ago_is_reached() -> None:
    pace = Pace()
    verdicts = [pace.behind(last, 100, at_ms, at_ms) for last, at_ms in ((29, 0), (59, 3_000), (98, 6_000))]
    assert verdicts == [True, True, True]
    assert pace.behind(99, 200, 9_000, 9_000), "what was there nine seconds ago says nothing of now"
    assert not pace.behind(199, 200, 9_500, 9_500)


def test_a_busy_partition_where_something_always_waits_keeps_up() -> None:
    pace = Pace()
    # Every 100 ms ten more records come, and the reader is always ten records short of the end.
    verdicts = [pace.behind(10 * n + 9, 10 * n + 20, 100 * n, 100 * n) for n in range(50)]
    assert verdicts[0]
    assert not any(verdicts[1:])


def test_a_reader_that_falls_back_is_behind_after_a_second() -> None:
    pace = Pace()
    assert not pace.behind(9, 10, 0, 0)
    assert not pace.behind(10, 1_000, 100, 100)
    assert pace.behind(11, 2_000, BEHIND_AFTER_MS + 200, BEHIND_AFTER_MS + 200)


def test_an_end_that_nobody_knows_is_taken_to_be_reached() -> None:
    assert not Pace().behind(9, None, 5_000, 5_000)
